"""The stock callbacks and the options of receivers, in settings and by decorator."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

import djmease
from djmease import loader
from djmease.test import connect
from tests.support import DEADLINE, LiveServer

StartServer = Callable[[], LiveServer]


def faults() -> list[str]:
    return [f"{fault.id} {fault.message} {fault.hint}" for fault in loader.load().faults]


def test_render_writes_the_html_of_a_template(settings: Any) -> None:
    settings.MEASE_ROUTES = {"news": {"SENDERS": "djmease.senders.render", "TEMPLATE": "item.html"}}
    with connect() as page:
        djmease.publish("news", {"text": "<hi>"})
    assert page.received == ['<li id="item">&lt;hi&gt; &lt;hi&gt;</li>']


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "requires the option 'template' (TEMPLATE in settings)"),
        ({"TEMPLATE": "missing.html"}, "no template 'missing.html'"),
        ({"TEMPLATE": "broken.html"}, "has an error"),
        ({"TEMPLATE": 7}, "TEMPLATE is 7"),
        ({"TEMPLTE": "item.html"}, "Did you mean 'TEMPLATE'?"),
        ({"template": "item.html"}, "say 'TEMPLATE'"),
    ],
)
def test_a_wrong_option_of_render_is_a_fault(settings: Any, options: dict[str, Any], expected: str) -> None:
    settings.MEASE_ROUTES = {"news": {"SENDERS": "djmease.senders.render", **options}}
    assert any(expected in fault and "MEASE_ROUTES['news']" in fault for fault in faults())


def test_the_receiver_publish_needs_a_login_unless_the_options_say_otherwise(settings: Any) -> None:
    settings.MEASE_ROUTES = {"chat": "djmease.senders.broadcast"}
    stock = {"RECEIVER": "djmease.receivers.publish", "TYPE": "chat.say", "ROUTING": "chat"}
    settings.MEASE_RECEIVERS = [stock]
    with connect() as page:
        page.send({"type": "chat.say"})
        assert page.received == [{"type": "mease.refused", "reason": "login_required", "refused": "chat.say"}]
    settings.MEASE_RECEIVERS = [{**stock, "LOGIN_REQUIRED": False}]
    with connect() as page:
        page.send({"type": "chat.say"})
        page.send({"type": "other"})
        assert page.received == [{"type": "chat.say"}]


def test_the_receiver_publish_reaches_only_a_group_that_the_client_is_in(settings: Any) -> None:
    settings.MEASE_ROUTES = {"chat": "djmease.senders.broadcast"}
    settings.MEASE_RECEIVERS = [
        {
            "RECEIVER": "djmease.receivers.publish",
            "TYPE": "say",
            "ROUTING": "chat",
            "GROUP": "room.*",
            "LOGIN_REQUIRED": False,
        }
    ]
    with connect(groups=["room.1", "other"]) as member, connect(groups=["room.2"]) as stranger:
        for group in ("room.1", "room.2", "other", None):
            member.send({"type": "say", "group": group})
    assert [message["type"] for message in member.received] == [
        "say",
        "mease.refused",
        "mease.refused",
        "mease.refused",
    ]
    assert stranger.received == []


def test_a_group_without_a_pattern_need_not_be_named(settings: Any) -> None:
    settings.MEASE_ROUTES = {"chat": "djmease.senders.broadcast"}
    settings.MEASE_RECEIVERS = [
        {"RECEIVER": "djmease.receivers.publish", "ROUTING": "chat", "GROUP": "lobby", "LOGIN_REQUIRED": False}
    ]
    with connect(groups=["lobby"]) as member, connect() as stranger:
        member.send("hi")
        stranger.send("hi")
    assert member.received == ["hi"]
    assert stranger.received[0]["reason"] == "not_in_group"
    assert stranger.received[0]["refused"] is None, "what it sent has no type"


def test_what_cannot_be_encoded_is_told_back_as_far_as_it_can(start_server: StartServer, settings: Any) -> None:
    settings.MEASE_ROUTES = {"chat": "djmease.senders.broadcast"}
    settings.MEASE_RECEIVERS = [
        {
            "RECEIVER": "djmease.receivers.publish",
            "ROUTING": "chat",
            "GROUP": "room.*",
            "JSON": True,
            "LOGIN_REQUIRED": False,
        }
    ]
    page = start_server().connect()
    page.send('{"type": "\\ud800", "group": "\\udfff"}')
    refusal = {"type": "mease.refused", "reason": "not_in_group", "refused": "?", "group": "?"}
    assert json.loads(page.recv(DEADLINE)) == refusal


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "requires the option 'routing'"),
        ({"ROUTING": "nobody"}, "ROUTING is 'nobody', for which no sender is registered"),
        ({"ROUTING": "chat", "GROUP": 1}, "GROUP is 1"),
        ({"ROUTING": "chat", "TYPE": 1}, "the option 'type' is 1"),
        ({"ROUTING": "chat", "LOGIN_REQUIRED": "yes"}, "the option 'login_required' is 'yes'"),
        ({"ROUTING": "chat", "PERMISSION_REQUIRED": "add_message"}, "'permission_required' is 'add_message'"),
        ({"ROUTING": "chat", "USER_PASSES_TEST": "no.where"}, "there is no module 'no'"),
        ({"ROUTING": "chat", "USER_PASSES_TEST": 3}, "'user_passes_test' is 3"),
        ({"ROUTING": "chat", "LOGIN_REQIRED": True}, "Did you mean 'LOGIN_REQUIRED'?"),
    ],
)
def test_a_wrong_option_of_a_receiver_is_a_fault(settings: Any, options: dict[str, Any], expected: str) -> None:
    settings.MEASE_ROUTES = {"chat": "djmease.senders.broadcast"}
    settings.MEASE_RECEIVERS = [{"RECEIVER": "djmease.receivers.publish", **options}]
    assert any(expected in fault and "MEASE_RECEIVERS[0]" in fault for fault in faults()), faults()


def test_a_decorators_unknown_option_is_a_fault_too() -> None:
    @djmease.receiver(jsn=True)
    def receive(message: Any) -> None: ...

    assert any("has no option 'jsn'" in fault and "Did you mean 'json'?" in fault for fault in faults())


def test_json_and_types_choose_what_a_receiver_hears() -> None:
    heard: list[tuple[str, Any]] = []

    @djmease.receiver
    def raw(message: Any) -> None:
        heard.append(("raw", message))

    @djmease.receiver(json=True)
    def parsed(message: Any) -> None:
        heard.append(("json", message))

    @djmease.receiver(type=["chat.*", "hello"])
    def typed(message: Any) -> None:
        heard.append(("typed", message))

    with connect() as page:
        for message in ("text", b'{"type": "hello"}', [1], {"type": 7}, {"type": "chat.say"}, {"type": "hello"}):
            page.send(message)
    assert [value for kind, value in heard if kind == "json"] == [
        [1],
        {"type": 7},
        {"type": "chat.say"},
        {"type": "hello"},
    ]
    assert [value for kind, value in heard if kind == "typed"] == [{"type": "chat.say"}, {"type": "hello"}]
    assert len([value for kind, value in heard if kind == "raw"]) == 6


def test_a_senders_own_options_come_from_settings_and_decorators(settings: Any) -> None:
    @djmease.sender(routing="a", greeting="Hello")
    def greet(message: Any, clients_list: Any, *, greeting: str, end: str = "!") -> None:
        clients_list.send(f"{greeting} {message}{end}")

    with connect() as page:
        djmease.publish("a", "world")
    assert page.received == ["Hello world!"]
