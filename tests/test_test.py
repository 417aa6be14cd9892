"""djmease.test: what users test their callbacks with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.auth.models import AnonymousUser, User
from django.core.exceptions import ImproperlyConfigured
from django.db import transaction

import djmease
from djmease.server.protocol import CLOSE, TEXT
from djmease.test import captured_messages, connect
from tests.support import LiveServer, eventually
from tests.test_hostile import RawClient


def register_chat() -> None:
    @djmease.receiver(type="chat.say")
    def say(client: Any, message: Any) -> None:
        djmease.publish("chat.message", {"type": "chat.message", "text": message["text"]}, group="room.1")

    @djmease.sender(routing="chat.message")
    async def show(message: Any, clients_list: Any) -> None:
        for client in clients_list:
            await client.write_message(message)


def test_captured_messages_are_message_objects_and_nothing_is_sent() -> None:
    register_chat()
    with captured_messages() as captured:
        message_id = djmease.publish("chat.message", {"text": "hi", "n": (1, 2)}, group="a", user=7)
    (message,) = captured
    assert isinstance(message, djmease.Message)
    assert (message.routing, message.body, message.id) == ("chat.message", {"text": "hi", "n": [1, 2]}, message_id)
    assert (message.groups, message.users) == (("a",), ("7",))


@pytest.mark.django_db
def test_captured_messages_have_what_waits_for_a_commit_that_never_comes() -> None:
    register_chat()
    with captured_messages() as captured, transaction.atomic():
        djmease.publish("chat.message", "hi")
    assert [message.body for message in captured] == ["hi"]


def test_a_whole_chat_is_tested_in_one_function() -> None:
    register_chat()
    with connect(groups=["room.1"]) as ada, connect(groups=["room.1"]) as grace, connect() as stranger:
        ada.send({"type": "chat.say", "text": "hi"})
        assert ada.received == grace.received == [{"type": "chat.message", "text": "hi"}]
        assert stranger.received == []
        djmease.publish("chat.message", "to all")
        assert stranger.received == ["to all"]


def test_openers_and_closers_run_and_a_page_that_left_hears_nothing() -> None:
    seen: list[Any] = []

    @djmease.opener
    def on_open(client: Any, clients_list: Any) -> None:
        seen.append(("open", len(clients_list)))
        client.join("room.1")
        client.storage["n"] = 1

    @djmease.closer
    def on_close(client: Any, clients_list: Any) -> None:
        seen.append(("close", len(clients_list), client.storage))

    register_chat()
    with connect() as page:
        page.send({"type": "chat.say", "text": "one"})
    page.close()
    assert seen == [("open", 0), ("close", 0, {"n": 1})]
    assert [message["text"] for message in page.received] == ["one"]


def test_an_opener_that_joins_is_told_what_is_published_to_that_group_meanwhile() -> None:
    @djmease.opener
    def enter(client: Any) -> None:
        client.join("lobby")
        djmease.publish("news", "for the lobby", group="lobby")
        djmease.publish("news", "for all")

    @djmease.sender(routing="news")
    def show(clients_list: Any, message: Any) -> None:
        clients_list.send(message)

    with connect() as first, connect():
        pass
    assert first.received == ["for the lobby", "for the lobby", "for all"]


def test_a_callback_that_raises_fails_the_test() -> None:
    @djmease.receiver
    def fail() -> None:
        raise ZeroDivisionError

    with connect() as page, pytest.raises(ZeroDivisionError):
        page.send("x")


def test_a_page_has_a_path_with_arguments_and_can_be_closed_by_a_callback() -> None:
    @djmease.receiver
    def look(client: Any, message: Any) -> None:
        client.send(client.request.path + client.get_query_argument("room") + client.get_query_argument("x", "none"))
        client.send(b"\x00")
        client.close(4000, "enough")
        client.send("too late")

    with connect(path="/ws/?room=a") as page:
        page.send(b"go")
        with pytest.raises(LookupError, match="'y'"):
            page.client.get_query_argument("y")
    assert page.received == ["/ws/anone", b"\x00"]
    assert page.close_code == 4000


@pytest.mark.parametrize("where", ["opener", "another opener", "receiver", "another receiver", "closer", None])
def test_a_client_that_a_callback_closes_is_heard_and_counted_as_long_as_by_the_server(
    start_server: Callable[[], LiveServer], where: str | None
) -> None:
    ran: list[Any] = []

    def run(name: str, client: Any, clients_list: Any) -> None:
        ran.append((name, len(clients_list), sorted(client.groups)))
        if name == where:
            client.close(4000, "enough")
            client.join("late")
            client.send("in vain")
            ran.append("goes on")

    for declare, name in [(djmease.opener, "opener"), (djmease.receiver, "receiver"), (djmease.closer, "closer")]:
        for each in (name, f"another {name}"):
            declare(lambda client, clients_list, *, each=each: run(each, client, clients_list))

    with RawClient(start_server()).shake_hands() as raw:
        if where not in ("opener", "another opener"):
            raw.send(TEXT, b"first")
            eventually(lambda: "another receiver" in [said[0] for said in ran])
        if where not in ("closer", None):
            assert raw.frame() == (CLOSE, (4000).to_bytes(2) + b"enough")
            raw.send(TEXT, b"after")
        raw.send(CLOSE, (1000).to_bytes(2))
        assert [opcode for opcode, _ in raw.frames() if opcode != CLOSE] == []
    eventually(lambda: "another closer" in [said[0] for said in ran])
    by_server, ran[:] = ran[:], []

    with connect() as page:
        page.send("first")
        if where not in ("closer", None):
            page.send("after")
            assert (page.close_code, page.received) == (4000, [])
            assert ran[-1][0] == "another closer"
    page.send("after")
    page.close()
    assert (ran, page.received) == (by_server, [])


def test_a_receiver_with_a_rule_refuses_and_answers_as_the_server_does() -> None:
    @djmease.receiver(login_required=True)
    def secret(client: Any) -> None:
        client.send("secret")

    with connect() as anybody, connect(user=User(pk=1, username="ada")) as ada:
        assert isinstance(anybody.client.user, AnonymousUser)
        anybody.send({"type": "x"})
        anybody.send("plain")
        ada.send("plain")
    assert anybody.received == [{"type": "mease.refused", "reason": "login_required", "refused": "x"}]
    assert ada.received == ["secret"]


def test_a_message_for_a_user_reaches_just_that_users_pages_and_lists_can_be_narrowed() -> None:
    @djmease.sender(routing="news")
    def show(clients_list: Any, message: Any) -> None:
        clients_list.send(message)
        clients_list.group("vip").send("vip")
        clients_list.user(2)[:1].send("second")

    with connect(user=User(pk=1)) as one, connect(user=User(pk=2), groups=["vip"]) as two, connect():
        djmease.publish("news", "x", user=[User(pk=2), 3])
    assert one.received == []
    assert two.received == ["x", "vip", "second"]


def test_faults_of_the_settings_are_shown(settings: Any) -> None:
    settings.MEASE_RECEIVERS = ["nowhere.to.be.found"]
    with pytest.raises(ImproperlyConfigured, match="nowhere"), connect():
        pass


def test_clients_of_the_test_kit_satisfy_the_protocols() -> None:
    with connect() as page:
        assert isinstance(page.client, djmease.Client)
