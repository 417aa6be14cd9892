"""Who is in a group: the truth from any process, told to the pages once and in order, whatever dies in between."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.checks import run_checks
from django.core.exceptions import PermissionDenied, SynchronousOnlyOperation
from redis import Redis
from redis.exceptions import RedisError
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection
from websockets.sync.client import connect as ws_connect

import djmease
from djmease import connections, loader, messages, roll
from djmease.embedded import EmbeddedValkey
from djmease.identities import NOBODY, nobody
from djmease.server import presence
from djmease.test import connect, live_server
from tests.support import DEADLINE, LiveServer, Process, Project, eventually
from tests.test_groups import logged_in

StartServer = Callable[[], LiveServer]
Log = Callable[[], list[str]]

GROUP = "board.7"
LIMIT = 10.0
"""Seconds within which presence is right after a process was killed."""


@pytest.fixture(autouse=True)
def boards(settings: Any) -> None:
    settings.MEASE_PRESENCE = ["board.*"]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers that take others for dead after half a second."""
    be_quick(monkeypatch, dead_after=0.5)


def be_quick(monkeypatch: pytest.MonkeyPatch, *, dead_after: float) -> None:
    times = {"interval": 0.1, "dead_after": dead_after}
    monkeypatch.setattr(presence.Presence.__init__, "__kwdefaults__", times)


@pytest.fixture
def admin(redis: str) -> Redis:
    return Redis(connection_pool=connections.publisher_pool())


def by_message() -> None:
    @djmease.receiver(type="join")
    def join(client: Any, message: Any) -> None:
        client.presence = message.get("info", {})
        client.join(message["group"])
        client.send({"type": "joined", "id": client.id})

    @djmease.receiver(type="leave")
    def leave(client: Any, message: Any) -> None:
        client.leave(message["group"])


class Page:
    """A connection that tells what it has heard of others apart from what it is answered."""

    def __init__(self, server: LiveServer | ClientConnection, path: str = "", **options: Any) -> None:
        # Without a bound, as a browser: else what is not read keeps the library from closing.
        options["max_queue"] = None
        self.connection = server.connect(path, **options) if isinstance(server, LiveServer) else server
        self.id = ""
        self._kept: deque[Any] = deque()

    def join(self, group: str = GROUP, **more: Any) -> str:
        """Join, and return the id of the client."""
        self.connection.send(messages.to_json({"type": "join", "group": group, **more}))
        while (heard := self._next())["type"] != "joined":
            self._kept.append(heard)
        self.id = heard["id"]
        return self.id

    def leave(self, group: str = GROUP) -> None:
        self.connection.send(messages.to_json({"type": "leave", "group": group}))

    def told(self) -> Any:
        """Return what the page hears next of who comes and goes."""
        heard = self._kept.popleft() if self._kept else self._next()
        assert heard["type"] == "mease.presence"
        return heard

    def hear(self) -> tuple[str, str]:
        """Return the event, and the name or key of the person, that the page hears next."""
        heard = self.told()
        return heard["event"], heard["info"].get("name") or heard["user"] or heard["key"]

    def close(self) -> None:
        self.connection.close()

    def _next(self) -> Any:
        return json.loads(self.connection.recv(DEADLINE))


def names(group: str = GROUP) -> list[str]:
    return [person.user or person.key for person in djmease.presence(group)]


def page_of(server: LiveServer, settings: Any, name: str) -> Page:
    user, _ = User.objects.get_or_create(username=name)
    return Page(server, additional_headers=logged_in(user, settings))


@pytest.mark.django_db(transaction=True)
def test_a_user_with_tabs_in_two_servers_is_one_person(start_server: StartServer, settings: Any) -> None:
    by_message()
    one, two = start_server(), start_server()
    began = time.time()
    watcher = page_of(one, settings, "watcher")
    watcher.join()
    assert watcher.hear() == ("join", "watcher"), "who has joined hears of it too"
    tabs = [page_of(server, settings, "ada") for server in (one, one, two)]
    tabs[0].join(info={"colour": "red"})
    assert watcher.hear() == ("join", "ada")
    tabs[1].join(info={"colour": "blue"})
    tabs[2].join()
    eventually(lambda: [person.connections for person in djmease.presence(GROUP)] == [1, 3])
    ada = djmease.presence(GROUP)[1]
    key = str(User.objects.get(username="ada").pk)
    assert (ada.user, ada.key, ada.user_key, ada.info) == ("ada", key, key, {"colour": "red"})
    assert {client.person_key for client in two.server.clients.snapshot()} == {key}
    assert began - 1 < ada.since < time.time()
    assert djmease.presence_count(GROUP) == 2
    tabs[0].close()
    tabs[1].leave()
    eventually(lambda: [person.connections for person in djmease.presence(GROUP)] == [1, 1])
    tabs[2].close()
    assert watcher.hear() == ("leave", "ada")
    assert names() == ["watcher"]


def test_what_pages_hear(start_server: StartServer) -> None:
    by_message()
    server = start_server()
    page, other = Page(server), Page(server)
    page.join()
    assert page.hear() == ("join", page.id)
    other.join(info={"called": "Zoë", "at": [1, {"x": None}]})
    came = page.told()
    assert abs(came.pop("since") - time.time()) < 5
    about = {"user": None, "key": other.id, "info": {"called": "Zoë", "at": [1, {"x": None}]}}
    assert came == {"type": "mease.presence", "group": GROUP, "event": "join", **about}
    other.close()
    left = page.told()
    assert abs(left.pop("since") - time.time()) < 5
    assert left == {"type": "mease.presence", "group": GROUP, "event": "leave", **about}


def test_strangers_are_a_person_each(start_server: StartServer) -> None:
    by_message()
    server = start_server()
    ids: list[str] = []
    for _ in range(3):
        ids.append(Page(server).join())
        eventually(lambda: djmease.presence_count(GROUP) == len(ids))
    persons = djmease.presence(GROUP)
    assert [person.key for person in persons] == ids, "in the order in which they came"
    assert [client.person_key for client in server.server.clients.snapshot()] == ids
    assert {(person.user, person.user_key, person.connections) for person in persons} == {(None, None, 1)}


def test_an_opener_says_what_is_told_and_who_is_turned_away_was_never_there(start_server: StartServer) -> None:
    @djmease.opener
    async def enter(client: Any) -> None:
        await client.ajoin(GROUP)
        client.presence = {"name": client.get_query_argument("name")}
        if client.presence["name"] == "mallory":
            raise PermissionDenied("no")

    server = start_server()
    page = Page(server, "?name=ada")
    with ws_connect(f"{server.url}?name=mallory") as turned_away, pytest.raises(ConnectionClosed):
        turned_away.recv(DEADLINE)
    Page(server, "?name=bob")
    assert [page.hear(), page.hear()] == [("join", "ada"), ("join", "bob")]


@pytest.mark.django_db(transaction=True)
def test_a_user_whose_name_takes_a_query_is_told_as_any_other(start_server: StartServer, settings: Any) -> None:
    by_message()
    User.objects.create_user("ada")
    settings.MEASE_AUTHENTICATORS = [f"{__name__}.deferred"]
    page = Page(start_server())
    page.join()
    assert page.hear() == ("join", "ada")
    page.close()
    eventually(lambda: djmease.presence_count(GROUP) == 0)


def deferred(request: Any) -> User:
    return User.objects.only("pk").get(username="ada")


@pytest.mark.django_db(transaction=True)
def test_who_is_somebody_else_by_now_is_counted_as_that(start_server: StartServer, settings: Any) -> None:
    by_message()
    server = start_server()
    watcher, page = Page(server), page_of(server, settings, "ada")
    watcher.join()
    page.join()
    assert [watcher.hear(), watcher.hear()] == [("join", watcher.id), ("join", "ada")]
    (client,) = [client for client in server.server.clients.snapshot() if client.user_key is not None]
    server.call(lambda: server.server.clients.reidentify(client, nobody()))
    assert sorted([watcher.hear(), watcher.hear()]) == [("join", client.id), ("leave", "ada")]
    page.close()
    assert watcher.hear() == ("leave", client.id)
    assert names() == [watcher.id]


@pytest.mark.django_db(transaction=True)
def test_a_user_that_is_deleted_in_a_callback_leaves_nobody_behind(start_server: StartServer, settings: Any) -> None:
    by_message()

    @djmease.receiver(type="delete")
    def delete(client: Any) -> None:
        client.user.delete()

    server = start_server()
    page = page_of(server, settings, "ada")
    page.join()
    eventually(lambda: names() == ["ada"])
    page.connection.send('{"type": "delete"}')
    eventually(lambda: not User.objects.exists())
    page.close()
    eventually(lambda: not djmease.presence(GROUP))
    eventually(lambda: not server.server._presence._here)
    eventually(lambda: not server.server.clients._users)


def test_joins_and_leaves_come_once_and_in_their_order_to_every_server(start_server: StartServer) -> None:
    by_message()
    servers = [start_server(), start_server()]
    watchers = [Page(server) for server in servers]
    for watcher in watchers:
        watcher.join()
    eventually(lambda: djmease.presence_count(GROUP) == 2)
    pages = [Page(server) for server in servers for _ in range(4)]
    ids = {page.join("elsewhere"): page for page in pages}
    chance = random.Random(3)
    inside: set[str] = set()

    def is_told() -> bool:
        return set(names()) - {watcher.id for watcher in watchers} == inside

    for step in range(200):
        client_id = chance.choice(list(ids))
        if client_id in inside:
            ids[client_id].leave()
        else:
            ids[client_id].connection.send(messages.to_json({"type": "join", "group": GROUP}))
        inside ^= {client_id}
        if chance.random() < 0.7:
            ids[client_id].join("elsewhere")  # What it has sent before has been done.
        if step % 10 == 9:
            eventually(is_told)  # On a slow machine who comes and goes at once is no news.
    for page in pages:
        page.join("elsewhere")
    eventually(is_told)
    last = Page(servers[0])
    last.join()
    histories = []
    for watcher in watchers:
        history = [watcher.hear()]
        while history[-1] != ("join", last.id):
            history.append(watcher.hear())
        histories.append([each for each in history if each[1] in ids])
    assert histories[0] == histories[1], "all hear the same in the same order"
    assert len(histories[0]) > 20
    for client_id in ids:
        events = [event for event, key in histories[0] if key == client_id]
        assert events == ["join", "leave"] * (len(events) // 2) + ["join"] * (client_id in inside)


def runs_of(server: LiveServer, beats: bool = False) -> list[tuple[roll.Script, tuple[Any, ...]]]:
    """Return the list of the scripts that a server runs from now on, without its beats or with them."""
    attending = server.server._presence
    ran: list[tuple[roll.Script, tuple[Any, ...]]] = []
    run = attending._run

    async def note(script: roll.Script, *arguments: Any) -> Any:
        if beats or script is not roll.BEAT:
            ran.append((script, arguments))
        return await run(script, *arguments)

    attending._run = note
    return ran


def test_a_group_without_presence_tells_redis_nothing(start_server: StartServer, admin: Redis, settings: Any) -> None:
    by_message()
    server = start_server()
    page = Page(server)
    page.join()
    page.hear()
    ran = runs_of(server)
    page.join("room.7")
    page.leave("room.7")
    page.join("board.8")
    eventually(lambda: djmease.presence_count("board.8") == 1)
    assert [arguments[1] for _, arguments in ran] == ["board.8"]
    assert not [key for key in admin.keys(f"{settings.MEASE_KEY_PREFIX}.presence.*") if b"room" in key]


def test_a_site_without_presence_has_no_connection_for_it(start_server: StartServer, settings: Any) -> None:
    settings.MEASE_PRESENCE = []
    assert start_server().server._presence is None
    assert not loader.load().registry.senders_for("mease.presence")


class Member:
    """As much of a client as is counted."""

    identity = NOBODY
    heard_as = None
    presence_json = "{}"

    def __init__(self, number: int) -> None:
        self.id = f"{number:016}"


def test_many_are_told_in_few_commands_and_read_in_one(start_server: StartServer, admin: Redis) -> None:
    by_message()
    server = start_server()
    ran = runs_of(server)
    server.call(lambda: [server.server._presence.joined(Member(number), GROUP) for number in range(1000)])
    eventually(lambda: djmease.presence_count(GROUP) == 1000)
    assert len([script for script, _ in ran if script is roll.TELL]) == 1000 // presence.MAX_BATCH

    def calls(command: str) -> int:
        counted = admin.info("commandstats").get(f"cmdstat_{command}")
        return counted["calls"] if counted else 0

    before = calls("hvals")
    assert len(djmease.presence(GROUP)) == 1000
    assert calls("hvals") == before + 1


def test_a_stopped_server_leaves_nothing_behind(start_server: StartServer, admin: Redis, settings: Any) -> None:
    by_message()
    staying, leaving = start_server(), start_server()
    page = Page(staying)
    page.join()
    page.hear()
    gone = [Page(leaving).join() for _ in range(3)]
    assert sorted(page.hear() for _ in gone) == sorted(("join", each) for each in gone)
    leaving.stop()
    assert sorted(page.hear() for _ in gone) == sorted(("leave", each) for each in gone)
    staying.stop()
    prefix = f"{settings.MEASE_KEY_PREFIX}.presence."
    assert [key.decode().removeprefix(prefix) for key in admin.keys(f"{prefix}*")] == ["epoch"]


# What dies


SITE = f"""
import djmease

@djmease.opener
def enter(client):
    client.presence = {{"name": client.get_query_argument("name")}}
    client.join({GROUP!r})
"""


@pytest.fixture
def other_process(project: Project, redis: str, settings: Any) -> Process:
    """A server in a process of its own, on the Redis and prefix of this test."""
    project.settings(
        f"MEASE_REDIS_URL = {settings.MEASE_REDIS_URL!r}\nMEASE_KEY_PREFIX = {settings.MEASE_KEY_PREFIX!r}\n"
        "MEASE_PRESENCE = ['board.*']"
    )
    project.registry(SITE)
    return project.start("run_websocket_server", "--noreload")


@pytest.fixture
def members_in() -> Iterator[Callable[[Process, int], list[str]]]:
    """Connects so many clients to a server of another process, and returns their names."""
    with ExitStack() as connections:

        def members_in(process: Process, count: int) -> list[str]:
            url = f"ws://127.0.0.1:{process.port()}/"
            for number in range(count):
                connections.enter_context(ws_connect(f"{url}?name={number}", max_queue=None))
            return [str(number) for number in range(count)]

        yield members_in


def infos() -> list[str]:
    return sorted(str(person.info.get("name")) for person in djmease.presence(GROUP) if person.info)


def test_after_a_kill_the_leaves_are_published_once_and_in_time(
    start_server: StartServer, other_process: Process, members_in: Any
) -> None:
    by_message()
    survivors = [start_server(), start_server()]
    watchers = [Page(server) for server in survivors]
    for watcher in watchers:
        watcher.join()
    theirs = members_in(other_process, 20)
    eventually(lambda: infos() == sorted(theirs))
    os.kill(other_process.pid, signal.SIGKILL)
    killed = time.monotonic()
    for server in survivors:
        eventually(lambda server=server: server.server._presence._link.is_connected)
    redis = Redis(connection_pool=connections.publisher_pool())
    persons = f"{connections.presence_prefix()}persons.{GROUP}"
    # Not by ``presence``, which would look for the dead itself.
    eventually(lambda: redis.hlen(persons) == 2)
    assert time.monotonic() - killed < LIMIT
    last = Page(survivors[0])
    last.join()
    for watcher in watchers:
        heard = [watcher.hear()]
        while heard[-1] != ("join", last.id):
            heard.append(watcher.hear())
        assert sorted(name for event, name in heard if event == "leave") == sorted(theirs)


def test_who_asks_when_nobody_lives_is_told_the_truth(other_process: Process, members_in: Any) -> None:
    theirs = members_in(other_process, 5)
    eventually(lambda: infos() == theirs)
    os.kill(other_process.pid, signal.SIGKILL)
    killed = time.monotonic()
    eventually(lambda: not djmease.presence_count(GROUP))
    assert time.monotonic() - killed < LIMIT
    assert djmease.presence(GROUP) == []


def test_a_server_that_stood_still_is_there_again(
    start_server: StartServer, other_process: Process, members_in: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    be_quick(monkeypatch, dead_after=3 * presence.BEAT_INTERVAL / 2)
    by_message()
    watcher = Page(start_server())
    watcher.join()
    theirs = members_in(other_process, 3)
    heard = {watcher.hear() for _ in range(4)}
    assert heard == {("join", watcher.id), *(("join", name) for name in theirs)}
    os.kill(other_process.pid, signal.SIGSTOP)
    try:
        assert {watcher.hear() for _ in theirs} == {("leave", name) for name in theirs}
        assert infos() == []
    finally:
        os.kill(other_process.pid, signal.SIGCONT)
    assert {watcher.hear() for _ in theirs} == {("join", name) for name in theirs}
    assert infos() == theirs


def test_a_server_that_stands_still_while_it_is_reaped_in_parts_is_there_again(
    start_server: StartServer, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roll, "REAPED_AT_ONCE", 1)
    by_message()
    server, other = start_server(), start_server()
    page = Page(server)
    for number in range(20):
        page.join(f"board.{number}")
    eventually(lambda: all(djmease.presence_count(f"board.{number}") for number in range(20)))
    stop = threading.Event()
    server.loop.call_soon_threadsafe(stop.wait, DEADLINE)
    watching = other.server._presence
    try:
        eventually(lambda: not any(djmease.presence_count(f"board.{number}") for number in range(20)))
    finally:
        stop.set()
    eventually(lambda: all(djmease.presence_count(f"board.{number}") == 1 for number in range(20)))
    assert watching.trouble is None


def test_who_reaps_for_long_goes_on_living(
    start_server: StartServer, admin: Redis, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roll, "REAPED_AT_ONCE", 1)
    prefixes = (connections.presence_prefix(), connections.group_prefix(), roll.new_seed())
    admin.eval(roll.BEAT.text, 0, *prefixes, "gone", 7)
    for number in range(1_000):
        changes = [(f"board.{number}", f"c{person}", 1, "1.000", '"x",\nnull,\n{}', 1) for person in range(10)]
        admin.eval(roll.TELL.text, 0, *prefixes, "gone", *itertools.chain(*changes))
    server = start_server()
    noted = runs_of(server, beats=True)
    eventually(lambda: is_over(noted), "the last of those that are gone")
    ran = [script for script, _ in noted]
    between = ran[ran.index(roll.REAP) : len(ran) - ran[::-1].index(roll.REAP)]
    assert between.count(roll.REAP) > 500 and roll.BEAT in between
    assert not any(djmease.presence_count(f"board.{number}") for number in range(1_000))


def is_over(ran: list[tuple[roll.Script, tuple[Any, ...]]]) -> bool:
    """Tell whether something was reaped, and nothing is any more."""
    scripts = [script for script, _ in ran]
    return roll.REAP in scripts and scripts[-3:] == 3 * [roll.BEAT]


def test_who_comes_while_redis_is_away_is_announced_to_who_is_on_the_same_server(
    start_server: StartServer, own_valkey: EmbeddedValkey, quick: None
) -> None:
    by_message()
    server = start_server()
    page, late = Page(server), Page(server)
    page.join()
    assert page.hear() == ("join", page.id)
    os.kill(own_valkey._pid(), signal.SIGKILL)
    eventually(lambda: server.server._presence.trouble)
    late.join()
    own_valkey.ensure_running()
    assert page.hear() == ("join", late.id)


def test_redis_that_comes_back_empty_is_told_again_and_pages_are_not(
    start_server: StartServer, own_valkey: EmbeddedValkey, quick: None
) -> None:
    by_message()
    servers = [start_server(), start_server()]
    pages = [Page(server) for server in servers for _ in range(3)]
    for page in pages:
        page.join()
    everybody = sorted(page.id for page in pages)
    eventually(lambda: sorted(names()) == everybody)
    since = {person.key: person.since for person in djmease.presence(GROUP)}
    for page in pages[:1]:
        assert {page.hear() for _ in pages} == {("join", each) for each in everybody}
    os.kill(own_valkey._pid(), signal.SIGKILL)
    eventually(lambda: all(server.server._presence.trouble for server in servers))
    late = Page(servers[1])
    late.join()
    pages[5].close()
    eventually(lambda: not servers[1].call(lambda: pages[5].id in servers[1].server.clients._by_id))
    own_valkey.ensure_running()
    wanted = sorted([*everybody, late.id])
    wanted.remove(pages[5].id)

    def now() -> list[str]:
        try:
            return sorted(names())
        except (RedisError, OSError):
            return []

    eventually(lambda: now() == wanted)
    assert {person.key: person.since for person in djmease.presence(GROUP) if person.key != late.id} == {
        key: value for key, value in since.items() if key != pages[5].id
    }
    eventually(lambda: all(server.server._listener.is_hearing for server in servers))
    last = Page(servers[0])
    last.join()
    heard = [pages[0].hear()]
    while heard[-1] != ("join", last.id):
        heard.append(pages[0].hear())
    assert set(heard) <= {("join", late.id), ("join", last.id)}, "those who were there all the time are no news"


def test_the_roll_and_the_memberships_agree_after_everything(
    start_server: StartServer, own_valkey: EmbeddedValkey, quick: None
) -> None:
    """Members come and go in two servers, Redis is killed and comes back, and scripts are forgotten, in between."""
    by_message()
    servers = [start_server(), start_server()]
    pages = [Page(server) for server in servers for _ in range(6)]
    chance = random.Random(5)

    def come_and_go(rounds: int) -> None:
        for _ in range(rounds):
            verb = chance.choice(["join", "leave"])
            chance.choice(pages).connection.send(
                messages.to_json({"type": verb, "group": f"board.{chance.randrange(10)}"})
            )

    come_and_go(150)
    os.kill(own_valkey._pid(), signal.SIGKILL)
    come_and_go(100)
    own_valkey.ensure_running()
    come_and_go(150)
    eventually(lambda: all(server.server._listener.is_hearing for server in servers))
    redis = Redis(connection_pool=connections.publisher_pool())
    redis.script_flush()
    come_and_go(100)
    for page in pages[:3]:
        page.close()
    for page in pages[3:]:
        page.join("board.end")

    def memberships() -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for server in servers:
            for group, members in server.call(lambda server=server: dict(server.server.clients._groups)).items():
                found.setdefault(group, set()).update(client.id for client in members)
        return found

    def rolls() -> dict[str, set[str]]:
        groups = [*(f"board.{number}" for number in range(10)), "board.end"]
        return {group: set(names(group)) for group in groups if names(group)}

    eventually(lambda: rolls() == memberships(), "that the roll and the servers agree")
    assert len(rolls()["board.end"]) == 9
    for server in servers:
        attending = server.server._presence
        assert server.call(lambda a=attending: {place: here.connections for place, here in a._here.items()}) == (
            attending._told
        )
        eventually(lambda a=attending: not a._known, "that nobody is kept in mind")


def test_a_redis_that_does_not_permit_it_is_said_once_and_harms_nothing_else(
    start_server: StartServer, own_valkey: EmbeddedValkey, settings: Any, log_of: Log
) -> None:
    admin = Redis.from_url(settings.MEASE_REDIS_URL)
    admin.execute_command("ACL", "SETUSER", "site", "on", ">secret", "+@all", "-evalsha", "allchannels", "allkeys")
    settings.MEASE_REDIS_OPTIONS = {"username": "site", "password": "secret"}
    by_message()
    page = Page(start_server())
    page.join()
    said = lambda: [line for line in log_of() if "cannot tell who is in its groups" in line]  # noqa: E731
    (line,) = eventually(said)
    assert "evalsha" in line and "+evalsha" in line
    admin.execute_command("ACL", "SETUSER", "site", "+evalsha")
    eventually(lambda: names() == [page.id])
    assert len(said()) == 1


def test_the_rights_that_are_named_are_enough(
    start_server: StartServer, own_valkey: EmbeddedValkey, settings: Any
) -> None:
    admin = Redis.from_url(settings.MEASE_REDIS_URL)
    prefix = settings.MEASE_KEY_PREFIX
    rights = [f"&{prefix}:*", f"&{prefix}.*", f"~{prefix}.*", "-@all", *connections.COMMANDS.split()]
    admin.execute_command("ACL", "SETUSER", "site", "on", ">secret", "resetchannels", *rights)
    settings.MEASE_REDIS_OPTIONS = {"username": "site", "password": "secret"}
    by_message()
    server, other = start_server(), start_server()
    page = Page(server)
    page.join()
    assert page.hear() == ("join", page.id)
    Page(other).join()
    page.hear()
    other.stop()
    assert page.hear()[0] == "leave"
    redis = Redis(connection_pool=connections.publisher_pool())
    redis.zadd(f"{connections.presence_prefix()}servers", {"dead": 1.0})
    assert names() == [page.id] and djmease.presence_count(GROUP) == 1
    assert server.server._presence.trouble is None


# What is asked and set


def test_what_cannot_be_asked() -> None:
    with pytest.raises(ValueError, match=r"the group 'room.7' has no presence.*MEASE_PRESENCE.*'board\.\*'"):
        djmease.presence("room.7")
    with pytest.raises(ValueError, match="not a valid name"):
        djmease.presence_count("board 7")


def test_on_a_loop_it_is_apresence(start_server: StartServer) -> None:
    by_message()
    page = Page(start_server())
    page.join()
    eventually(lambda: names() == [page.id])

    async def ask() -> None:
        with pytest.raises(SynchronousOnlyOperation, match="apresence"):
            djmease.presence(GROUP)
        with pytest.raises(SynchronousOnlyOperation, match="apresence_count"):
            djmease.presence_count(GROUP)
        assert [person.key for person in await djmease.apresence(GROUP)] == [page.id]
        assert await djmease.apresence_count(GROUP) == 1

    asyncio.run(ask())


def test_a_redis_client_that_decodes_what_it_reads(start_server: StartServer, settings: Any) -> None:
    settings.MEASE_REDIS_OPTIONS = {"decode_responses": True}
    by_message()
    page = Page(start_server())
    page.join(info={"name": "Zoë"})
    eventually(lambda: djmease.presence_count(GROUP) == 1)
    (person,) = djmease.presence(GROUP)
    assert (person.key, person.connections, person.info) == (page.id, 1, {"name": "Zoë"})


def test_an_embedded_valkey_that_does_not_run_has_nobody(settings: Any, short_directory: Any) -> None:
    settings.MEASE_REDIS_URL = "embedded://"
    settings.MEASE_EMBEDDED_DIR = str(short_directory)
    assert djmease.presence(GROUP) == []
    assert djmease.presence_count(GROUP) == 0


@pytest.mark.parametrize(
    ("info", "error", "words"),
    [
        (["a"], TypeError, "should be a dict"),
        (None, TypeError, "should be a dict"),
        ({"a": object()}, TypeError, "not JSON serializable"),
        ({"a": float("nan")}, ValueError, "not JSON compliant"),
        ({"a": "é" * 600}, ValueError, "has 1208 bytes as JSON, and may have 1024"),
    ],
)
def test_what_cannot_be_told_is_refused_where_it_is_set(info: Any, error: type[Exception], words: str) -> None:
    @djmease.opener
    def enter(client: Any) -> None:
        client.presence = info

    with pytest.raises(error, match=words), connect():
        pass


def test_it_is_refused_on_a_real_client_too(start_server: StartServer, log_of: Log) -> None:
    @djmease.opener
    def enter(client: Any) -> None:
        assert client.presence == {}
        client.presence = {"a": 1}
        assert client.presence == {"a": 1}
        client.presence = "text"

    start_server().connect()
    eventually(lambda: any("callback" in line or "test_presence" in line for line in log_of()))


# Who writes it to the pages


def senders() -> list[str]:
    return [sender.path for sender in loader.load().registry.senders_for("mease.presence")]


def show(message: Any, clients_list: Any) -> None: ...


def test_the_route_of_presence_is_broadcast_unless_the_site_says_another(settings: Any) -> None:
    assert senders() == ["djmease.senders.broadcast"]
    settings.MEASE_ROUTES = {"mease.presence": "tests.test_presence.show"}
    assert senders() == ["tests.test_presence.show"]
    settings.MEASE_ROUTES = {"mease.presence": None}
    assert senders() == []
    settings.MEASE_ROUTES = {"*": "tests.test_presence.show"}
    assert senders() == ["tests.test_presence.show", "djmease.senders.broadcast"]
    settings.MEASE_ROUTES = {}
    djmease.sender(routing="mease.presence")(show)
    assert senders() == ["tests.test_presence.show"]
    assert not loader.load().faults[1:], "but for a warning of where it was declared"


def test_nobody_else_publishes_on_it() -> None:
    with pytest.raises(ValueError, match="reserved"):
        djmease.publish("mease.presence", {})


@pytest.mark.parametrize("value", ["board.*", ["a b"], [7], ["mease.x"], [""], {"board.*": True}])
def test_a_wrong_setting_is_a_fault(settings: Any, value: Any) -> None:
    settings.MEASE_PRESENCE = value
    (fault,) = run_checks(tags=["djmease"])
    assert fault.id == "djmease.E008" and "MEASE_PRESENCE" in fault.msg and "board.*" in str(fault.hint)


def test_good_patterns_are_no_fault(settings: Any) -> None:
    settings.MEASE_PRESENCE = ("board.*", "lobby", "*", "room.?")
    assert not run_checks(tags=["djmease"])


# In users' tests


@pytest.mark.django_db
def test_a_test_of_callbacks_has_presence_without_a_redis() -> None:
    by_message()
    ada = User.objects.create_user("ada")
    with connect(groups=[GROUP]) as watcher:
        assert [each["event"] for each in watcher.received] == ["join"]
        with connect(user=ada, groups=[GROUP]) as one, connect(user=ada) as two:
            two.client.presence = {"colour": "red"}
            two.send({"type": "join", "group": GROUP})
            assert [(person.user, person.connections) for person in djmease.presence(GROUP)] == [(None, 1), ("ada", 2)]
            assert djmease.presence_count(GROUP) == 2
            one.close()
            assert djmease.presence_count(GROUP) == 2
            two.send({"type": "leave", "group": GROUP})
            assert djmease.presence_count(GROUP) == 1
        told = [(each["event"], each["user"], each["key"]) for each in watcher.received]
        assert told[1:] == [("join", "ada", str(ada.pk)), ("leave", "ada", str(ada.pk))]


def test_a_live_server_without_redis_has_presence(settings: Any) -> None:
    by_message()
    settings.MEASE_REDIS_URL = None
    with live_server() as server, ws_connect(server.url) as one, ws_connect(server.url) as two:
        page, other = Page(one), Page(two)
        page.join()
        assert page.hear() == ("join", page.id)
        other.join(info={"name": "ada"})
        assert page.hear() == ("join", "ada")
        assert [(person.key, person.info) for person in djmease.presence(GROUP)] == [
            (page.id, {}),
            (other.id, {"name": "ada"}),
        ]
        other.close()
        assert page.hear() == ("leave", "ada")
        assert djmease.presence_count(GROUP) == 1
        page.close()
