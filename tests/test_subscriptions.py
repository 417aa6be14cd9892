"""A channel for each group and user: heard for the first who needs it, no message missed, none heard for nobody."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.auth.models import User
from redis import Redis
from websockets.sync.client import connect

import djmease
from djmease import connections, messages
from djmease.embedded import EmbeddedValkey
from djmease.names import Names
from djmease.server import subscriptions
from tests.support import DEADLINE, LiveServer, eventually
from tests.test_groups import logged_in

StartServer = Callable[[], LiveServer]
Log = Callable[[], list[str]]


@pytest.fixture
def admin(redis: str) -> Redis:
    return Redis(connection_pool=connections.publisher_pool())


@pytest.fixture
def short_linger(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subscriptions.Subscriptions.__init__, "__kwdefaults__", {"linger": 0.05})


def channels_of(admin: Redis) -> set[str]:
    """Return the channels of groups and users that somebody hears, without this test's prefix."""
    before = len(connections.names().group_prefix) - len("group:")
    found = [
        *admin.pubsub_channels(f"{connections.names().group_prefix}*"),
        *admin.pubsub_channels(f"{connections.names().user_prefix}*"),
    ]
    return {channel.decode()[before:] for channel in found}


def join_by_message() -> None:
    @djmease.receiver(type="join")
    def join(client: Any, message: Any) -> None:
        for group in message["groups"]:
            client.join(group)
        client.send("joined")

    @djmease.receiver(type="leave")
    def leave(client: Any, message: Any) -> None:
        for group in message["groups"]:
            client.leave(group)
        client.send("left")

    djmease.sender(routing="news")(show)


def show(message: Any, clients_list: Any) -> None:
    clients_list.send(message)


def tell(page: Any, verb: str, *groups: str) -> None:
    page.send(messages.to_json({"type": verb, "groups": groups}))
    assert page.recv(DEADLINE) in ("joined", "left")


def test_a_group_is_heard_from_its_first_member_to_a_while_after_its_last(
    start_server: StartServer, admin: Redis, short_linger: None
) -> None:
    join_by_message()
    server = start_server()
    one, two = server.connect(), server.connect()
    assert channels_of(admin) == set()
    tell(one, "join", "a", "b")
    tell(two, "join", "a")
    assert channels_of(admin) == {"group:a", "group:b"}
    tell(one, "leave", "a", "b")
    eventually(lambda: channels_of(admin) == {"group:a"})
    two.close()
    eventually(lambda: channels_of(admin) == set())
    held = server.server._subscriptions
    assert (held._held, held._idle, held._confirmed, held._pending) == ({}, {}, set(), {})


def test_a_group_that_is_left_for_a_moment_is_heard_all_the_time(start_server: StartServer, admin: Redis) -> None:
    join_by_message()
    page = start_server().connect()
    tell(page, "join", "a")
    tell(page, "leave", "a")
    assert channels_of(admin) == {"group:a"}
    tell(page, "join", "a")
    djmease.publish("news", "x", group="a")
    assert page.recv(DEADLINE) == "x"


def test_what_is_published_after_a_join_in_a_thread_is_received(start_server: StartServer) -> None:
    published: list[str] = []

    @djmease.receiver
    def join(client: Any, message: Any) -> None:
        client.join(message)
        published.append(djmease.publish("news", f"to {message}", group=message))

    djmease.sender(routing="news")(show)
    server = start_server()
    pages = [server.connect() for _ in range(5)]
    for number in range(40):
        for index, page in enumerate(pages):
            page.send(f"room.{index}.{number}")
    for index, page in enumerate(pages):
        assert [page.recv(DEADLINE) for _ in range(40)] == [f"to room.{index}.{number}" for number in range(40)]
    assert len(set(published)) == 200


def test_what_is_published_after_ajoin_is_received(start_server: StartServer) -> None:
    @djmease.receiver
    async def join(client: Any, message: Any) -> None:
        await client.ajoin(message)
        await djmease.apublish("news", f"to {message}", group=message)

    djmease.sender(routing="news")(show)
    page = start_server().connect()
    for number in range(100):
        page.send(f"room.{number}")
    assert [page.recv(DEADLINE) for _ in range(100)] == [f"to room.{number}" for number in range(100)]


def test_an_opener_may_join_and_publish_at_once(start_server: StartServer) -> None:
    @djmease.opener
    def enter(client: Any) -> None:
        client.join("lobby")

    @djmease.sender(routing="news")
    def show_group(message: Any, clients_list: Any) -> None:
        clients_list.send(message)

    page = start_server().connect()
    djmease.publish("news", "x", group="lobby")
    assert page.recv(DEADLINE) == "x"


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_a_group_is_heard_from_the_join_on_while_the_opener_goes_on(start_server: StartServer, kind: str) -> None:
    joined, go_on = threading.Event(), threading.Event()

    def enter(client: Any) -> None:
        client.join("lobby")
        joined.set()
        assert go_on.wait(DEADLINE)
        client.send("entered")

    async def enter_async(client: Any) -> None:
        await client.ajoin("lobby")
        joined.set()
        assert await asyncio.to_thread(go_on.wait, DEADLINE)
        client.send("entered")

    djmease.opener(enter if kind == "def" else enter_async)
    djmease.sender(routing="news")(show)
    with connect(start_server().url) as page:
        assert joined.wait(DEADLINE)
        djmease.publish("news", "while it enters", group="lobby")
        assert page.recv(DEADLINE) == "while it enters"
        go_on.set()
        assert page.recv(DEADLINE) == "entered"


def test_a_message_for_several_groups_comes_once_to_who_is_in_more_than_one(start_server: StartServer) -> None:
    join_by_message()
    page = start_server().connect()
    tell(page, "join", "a", "b", "c")
    for number in range(50):
        djmease.publish("news", f"{number}", group=["a", "b", "c", "d", "a"])
    djmease.publish("news", "end", group="a")
    assert [page.recv(DEADLINE) for _ in range(51)] == [*map(str, range(50)), "end"]


def test_a_message_for_very_many_groups_goes_by_the_channel_of_all(start_server: StartServer) -> None:
    join_by_message()
    page = start_server().connect()
    tell(page, "join", "g.7")
    djmease.publish("news", "x", group=[f"g.{number}" for number in range(150)])
    djmease.publish("news", "y", group="g.7")
    assert [page.recv(DEADLINE) for _ in range(2)] == ["x", "y"]


def test_no_group_is_nobody(start_server: StartServer) -> None:
    join_by_message()
    page = start_server().connect()
    tell(page, "join", "a")
    assert djmease.publish("news", "x", group=[])
    djmease.publish("news", "end", group="a")
    assert page.recv(DEADLINE) == "end"


def test_a_process_without_a_member_receives_nothing(start_server: StartServer, admin: Redis) -> None:
    join_by_message()
    with_member, without = start_server(), start_server()
    page, other = with_member.connect(), without.connect()
    tell(page, "join", "a")
    for number in range(20):
        djmease.publish("news", str(number), group="a")
    assert [page.recv(DEADLINE) for _ in range(20)] == [str(number) for number in range(20)]
    djmease.publish("news", "to all")
    assert other.recv(DEADLINE) == "to all"
    assert without.server._dispatch.published_count == 1
    assert with_member.server._dispatch.published_count == 21


@pytest.mark.django_db(transaction=True)
def test_a_user_is_heard_before_the_page_knows_that_it_is_connected(
    start_server: StartServer, settings: Any, admin: Redis, short_linger: None
) -> None:
    djmease.sender(routing="news")(show)
    server = start_server()
    for number in range(20):
        user = User.objects.create_user(f"user {number}")
        # Not through ``server.connect``, which waits until the client is counted.
        page = server.connect(additional_headers=logged_in(user, settings))
        djmease.publish("news", "x", user=user)
        assert page.recv(DEADLINE) == "x"
        assert f"user:{user.pk}" in channels_of(admin)
        page.close()
    eventually(lambda: channels_of(admin) == set())


@pytest.mark.django_db(transaction=True)
def test_a_message_for_users_and_groups_reaches_who_is_both(start_server: StartServer, settings: Any) -> None:
    join_by_message()
    ada, bob = User.objects.create_user("ada"), User.objects.create_user("bob")
    server = start_server()
    pages = {
        name: server.connect(additional_headers=logged_in(user, settings))
        for name, user in (("ada", ada), ("bob", bob))
    }
    tell(pages["ada"], "join", "a")
    tell(pages["bob"], "join", "a")
    djmease.publish("news", "both", group="a", user=ada)
    djmease.publish("news", "one", group=["a", "x"], user=[ada, bob])
    assert [pages["ada"].recv(DEADLINE) for _ in range(2)] == ["both", "one"]
    assert pages["bob"].recv(DEADLINE) == "one"


def test_plain_text_on_a_groups_channel_is_refused_and_said(
    start_server: StartServer, admin: Redis, log_of: Log
) -> None:
    join_by_message()
    page = start_server().connect()
    tell(page, "join", "a")
    admin.publish(connections.names().group_channel("a"), "plain")
    djmease.publish("news", "x", group="a")
    assert page.recv(DEADLINE) == "x"
    assert any("envelopes only" in line for line in log_of())


def test_memberships_and_subscriptions_agree_after_everything(
    start_server: StartServer, own_valkey: EmbeddedValkey, settings: Any, short_linger: None
) -> None:
    """Members come and go in two servers, during traffic, and Redis is killed and comes back in between."""
    join_by_message()
    servers = [start_server(), start_server()]
    pages = [server.connect() for server in servers for _ in range(6)]
    chance = random.Random(11)
    stop = threading.Event()

    def publish() -> None:
        while not stop.is_set():
            djmease.publish("news", "noise", group=f"g.{random.randrange(10)}", fail_silently=True)

    noise = threading.Thread(target=publish)
    noise.start()

    def come_and_go(rounds: int) -> None:
        for _ in range(rounds):
            page = chance.choice(pages)
            page.send(
                messages.to_json({"type": chance.choice(["join", "leave"]), "groups": [f"g.{chance.randrange(10)}"]})
            )

    try:
        come_and_go(150)
        os.kill(own_valkey._pid(), signal.SIGKILL)
        come_and_go(100)
        own_valkey.ensure_running()
        come_and_go(150)
    finally:
        stop.set()
        noise.join()
    for page in pages:
        page.send(messages.to_json({"type": "join", "groups": ["end"]}))
    admin = Redis(connection_pool=connections.publisher_pool())
    for server in servers:
        eventually(lambda server=server: server.call(lambda: len(server.server.clients.in_groups(["end"]))) == 6)
        eventually(lambda server=server: server.server._listener.is_hearing)

    def wanted() -> dict[str, int]:
        groups: dict[str, int] = {}
        for server in servers:
            for group in server.server.clients._groups:
                groups[f"group:{group}"] = groups.get(f"group:{group}", 0) + 1
        return groups

    def heard() -> dict[str, int]:
        prefix = connections.names().group_prefix[: -len("group:")]
        names = [prefix + name for name in channels_of(admin)]
        return {name.decode()[len(prefix) :]: count for name, count in admin.pubsub_numsub(*names)} if names else {}

    eventually(lambda: heard() == wanted(), "that Redis and the servers agree")
    djmease.publish("news", "the end", group="end")
    for page in pages:
        while page.recv(DEADLINE) != "the end":
            pass


def test_a_join_while_redis_is_away_holds_when_it_is_back(
    start_server: StartServer, own_valkey: EmbeddedValkey
) -> None:
    join_by_message()
    server = start_server()
    page = server.connect()
    os.kill(own_valkey._pid(), signal.SIGKILL)
    eventually(lambda: not server.server._listener.is_hearing)
    began = time.monotonic()
    tell(page, "join", "a")
    assert time.monotonic() - began < subscriptions.WAIT_TIMEOUT, "nobody waits for a Redis that is away"
    own_valkey.ensure_running()
    eventually(lambda: server.server._listener.is_hearing)
    djmease.publish("news", "x", group="a")
    assert page.recv(DEADLINE) == "x"


def test_a_join_waits_no_longer_than_its_time_for_a_redis_that_hangs(
    start_server: StartServer, own_valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch, log_of: Log
) -> None:
    monkeypatch.setattr(subscriptions, "WAIT_TIMEOUT", 0.2)
    join_by_message()
    page = start_server().connect()
    os.kill(own_valkey._pid(), signal.SIGSTOP)
    try:
        tell(page, "join", "a")
        eventually(lambda: any("has not confirmed" in line for line in log_of()))
    finally:
        os.kill(own_valkey._pid(), signal.SIGCONT)


def test_a_client_that_has_gone_holds_nothing(start_server: StartServer, admin: Redis, short_linger: None) -> None:
    kept: list[Any] = []

    @djmease.opener
    def keep(client: Any) -> None:
        kept.append(client)
        client.join("a")

    server = start_server()
    server.connect().close()
    eventually(lambda: not kept[0].is_present)
    kept[0].join("b")
    kept[0].leave("a")
    eventually(lambda: channels_of(admin) == set())
    assert server.server.clients._groups == {}
    assert server.server._subscriptions._held == {}


def test_a_channel_that_is_released_and_held_again_is_not_taken_for_confirmed_too_early() -> None:
    async def run() -> None:
        held = subscriptions.Subscriptions(asyncio.get_running_loop(), names=Names("p"), linger=0.0)
        assert held.channels() == []
        held.connected()
        held.hold("a")
        assert (await held.changes()).subscribe == ["a"]
        held.release("a")
        assert held._take().unsubscribe == [], "what is not confirmed yet is not unsubscribed"
        held.confirmed("a")
        assert held._take().unsubscribe == ["a"]
        held.hold("a")
        assert (await held.changes()).subscribe == ["a"]
        assert "a" not in held._confirmed
        held.confirmed("a")
        assert "a" in held._confirmed

    asyncio.run(run())
