"""Every fault of the settings as a Django system check: an id, a sentence with the value, a hint that cures it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Sequence
from ipaddress import ip_network
from typing import Any
from urllib.parse import urlsplit

from django.apps import AppConfig, apps
from django.conf import settings
from django.core.checks import CheckMessage, Error
from django.core.checks import Warning as CheckWarning
from django.core.exceptions import ImproperlyConfigured

from djmease import connections, embedded, loader
from djmease.conf import MeaseConf
from djmease.loader import Fault
from djmease.messages import RESERVED_PREFIX, is_valid_name
from djmease.registry import is_pattern

ANY_ORIGIN = "*"

Rule = tuple[str, Callable[[Any], bool], str]
"""A setting, what it must satisfy, and that in words."""


def check_settings(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """Report every fault of the ``MEASE_*`` settings and of the callbacks they name."""
    return [_check_message(fault) for fault in faults()]


def check_deployment(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """Warn, with ``check --deploy``, of what serves a laptop and not a site."""
    return [*_redis_warnings(), *_origin_warnings(), *_proxy_warnings()]


def _redis_warnings() -> Iterator[CheckMessage]:
    url = settings.MEASE_REDIS_URL
    # Not a fault at other times: test runners switch DEBUG off, and the server and publish() say it where it matters.
    if url is None and not settings.DEBUG:
        yield CheckWarning(
            "MEASE_REDIS_URL is not set, and DEBUG is off: nothing can be published.",
            hint=_REDIS_HINT,
            id="djmease.W005",
        )
    elif url in (None, embedded.EMBEDDED_URL):
        yield CheckWarning(
            "Redis is embedded:// here: the embedded Valkey serves the processes of one machine and one user.",
            hint="Set MEASE_REDIS_URL to a Redis or Valkey that all machines reach, unless there is only this one.",
            id="djmease.W004",
        )


def _origin_warnings() -> Iterator[CheckMessage]:
    origins = settings.MEASE_ALLOWED_ORIGINS
    if isinstance(origins, (list, tuple)) and ANY_ORIGIN in origins:
        yield CheckWarning(
            "MEASE_ALLOWED_ORIGINS has '*': a page of any site can connect as whoever of your users visits it.",
            hint="Name the origins whose pages shall connect, for example 'https://app.example.com'.",
            id="djmease.W006",
        )


def _proxy_warnings() -> Iterator[CheckMessage]:
    if settings.MEASE_TRUSTED_PROXIES and settings.MEASE_URL is None:
        yield CheckWarning(
            "MEASE_TRUSTED_PROXIES names a proxy, and MEASE_URL is not set: pages with {% mease_script %} connect to "
            f"port {settings.MEASE_PORT} of the site's host, and not through the proxy.",
            hint="Set MEASE_URL to where the proxy hands on WebSockets, for example '/ws/'.",
            id="djmease.W007",
        )


def faults() -> list[Fault]:
    """Return every fault there is, errors and warnings, as the server wants them too."""
    return [
        *_unknown_settings(),
        *_out_of_range(),
        *_burst_faults(),
        *_redis_faults(),
        *_login_faults(),
        *_loader_faults(),
    ]


def _loader_faults() -> Iterator[Fault]:
    yield from loader.authenticator_faults()
    yield from loader.load().faults


def _check_message(fault: Fault) -> CheckMessage:
    kind = Error if fault.is_error else CheckWarning
    return kind(fault.message, hint=fault.hint, id=fault.id)


def _is_integer(low: int, high: int | None = None) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and value >= low and (high is None or value <= high)


def _is_seconds(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < float("inf")


def _is_origin(value: Any) -> bool:
    try:
        parts = urlsplit(value)
        return bool(parts.scheme and parts.hostname) and not (parts.path or parts.query or parts.fragment)
    except (TypeError, ValueError, AttributeError):
        return False


def _is_allowed_origin(value: Any) -> bool:
    return value == ANY_ORIGIN or _is_origin(value)


def _is_peer(value: Any) -> bool:
    if not isinstance(value, str):
        return False
    try:
        return value == "unix" or bool(ip_network(value, strict=False))
    except ValueError:
        return False


def _is_page_url(value: Any) -> bool:
    # As mease.js reads it; of a path and a port the browser knows the rest.
    return isinstance(value, str) and re.fullmatch(r"(wss?://[^/\s]+|/|:\d+(?=/|$))[^\s#]*", value) is not None


def _is_group_pattern(value: Any) -> bool:
    if not isinstance(value, str) or value.startswith(RESERVED_PREFIX):
        return False
    return bool(value) and is_valid_name(value.replace("*", "x").replace("?", "x"))


def _optional(rule: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or rule(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _is_path(value: Any) -> bool:
    return _is_text(value) and value.startswith("/") and value not in ("/healthz", "/readyz", "/metrics")


def _is_key_prefix(value: Any) -> bool:
    return _is_text(value) and value.isprintable() and not any(char.isspace() for char in value)


RULES: tuple[Rule, ...] = (
    ("MEASE_AUTODISCOVER", lambda value: isinstance(value, bool), "True or False"),
    ("MEASE_STRICT_ROUTING", lambda value: isinstance(value, bool), "True or False"),
    ("MEASE_COMPRESSION", lambda value: isinstance(value, bool), "True or False"),
    ("MEASE_REDIS_URL", _optional(_is_text), "a URL, 'embedded://', or None"),
    ("MEASE_REDIS_OPTIONS", lambda value: isinstance(value, dict), "a dict of arguments for redis-py's connections"),
    ("MEASE_KEY_PREFIX", _is_key_prefix, "a string without spaces, for example 'mysite'"),
    ("MEASE_EMBEDDED_DIR", _optional(embedded.is_place), f"{embedded.PLACE}, or None"),
    ("MEASE_HOST", _is_text, "the address to listen on as a string, for example '127.0.0.1'"),
    ("MEASE_PORT", _is_integer(0, 65535), "a port, from 0 (any free one) to 65535"),
    (
        "MEASE_PATH",
        _optional(_is_path),
        "a path that begins with a slash and is not /healthz, /readyz or /metrics, for example '/ws/', or None for any "
        "path",
    ),
    (
        "MEASE_URL",
        _optional(_is_page_url),
        "an address such as 'wss://ws.example.com/', a path such as '/ws/', a port such as ':8001/', or None",
    ),
    ("MEASE_MAX_WORKERS", _optional(_is_integer(2)), "at least 2 threads (one is kept for closers), or None"),
    ("MEASE_MAX_MESSAGE_SIZE", _is_integer(1), "a positive number of bytes"),
    ("MEASE_MAX_PUBLISH_SIZE", _is_integer(1), "a positive number of bytes"),
    ("MEASE_MAX_CLIENT_BUFFER", _is_integer(1), "a positive number of bytes"),
    ("MEASE_MAX_MESSAGE_RATE", _optional(_is_seconds), "a positive number of messages a second, or None"),
    ("MEASE_MAX_MESSAGE_BURST", _is_integer(1), "a positive number of messages"),
    ("MEASE_MAX_CONNECTIONS", _optional(_is_integer(1)), "a positive number of connections, or None"),
    ("MEASE_MAX_CONNECTIONS_PER_USER", _optional(_is_integer(1)), "a positive number of connections, or None"),
    ("MEASE_MAX_CONNECTIONS_PER_ADDRESS", _optional(_is_integer(1)), "a positive number of connections, or None"),
    ("MEASE_MAX_GROUPS", _is_integer(1), "a positive number of groups"),
    ("MEASE_MAX_HEADER_SIZE", _is_integer(1024), "a number of bytes, at least 1024"),
    ("MEASE_HANDSHAKE_TIMEOUT", _is_seconds, "a positive number of seconds"),
    ("MEASE_DRAIN_TIMEOUT", _is_seconds, "a positive number of seconds"),
    ("MEASE_RECHECK_INTERVAL", _is_seconds, "a positive number of seconds"),
    ("MEASE_SLOW_CALLBACK_TIMEOUT", _is_seconds, "a positive number of seconds"),
    ("MEASE_REPORT_INTERVAL", _optional(_is_seconds), "a positive number of seconds, or None"),
    ("MEASE_REPORT_BODIES", lambda value: isinstance(value, bool), "True or False"),
    ("MEASE_LOGIN_REQUIRED", lambda value: isinstance(value, bool), "True or False"),
    ("MEASE_REQUIRE_ORIGIN", lambda value: isinstance(value, bool), "True or False"),
    ("MEASE_PING_INTERVAL", _is_seconds, "a positive number of seconds"),
    ("MEASE_PING_TIMEOUT", _is_seconds, "a positive number of seconds"),
)


def _out_of_range() -> Iterator[Fault]:
    for name, rule, expected in RULES:
        value = getattr(settings, name)
        if not rule(value):
            yield Fault(id="djmease.E008", message=f"{name} is {value!r}.", hint=f"It should be {expected}.")
    for name, rule, expected, example in LIST_RULES:
        yield from _list_faults(name, rule, expected, example)


LIST_RULES: tuple[tuple[str, Callable[[Any], bool], str, str], ...] = (
    (
        "MEASE_ALLOWED_ORIGINS",
        _is_allowed_origin,
        "a scheme and a host",
        "for example 'https://app.example.com' or 'https://*.example.com', or '*' for any origin",
    ),
    (
        "MEASE_TRUSTED_PROXIES",
        _is_peer,
        "an address or a network",
        "for example '127.0.0.1' or '10.0.0.0/8', or 'unix' for who comes by a Unix socket",
    ),
    (
        "MEASE_METRICS_ALLOW",
        _is_peer,
        "an address or a network",
        "for example '127.0.0.1' or '10.0.0.0/8', or 'unix' for who comes by a Unix socket",
    ),
    (
        "MEASE_PRESENCE",
        _is_group_pattern,
        "the name of a group, or a pattern with * and ?",
        "for example 'board.7' or 'board.*', without 'mease.' at the beginning, and without commas or spaces",
    ),
)
"""A setting that is a list, what each entry must satisfy, that in words, and examples."""


def _list_faults(name: str, rule: Callable[[Any], bool], expected: str, example: str) -> Iterator[Fault]:
    entries = getattr(settings, name)
    if not isinstance(entries, (list, tuple)):
        hint = f"It should be a list; each of its entries is {expected}, {example}."
        yield Fault(id="djmease.E008", message=f"{name} is {entries!r}.", hint=hint)
        return
    for index, entry in enumerate(entries):
        if not rule(entry):
            hint = f"It should be {expected}, {example}."
            yield Fault(id="djmease.E008", message=f"{name}[{index}] is {entry!r}.", hint=hint)


def _burst_faults() -> Iterator[Fault]:
    names, groups, burst = settings.MEASE_GROUPS, settings.MEASE_MAX_GROUPS, settings.MEASE_MAX_MESSAGE_BURST
    if settings.MEASE_MAX_MESSAGE_RATE is None or not isinstance(names, dict):
        return
    if not any(isinstance(name, str) and is_pattern(name) for name in names):
        return  # A page can be in no more groups than there are names.
    if type(groups) is int and type(burst) is int and 1 <= burst <= groups:
        yield Fault(
            id="djmease.W008",
            message=f"MEASE_MAX_GROUPS is {groups}, and MEASE_MAX_MESSAGE_BURST {burst}: a page in so many groups asks "
            "for all of them when it comes back, and is closed with 4429 for that, each time.",
            hint="Let MEASE_MAX_MESSAGE_BURST be greater than MEASE_MAX_GROUPS, by what else a page sends at once.",
            is_error=False,
        )


def _login_faults() -> Iterator[Fault]:
    if settings.MEASE_LOGIN_REQUIRED is True and not apps.is_installed("django.contrib.auth"):
        yield Fault(
            id="djmease.E012",
            message="MEASE_LOGIN_REQUIRED is True, and django.contrib.auth is not installed: nobody could connect.",
            hint="Add 'django.contrib.auth' to INSTALLED_APPS, or leave MEASE_LOGIN_REQUIRED out.",
        )


def _redis_faults() -> Iterator[Fault]:
    url = settings.MEASE_REDIS_URL
    if not isinstance(settings.MEASE_REDIS_OPTIONS, dict):
        return  # Which is said already.
    if url is None or _is_text(url):
        try:
            # The embedded Valkey takes what a socket does.
            connections.check_url("unix:///" if url in (None, embedded.EMBEDDED_URL) else url)
        except ImproperlyConfigured as error:
            is_url = str(error).startswith("MEASE_REDIS_URL")
            yield Fault(id="djmease.E009", message=str(error), hint=_REDIS_HINT if is_url else _OPTIONS_HINT)


_OPTIONS_HINT = "They are arguments of redis-py's connections, for example {'ssl_ca_certs': '/etc/ssl/redis.pem'}."
_REDIS_HINT = "For example MEASE_REDIS_URL = 'redis://localhost:6379/0', 'unix:///run/redis.sock' or 'embedded://'."


def _unknown_settings() -> Iterator[Fault]:
    known = sorted(MeaseConf._meta.names.values())
    for name in sorted(dir(settings)):
        if name.startswith("MEASE_") and name not in known:
            closest = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
            yield Fault(
                id="djmease.W003",
                message=f"{name} is not a setting of django-mease.",
                hint=f"Did you mean {closest[0]}?" if closest else f"The settings are: {', '.join(known)}.",
                is_error=False,
            )
