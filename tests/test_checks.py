"""A wrong setting is found before it hurts: each fault with its id, the setting, its value and the cure."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.core.checks import run_checks
from django.test import override_settings

import djmease
from djmease import loader

BROADCAST = "djmease.senders.broadcast"
not_callable = "text"


def misspelt(client: Any, mesage: Any) -> None: ...
def receive(client: Any, message: Any) -> None: ...
async def ask(user: Any) -> bool: ...


def generate(message: Any) -> Iterator[Any]:
    yield message


class Generates:
    async def __call__(self, message: Any) -> AsyncIterator[Any]:
        yield message


generates = Generates()


def __getattr__(name: str) -> Any:
    """As of a module that makes things when they are asked for."""
    if name == "lazy":
        raise RuntimeError("it cannot be made")
    raise AttributeError(name)


def found(deploy: bool = False) -> list[str]:
    messages = run_checks(tags=["djmease"], include_deployment_checks=deploy)
    return [f"{message.id} {message.msg} {message.hint}" for message in messages]


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("ROUTES", ["news"], ["djmease.E001", "MEASE_ROUTES is ['news']", "a dict"]),
        ("ROUTES", {7: BROADCAST}, ["djmease.E001", "the key 7 of MEASE_ROUTES", "a string"]),
        ("ROUTES", {"news": 7}, ["djmease.E001", "MEASE_ROUTES['news'] is 7", "a dotted path"]),
        ("ROUTES", {"news": [7]}, ["djmease.E001", "MEASE_ROUTES['news'] is 7", "a string"]),
        ("ROUTES", {"news": "nowhere.send"}, ["djmease.E002", "MEASE_ROUTES['news']", "there is no module 'nowhere'"]),
        ("ROUTES", {"news": "djmease.nowhere.send"}, ["djmease.E002", "there is no module 'djmease.nowhere'"]),
        (
            "ROUTES",
            {"news": "djmease.senders.brodcast"},
            ["djmease.E002", "has no 'brodcast'", "djmease.senders.broadcast?"],
        ),
        ("ROUTES", {"news": "broadcast"}, ["djmease.E002", "'broadcast' is not a dotted path"]),
        ("ROUTES", {"news": "tests.broken.send"}, ["djmease.E002", "'tests.broken' raised", "broken on purpose"]),
        ("ROUTES", {"news": "tests.needs.send"}, ["djmease.E002", "'tests.needs' raised", "no_such_package"]),
        ("ROUTES", {"news": {}}, ["djmease.E003", "MEASE_ROUTES['news'] has no 'SENDERS'"]),
        (
            "ROUTES",
            {"news": {"SENDERS": BROADCAST, "NAME": 1}},
            ["djmease.E003", "no option 'NAME'", "options are: none"],
        ),
        ("ROUTES", {"news": {"SENDERS": BROADCAST, 1: 1}}, ["djmease.E003", "unknown option 1"]),
        ("ROUTES", {"news": []}, ["djmease.E004", "MEASE_ROUTES['news'] has no sender"]),
        ("ROUTES", {"news": "tests.test_checks.not_callable"}, ["djmease.E005", "'text', which cannot be called"]),
        ("ROUTES", {"news": "tests.test_checks.lazy"}, ["djmease.E002", "'lazy'", "RuntimeError('it cannot be made')"]),
        ("ROUTES", {"news": "tests.test_checks.generate"}, ["djmease.E005", "is a generator", "Take the yield out"]),
        ("ROUTES", {"news": "tests.test_checks.generates"}, ["djmease.E005", "MEASE_ROUTES['news']", "is a generator"]),
        ("ROUTES", {"news": "tests.test_checks.misspelt"}, ["djmease.E006", "misspelt cannot be called", "exactly 3"]),
        ("ROUTES", {"the news": BROADCAST}, ["djmease.E007", "the routing 'the news' can match nothing", "1 to 200"]),
        ("ROUTES", {"a b*": None}, ["djmease.E007", "the pattern 'a b*' can match nothing"]),
        ("ROUTES", {"mease.x": BROADCAST}, ["djmease.E007", "begins with 'mease.'", "reserved"]),
        ("ROUTES", {"": BROADCAST}, ["djmease.E007", "''"]),
        ("RECEIVERS", "a.b", ["djmease.E001", "MEASE_RECEIVERS is 'a.b'", "['a.b']"]),
        ("RECEIVERS", [None], ["djmease.E001", "MEASE_RECEIVERS[0] is None"]),
        ("RECEIVERS", [{"TYPE": "x"}], ["djmease.E003", "MEASE_RECEIVERS[0] has no 'RECEIVER'"]),
        ("RECEIVERS", ["tests.test_checks.misspelt"], ["djmease.E006", "did you mean 'message'?"]),
        (
            "RECEIVERS",
            [{"RECEIVER": "tests.test_checks.receive", "USER_PASSES_TEST": "tests.test_checks.ask"}],
            ["djmease.E011", "MEASE_RECEIVERS[0]", "tests.test_checks.ask, is an async def", "Declare it with def"],
        ),
        ("GROUPS", {"a": {"USER_PASSES_TEST": ask}}, ["djmease.E011", "MEASE_GROUPS['a']", "is an async def"]),
        ("OPENERS", ["tests.test_checks.receive"], ["djmease.E006", "MEASE_OPENERS[0]", "'message'"]),
        ("CLOSERS", {"a": 1}, ["djmease.E001", "MEASE_CLOSERS"]),
        ("PORT", "8001", ["djmease.E008", "MEASE_PORT is '8001'", "65535"]),
        ("PORT", 65536, ["djmease.E008", "MEASE_PORT is 65536"]),
        ("HOST", None, ["djmease.E008", "MEASE_HOST is None"]),
        ("PATH", "ws/", ["djmease.E008", "MEASE_PATH is 'ws/'", "begins with a slash"]),
        ("URL", "ws/", ["djmease.E008", "MEASE_URL is 'ws/'", "a path such as '/ws/'"]),
        ("URL", "https://example.com/", ["djmease.E008", "MEASE_URL is 'https://example.com/'"]),
        ("URL", "wss:///ws/", ["djmease.E008", "MEASE_URL is 'wss:///ws/'"]),
        ("URL", ":ws/", ["djmease.E008", "MEASE_URL is ':ws/'"]),
        ("URL", ":80a/", ["djmease.E008", "MEASE_URL is ':80a/'"]),
        ("URL", "/ws/ now", ["djmease.E008", "MEASE_URL is '/ws/ now'"]),
        ("URL", "/ws/#top", ["djmease.E008", "MEASE_URL is '/ws/#top'"]),
        ("URL", 8001, ["djmease.E008", "MEASE_URL is 8001"]),
        ("MAX_WORKERS", 1, ["djmease.E008", "MEASE_MAX_WORKERS is 1", "at least 2"]),
        ("MAX_MESSAGE_SIZE", 0, ["djmease.E008", "MEASE_MAX_MESSAGE_SIZE is 0"]),
        ("MAX_PUBLISH_SIZE", True, ["djmease.E008", "MEASE_MAX_PUBLISH_SIZE is True"]),
        ("MAX_CLIENT_BUFFER", 1.5, ["djmease.E008", "MEASE_MAX_CLIENT_BUFFER is 1.5"]),
        ("PING_INTERVAL", -1, ["djmease.E008", "MEASE_PING_INTERVAL is -1"]),
        ("PING_TIMEOUT", float("inf"), ["djmease.E008", "MEASE_PING_TIMEOUT is inf"]),
        ("KEY_PREFIX", "my site", ["djmease.E008", "MEASE_KEY_PREFIX is 'my site'"]),
        ("AUTODISCOVER", "yes", ["djmease.E008", "MEASE_AUTODISCOVER is 'yes'"]),
        ("COMPRESSION", "deflate", ["djmease.E008", "MEASE_COMPRESSION is 'deflate'"]),
        ("STRICT_ROUTING", 1, ["djmease.E008", "MEASE_STRICT_ROUTING is 1"]),
        ("REDIS_OPTIONS", [], ["djmease.E008", "MEASE_REDIS_OPTIONS is []"]),
        ("REDIS_URL", 7, ["djmease.E008", "MEASE_REDIS_URL is 7"]),
        ("EMBEDDED_DIR", 7, ["djmease.E008", "MEASE_EMBEDDED_DIR is 7"]),
        ("EMBEDDED_DIR", "valkey", ["djmease.E008", "MEASE_EMBEDDED_DIR is 'valkey'", "absolute path"]),
        ("EMBEDDED_DIR", "/a\0b", ["djmease.E008", "MEASE_EMBEDDED_DIR is '/a\\x00b'"]),
        ("EMBEDDED_DIR", "/\ud800", ["djmease.E008", "MEASE_EMBEDDED_DIR is '/\\ud800'"]),
        ("ALLOWED_ORIGINS", "https://a", ["djmease.E008", "MEASE_ALLOWED_ORIGINS is 'https://a'", "a list"]),
        ("ALLOWED_ORIGINS", ["a.example"], ["djmease.E008", "MEASE_ALLOWED_ORIGINS[0] is 'a.example'", "a scheme"]),
        ("ALLOWED_ORIGINS", [7], ["djmease.E008", "MEASE_ALLOWED_ORIGINS[0] is 7"]),
        ("ALLOWED_ORIGINS", ["https://[x"], ["djmease.E008", "'https://[x'"]),
        (
            "REDIS_OPTIONS",
            {"sockt_timeout": "s3cr3t"},
            ["djmease.E009", "MEASE_REDIS_OPTIONS has 'sockt_timeout'", "arguments of redis-py"],
        ),
        ("REDIS_OPTIONS", {1: 2}, ["djmease.E009", "MEASE_REDIS_OPTIONS has 1", "keywords must be strings"]),
        ("REDIS_URL", "http://x:secret@y", ["djmease.E009", "'http://x:***@y'", "redis://localhost:6379/0"]),
    ],
)
def test_each_fault_names_the_setting_the_value_and_the_cure(
    settings: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, setting: str, value: Any, words: list[str]
) -> None:
    (tmp_path / "broken.py").write_text("raise RuntimeError('broken on purpose')")
    (tmp_path / "needs.py").write_text("import no_such_package")
    monkeypatch.setattr(sys.modules["tests"], "__path__", [*sys.modules["tests"].__path__, str(tmp_path)])
    setattr(settings, f"MEASE_{setting}", value)
    faults = found()
    assert any(all(word in fault for word in words) for fault in faults), faults
    assert not any("secret" in fault for fault in faults)


def test_good_settings_have_no_fault(settings: Any) -> None:
    settings.MEASE_ROUTES = {"news": BROADCAST, "a.*": [BROADCAST], "b": {"SENDERS": [BROADCAST]}, "*": (BROADCAST,)}
    settings.MEASE_RECEIVERS = ["tests.test_checks.receive"]
    settings.MEASE_ALLOWED_ORIGINS = ["https://*.example.com:8443"]
    settings.MEASE_REDIS_URL = "rediss://:x@redis.example.com:6379/0"
    settings.MEASE_PATH = "/ws/"
    assert found() == []


@pytest.mark.parametrize(
    "url", ["/ws/", "/", ":8001", ":8001/ws/?a=1", "ws://127.0.0.1:8001", "wss://ws.example.com/live/", "//a.example/"]
)
def test_what_a_page_can_connect_to_is_no_fault(settings: Any, url: str) -> None:
    settings.MEASE_URL = url
    assert found() == []


def test_the_settings_of_the_moment_are_checked() -> None:
    with override_settings(MEASE_ROUTES={"news": "nowhere.at.all"}):
        assert found()
    assert found() == []


def test_an_unknown_setting_is_a_warning_with_the_closest(settings: Any) -> None:
    settings.MEASE_ROUTE = {}
    settings.MEASE_XYZZY = 1
    faults = found()
    assert any("djmease.W003 MEASE_ROUTE is not" in fault and "MEASE_ROUTES?" in fault for fault in faults)
    assert any("djmease.W003 MEASE_XYZZY" in fault and "MEASE_URL" in fault for fault in faults)


def test_pages_that_could_not_come_back_to_all_of_their_groups_are_a_warning(settings: Any) -> None:
    settings.MEASE_MAX_GROUPS = 600
    settings.MEASE_GROUPS = {"news": True}
    assert found() == [], "a page can join one group"
    settings.MEASE_GROUPS = {"news": True, "board.*": True}
    assert any("djmease.W008 MEASE_MAX_GROUPS is 600, and MEASE_MAX_MESSAGE_BURST 500" in fault for fault in found())
    settings.MEASE_MAX_MESSAGE_BURST = 800
    assert found() == []
    settings.MEASE_MAX_MESSAGE_BURST, settings.MEASE_MAX_MESSAGE_RATE = 500, None
    assert found() == []


def test_a_duplicate_is_a_warning_that_names_both_places(settings: Any) -> None:
    settings.MEASE_ROUTES = {"news": [BROADCAST, BROADCAST]}
    settings.MEASE_RECEIVERS = ["tests.test_checks.receive"]
    djmease.receiver(receive)
    faults = found()
    assert any("W001" in fault and "'news'" in fault for fault in faults)
    assert any("W001" in fault and "MEASE_RECEIVERS[0] and by tests.test_checks:" in fault for fault in faults)
    assert len(loader.load().registry.receivers) == 1


def test_a_decorator_that_the_server_may_never_see_is_a_warning() -> None:
    djmease.receiver(receive)
    assert any(
        "W002" in fault and "tests.test_checks.receive" in fault and "mease_registry" in fault for fault in found()
    )


def test_an_empty_list_of_routings_is_a_fault() -> None:
    djmease.sender(routing=[])(receive_message)
    assert any("E004" in fault and "empty list of routings" in fault for fault in found())


def receive_message(message: Any) -> None: ...


@pytest.mark.parametrize(
    ("url", "debug", "expected"),
    [
        (None, False, "W005"),
        (None, True, "W004"),
        ("embedded://", False, "W004"),
        ("redis://redis:6379", False, ""),
    ],
)
def test_what_serves_a_laptop_is_a_warning_of_the_deploy_check(
    settings: Any, url: str | None, debug: bool, expected: str
) -> None:
    settings.MEASE_REDIS_URL, settings.DEBUG = url, debug
    assert found() == []
    assert [fault.split()[0] for fault in found(deploy=True)] == ([f"djmease.{expected}"] if expected else [])


def test_pages_that_would_pass_by_the_proxy_are_a_warning_of_the_deploy_check(settings: Any) -> None:
    settings.MEASE_REDIS_URL, settings.MEASE_PORT = "redis://redis:6379", 9001
    settings.MEASE_TRUSTED_PROXIES = ["unix"]
    assert found() == []
    (fault,) = found(deploy=True)
    assert "djmease.W007" in fault and "port 9001" in fault and "Set MEASE_URL" in fault
    settings.MEASE_URL = "/ws/"
    assert found(deploy=True) == []


def test_none_switches_off_what_decorators_registered_under_that_key(settings: Any) -> None:
    djmease.sender(routing=["debug.*", "news"])(receive_message)
    djmease.sender(routing="debug.*")(lambda: None)
    settings.MEASE_ROUTES = {"debug.*": None}
    registry = loader.load().registry
    assert registry.senders_for("debug.x") == ()
    assert [sender.function for sender in registry.senders_for("news")] == [receive_message]
    assert not loader.is_sent("debug.x") and loader.is_sent("news")


def test_settings_come_first_then_decorators(settings: Any) -> None:
    djmease.sender(routing="news")(receive_message)
    settings.MEASE_ROUTES = {"*": BROADCAST}
    assert [sender.path.rsplit(".", 1)[1] for sender in loader.load().registry.senders_for("news")] == [
        "broadcast",
        "receive_message",
    ]


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: Any) -> Path:
    """An app of which a test writes the modules."""
    home = tmp_path / "an_app"
    home.mkdir()
    (home / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.split(".")[0] == "an_app"]:
        monkeypatch.delitem(sys.modules, name)
    settings.INSTALLED_APPS = [*settings.INSTALLED_APPS, "an_app"]
    return home


def test_an_error_inside_a_registry_module_is_shown_as_it_is(app: Path) -> None:
    (app / "mease_registry.py").write_text("1 / 0")
    with pytest.raises(ZeroDivisionError):
        loader.autodiscover()


def test_a_missing_import_inside_a_registry_module_is_not_a_missing_module(app: Path) -> None:
    (app / "mease_registry.py").write_text("import no_such_package")
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        loader.autodiscover()


def test_a_registry_module_is_found_and_may_be_switched_off(app: Path, settings: Any) -> None:
    (app / "mease_registry.py").write_text("import djmease\n@djmease.receiver\ndef hear(message): ...\n")
    settings.MEASE_AUTODISCOVER = False
    loader.autodiscover()
    assert loader.load().registry.receivers == ()
    settings.MEASE_AUTODISCOVER = True
    loader.autodiscover()
    assert [receiver.path for receiver in loader.load().registry.receivers] == ["an_app.mease_registry.hear"]
