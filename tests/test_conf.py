"""Every setting, its default, and where it is read."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from typing import Any

import pytest
from django.conf import settings as django_settings
from django.test import override_settings

from djmease.conf import MeaseConf
from tests.support import ROOT

DEFAULTS: dict[str, Any] = {
    "MEASE_ROUTES": {},
    "MEASE_RECEIVERS": [],
    "MEASE_OPENERS": [],
    "MEASE_CLOSERS": [],
    "MEASE_GROUPS": {},
    "MEASE_MAX_GROUPS": 100,
    "MEASE_PRESENCE": [],
    "MEASE_AUTODISCOVER": True,
    "MEASE_STRICT_ROUTING": True,
    "MEASE_COMPRESSION": False,
    "MEASE_REDIS_URL": None,
    "MEASE_REDIS_OPTIONS": {},
    "MEASE_KEY_PREFIX": "mease",
    "MEASE_EMBEDDED_DIR": None,
    "MEASE_HOST": "127.0.0.1",
    "MEASE_PORT": 8001,
    "MEASE_PATH": None,
    "MEASE_URL": None,
    "MEASE_ALLOWED_ORIGINS": [],
    "MEASE_REQUIRE_ORIGIN": False,
    "MEASE_LOGIN_REQUIRED": False,
    "MEASE_AUTHENTICATORS": ["djmease.authenticators.session", "djmease.authenticators.ticket"],
    "MEASE_RECHECK_INTERVAL": 60,
    "MEASE_TRUSTED_PROXIES": [],
    "MEASE_HANDSHAKE_TIMEOUT": 10,
    "MEASE_DRAIN_TIMEOUT": 10,
    "MEASE_SLOW_CALLBACK_TIMEOUT": 10,
    "MEASE_MAX_MESSAGE_RATE": 100,
    "MEASE_MAX_MESSAGE_BURST": 500,
    "MEASE_MAX_CONNECTIONS": 20_000,
    "MEASE_MAX_CONNECTIONS_PER_USER": 100,
    "MEASE_MAX_CONNECTIONS_PER_ADDRESS": 1_000,
    "MEASE_MAX_HEADER_SIZE": 16 * 1024,
    "MEASE_MAX_WORKERS": None,
    "MEASE_MAX_MESSAGE_SIZE": 64 * 1024,
    "MEASE_MAX_PUBLISH_SIZE": 1024 * 1024,
    "MEASE_MAX_CLIENT_BUFFER": 1024 * 1024,
    "MEASE_PING_INTERVAL": 25,
    "MEASE_PING_TIMEOUT": 10,
    "MEASE_REPORT_INTERVAL": 2,
    "MEASE_REPORT_BODIES": False,
    "MEASE_METRICS_ALLOW": ["127.0.0.1", "::1"],
}


def test_the_settings_are_these_with_these_defaults() -> None:
    assert MeaseConf._meta.defaults == DEFAULTS


@pytest.mark.parametrize("name", DEFAULTS)
def test_a_setting_that_the_site_does_not_have_reads_as_its_default(name: str) -> None:
    assert getattr(django_settings, name) == DEFAULTS[name]


@pytest.mark.parametrize("name", DEFAULTS)
def test_an_override_is_seen_and_ends(name: str) -> None:
    with override_settings(**{name: "another"}):
        assert getattr(django_settings, name) == "another"
    assert getattr(django_settings, name) == DEFAULTS[name]


def test_what_the_site_sets_is_stronger_than_a_default() -> None:
    code = (
        "import django; from django.conf import settings\n"
        "settings.configure(INSTALLED_APPS=['djmease'], MEASE_PORT=9090, MEASE_ROUTES={'a': None}); django.setup()\n"
        "print(settings.MEASE_PORT, settings.MEASE_ROUTES, settings.MEASE_HOST)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout == "9090 {'a': None} 127.0.0.1\n", done.stderr


def test_the_page_of_settings_describes_each_with_its_default_and_an_example() -> None:
    text = (ROOT / "docs" / "settings.rst").read_text()
    heads = re.findall(r"^``(MEASE_\w+)``: [^,\n]+, ``([^`]+)``", text, re.MULTILINE)
    assert len(heads) == len(DEFAULTS)
    assert {name: ast.literal_eval(default) for name, default in heads} == DEFAULTS
    assert re.findall(r"^    ``(MEASE_\w+) = .+``$", text, re.MULTILINE) == [name for name, _ in heads]


def test_the_readmes_table_says_the_same_defaults() -> None:
    rows = re.findall(r"^``(MEASE_\w+)`` +``([^`]+)``", (ROOT / "README.rst").read_text(), re.MULTILINE)
    assert len(rows) >= 12
    for name, default in rows:
        assert ast.literal_eval(default) == DEFAULTS[name], name


def test_the_names_say_their_units() -> None:
    """Times in seconds end in _TIMEOUT or _INTERVAL, sizes and counts begin with MAX_."""
    for name, default in DEFAULTS.items():
        is_number = isinstance(default, int) and not isinstance(default, bool)
        if is_number and name != "MEASE_PORT":
            assert name.startswith("MEASE_MAX_") or name.endswith(("_TIMEOUT", "_INTERVAL")), name
