"""A message is followed from the settings to the clients, and it is said where it stops; real servers and Redis."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.management.color import no_style
from django.test import Client as Browser
from redis import Redis
from websockets.sync.client import connect

import djmease
from djmease import connections, reporting, reports
from djmease.embedded import EmbeddedValkey
from djmease.messages import decode
from djmease.reports import MessageTrace, to_plain
from djmease.test import captured_messages
from djmease.trace_text import trace_text
from djmease.tracing import Trace, follow, notes, verdict
from tests import reported
from tests.support import DEADLINE, LiveServer, eventually

StartServer = Callable[[], LiveServer]


@pytest.fixture(autouse=True)
def site(settings: Any) -> None:
    settings.MEASE_REPORT_INTERVAL = 0.1
    settings.MEASE_ROUTES = {"news": "djmease.senders.broadcast"}


def text_of(trace: Trace, width: int = 250) -> list[str]:
    return [" ".join(line.split()) for line in trace_text(trace, width=width, style=no_style()).splitlines()]


def answer(**fields: Any) -> dict[str, Any]:
    """Return what a server tells of a message."""
    given: dict[str, Any] = {
        "server": "5f2c1ab09d3e4477",
        "host": "web1",
        "pid": 4711,
        "clients": 3,
        "chosen": 3,
        "lag": 0.0008,
        "waited": 0.0001,
        "senders": (reported.sender_trace(),),
        "names": ("5 (alice)", "6", "7"),
    }
    return to_plain(MessageTrace(**{**given, **fields}))


@contextmanager
def server_that_tells(*answers: Any, then: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hear the next message as a server does, and answer with these."""
    redis = Redis.from_url(connections.connection_url())
    pubsub = redis.pubsub()
    pubsub.psubscribe(f"{connections.key_prefix()}*")
    assert pubsub.get_message(timeout=DEADLINE) is not None

    def hear() -> None:
        heard = pubsub.get_message(timeout=DEADLINE)
        assert heard is not None and heard["channel"] != connections.control_channel().encode()
        token = decode("news", heard["data"]).trace
        for each in answers:
            redis.rpush(f"{connections.reply_prefix()}{token}", each if isinstance(each, str) else json.dumps(each))
        then()

    thread = threading.Thread(target=hear)
    thread.start()
    yield
    thread.join(DEADLINE)
    pubsub.close()
    redis.close()


def test_it_arrives(start_server: StartServer, redis: str) -> None:
    server = start_server()
    clients = [server.connect() for _ in range(3)]
    trace = follow("news", {"a": 1})
    assert [client.recv(timeout=DEADLINE) for client in clients] == ['{"a":1}'] * 3
    assert (trace.heard, trace.written, len(trace.servers), trace.silent) == (1, 3, 1, ())
    assert verdict(trace) == "It arrives: written to 3 clients."
    assert list(notes(trace)) == []
    text = text_of(trace)
    assert text[:4] == [
        f"Message {trace.id}, on news",
        "Settings 1 sender would run, by the settings here",
        "sender declared in",
        "djmease.senders.broadcast async MEASE_ROUTES['news']",
    ]
    assert text[4].startswith(f"Redis {connections.address()} handed it to 1 server on {redis}news in ")
    assert text[5].startswith(f"Server {os.getpid()} on ") and text[5].endswith("later, for 3 of 3 clients")
    assert text[6] == "sender ran in handed written declared in"
    assert text[7].endswith(" ms 3 3 MEASE_ROUTES['news']")
    ids = server.call(lambda: [client.id for client in server.server.clients.snapshot()])
    assert text[8] == f"Clients: {', '.join(ids)}"
    assert text[-1] == "It arrives: written to 3 clients."


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_it_fits_the_terminal(width: int, redis: str) -> None:
    servers = [
        answer(senders=(reported.sender_trace("app.x." + "y" * 60, error="ValueError: " + "z" * 60),)),
        answer(server="77", senders=(), dropped="too much waits for the senders of all routings together"),
    ]
    with server_that_tells(*servers):
        trace = follow("news", "x", groups=["room." + "7" * 50])
    lines = trace_text(trace, width=width, style=no_style()).splitlines()
    assert max(map(len, lines)) <= width
    assert len(trace.servers) == 1, "one listener is one answer"


def test_no_server_runs(redis: str) -> None:
    trace = follow("news", "x")
    assert verdict(trace) == (
        "It stops behind Redis: no WebSocket server runs. Start one: python manage.py run_websocket_server"
    )


def test_an_embedded_valkey_that_no_server_has_started(settings: Any, short_directory: Path) -> None:
    settings.MEASE_REDIS_URL, settings.MEASE_EMBEDDED_DIR = "embedded://", str(short_directory)
    lines = text_of(follow("news", "x"))
    assert any(line.startswith("Redis") and line.endswith("does not run: the first server starts it") for line in lines)
    assert lines[-1].startswith("It stops behind Redis: no WebSocket server runs.")


def test_servers_that_run_and_do_not_hear(redis: str) -> None:
    reported.put(reported.server(trouble="it is deaf"), reported.server("77", pid=4712))
    assert verdict(follow("news", "x")) == (
        "It stops behind Redis: no server hears it, though some run: 4711 on web1 (it is deaf), 4712 on web1."
    )


def test_redis_does_not_answer(settings: Any) -> None:
    settings.MEASE_REDIS_URL = "unix:///nonexistent/redis.sock"
    trace = follow("news", "x")
    assert trace.heard is None and trace.id is None
    assert verdict(trace).startswith("It stops at Redis: it does not answer (")
    assert text_of(trace)[0] == "Message not published, on news"
    assert "Redis unix:///nonexistent/redis.sock did not take it" in text_of(trace)


def test_a_routing_that_the_settings_do_not_know(redis: str) -> None:
    trace = follow("newz", "x")
    assert verdict(trace).startswith(
        "It stops at the settings. No sender is registered for the routing 'newz'. Did you mean 'news'?"
    )
    assert "Settings no sender here" in text_of(trace)
    assert text_of(trace)[2].endswith(" was not asked")


@pytest.mark.parametrize("routing", ["a b", "mease.x"])
def test_what_is_no_routing_is_an_error_of_who_calls(redis: str, routing: str) -> None:
    with pytest.raises(ValueError, match="routing"):
        follow(routing, "x")


def test_a_server_that_was_started_with_other_settings(start_server: StartServer, settings: Any) -> None:
    start_server().connect()
    settings.MEASE_ROUTES = {"new": "djmease.senders.broadcast"}
    trace = follow("new", "x")
    assert verdict(trace) == (
        "It stops in the servers: no sender is registered for it there, though there is one here: they were started "
        "with other settings or code. Restart them."
    )
    assert any(line.endswith(f": {reports.NO_SENDER}") for line in text_of(trace))


def test_no_sender_anywhere(start_server: StartServer, settings: Any) -> None:
    settings.MEASE_STRICT_ROUTING = False
    start_server().connect()
    trace = follow("nobody", "x")
    assert verdict(trace) == "It stops in the servers: no sender is registered for it there, nor here."


def test_a_server_that_dropped_it(redis: str) -> None:
    with server_that_tells(answer(senders=(), dropped="too much waits for the senders of the routing")):
        assert verdict(follow("news", "x")) == (
            "It stops in the servers: too much waits for the senders of the routing."
        )


@pytest.mark.parametrize(
    ("targets", "told"),
    [
        ({"groups": ["room.7"]}, "2 clients are connected, and none is in the group room.7"),
        ({"groups": ["a", "b"]}, "2 clients are connected there, and none is in the groups a, b"),
        ({"users": ["7"]}, "2 clients are connected, and none is of the user 7"),
        (
            {"users": ["7", "8"], "groups": ["a"]},
            "2 clients are connected, and none is in the group a and is of the users 7, 8",
        ),
    ],
)
def test_nobody_is_meant(start_server: StartServer, targets: dict[str, Any], told: str) -> None:
    server = start_server()
    server.connect(), server.connect()
    eventually(lambda: reporting.get_status().servers, "the server's report")
    trace = follow("news", "x", **targets)
    assert verdict(trace) == f"It stops in front of the clients: {told}."
    assert text_of(trace)[0].startswith(f"Message {trace.id}, on news, for the ")


def test_nobody_is_meant_of_nobody(start_server: StartServer) -> None:
    start_server()
    eventually(lambda: reporting.get_status().servers, "the server's report")
    assert verdict(follow("news", "x", users=["7"])) == "It stops in front of the clients: none is connected."


def test_nobody_is_meant_and_no_server_reports(redis: str) -> None:
    assert verdict(follow("news", "x", groups=["room.7"])) == (
        "It stops in front of the clients: none is in the group room.7. If no server runs, start one: python manage.py "
        "run_websocket_server"
    )


def test_nobody_is_meant_and_redis_goes(own_valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch) -> None:
    reported.put(reported.server())
    kept = reporting.list_clients

    def too_late(*arguments: Any, **options: Any) -> Any:
        os.kill(own_valkey._pid(), signal.SIGKILL)
        return kept(*arguments, **options)

    monkeypatch.setattr(reporting, "list_clients", too_late)
    assert "clients" in verdict(follow("news", "x", groups=["room.7"], timeout=0.2))


def test_clients_of_several_groups_and_servers(start_server: StartServer, redis: str) -> None:
    @djmease.opener
    def enter(client: Any) -> None:
        for group in client.get_query_arguments("group"):
            client.join(group)

    servers = [start_server() for _ in range(3)]
    clients = [servers[0].connect("?group=a&group=b"), servers[0].connect("?group=b"), servers[1].connect("?group=b")]
    others = [servers[2].connect("?group=c")]
    trace = follow("news", "x", groups=["a", "b"])
    assert [client.recv(timeout=DEADLINE) for client in clients] == ["x"] * 3
    assert (trace.heard, len(trace.servers), list(notes(trace))) == (3, 3, [])
    assert verdict(trace) == "It arrives: written to 3 clients."
    assert f" handed it to 3 servers on {redis}news in " in text_of(trace)[4]
    one = follow("news", "x", groups=["c"])
    assert others[0].recv(timeout=DEADLINE) == "x"
    assert (one.heard, len(one.servers), list(notes(one))) == (1, 1, [])
    assert f" handed it to 1 server on {redis.removesuffix(':')}.group:c in " in text_of(one)[4]


def test_nobody_is_connected(start_server: StartServer) -> None:
    start_server()
    assert verdict(follow("news", "x")) == "It stops in front of the clients: none is connected."


def test_a_client_whose_openers_still_run(start_server: StartServer) -> None:
    entered, hold = threading.Event(), threading.Event()

    @djmease.opener
    def wait() -> None:
        entered.set()
        hold.wait(DEADLINE)

    server = start_server()
    with connect(server.url):
        assert entered.wait(DEADLINE)
        told = verdict(follow("news", "x"))
        hold.set()
    assert (
        told == "It stops in front of the clients: 1 client is connected there, and none has its openers behind it yet."
    )


def test_a_sender_that_raises(start_server: StartServer) -> None:
    @djmease.sender(routing="bad")
    def fail() -> None:
        raise ValueError("no\x1b[31m")

    start_server().connect()
    trace = follow("bad", "x")
    path = f"{__name__}.{fail.__qualname__}"
    assert verdict(trace) == f"It stops in the senders: {path} raised ValueError: no\x1b[31m."
    text = trace_text(trace, width=200, style=no_style())
    assert "\x1b" not in text and r"ValueError: no\x1b[31m" in text


def test_a_sender_that_writes_to_nobody(start_server: StartServer) -> None:
    @djmease.sender(routing="shy")
    def look(clients_list: Any) -> None: ...

    start_server().connect()
    assert verdict(follow("shy", "x")) == (
        "It stops in the senders: they ran and wrote to nobody, though there was 1 client to write to."
    )


def test_it_arrives_and_another_sender_raises(start_server: StartServer) -> None:
    @djmease.sender
    def fail() -> None:
        raise ValueError("no")

    for server in (start_server(), start_server()):
        server.connect()
    trace = follow("news", "x")
    assert verdict(trace) == "It arrives: written to 2 clients."
    assert list(notes(trace)) == [f"But {__name__}.{fail.__qualname__} raised ValueError: no."]


def test_what_was_written_several_times_is_no_number_of_clients(start_server: StartServer) -> None:
    @djmease.sender(routing="twice")
    def show(clients_list: Any) -> None:
        clients_list.send("a")
        clients_list.send("b")

    start_server().connect()
    assert verdict(follow("twice", "x")) == "It arrives: written 2 times to clients."


def test_clients_are_named_with_their_users(start_server: StartServer, transactional_db: None) -> None:
    ada = User.objects.create_user("ada")
    browser = Browser()
    browser.force_login(ada)
    server = start_server()
    mine = server.connect(additional_headers={"Cookie": f"sessionid={browser.cookies['sessionid'].value}"})
    server.connect()
    trace = follow("news", "x", users=[str(ada.pk)])
    assert mine.recv(timeout=DEADLINE) == "x"
    assert verdict(trace) == "It arrives: written to 1 client."
    assert trace.servers[0].names[0].endswith(" (ada)")


def test_one_server_of_two_runs_nothing(start_server: StartServer, settings: Any) -> None:
    start_server().connect()
    settings.MEASE_ROUTES = {"new": "djmease.senders.broadcast"}
    start_server().connect()
    trace = follow("new", "x")
    assert verdict(trace) == "It arrives: written to 1 client."
    (note,) = notes(trace)
    assert note.endswith(f" ran nothing: {reports.NO_SENDER}.")


def test_who_hears_and_tells_nothing(redis: str) -> None:
    with server_that_tells():
        trace = follow("news", "x", timeout=0.1)
    assert verdict(trace).startswith(
        "It stops in the servers: 1 server heard it, and none told within 0.1 s what became of it."
    )


def test_a_server_that_tells_nothing_is_named(redis: str) -> None:
    reported.put(reported.server())
    with server_that_tells():
        trace = follow("news", "x", timeout=0.1)
    assert verdict(trace).startswith("It stops in the servers: 1 server heard it (4711 on web1), and none told within")


def test_one_server_tells_and_the_others_do_not(redis: str) -> None:
    reported.put(reported.server(), reported.server("77", pid=4712), reported.server("78", pid=4713, trouble="deaf"))
    with server_that_tells(answer()), server_that_tells():
        trace = follow("news", "x", timeout=1)
    assert (trace.heard, len(trace.servers)) == (2, 1)
    assert verdict(trace) == "It arrives: written to 3 clients."
    assert list(notes(trace)) == [
        "The server 4712 on web1 has not told within 1 s what it did with it.",
        "The server 4713 on web1 has not told within 1 s what it did with it (deaf).",
    ]


def test_a_server_that_did_not_hear_it_is_named(redis: str) -> None:
    reported.put(reported.server(), reported.server("77", pid=4712, trouble="it is deaf"))
    with server_that_tells(answer()):
        trace = follow("news", "x")
    assert list(notes(trace)) == ["The server 4712 on web1 did not hear it (it is deaf)."]


def test_a_listener_that_is_no_server_is_said(redis: str) -> None:
    with server_that_tells(answer()), server_that_tells():
        trace = follow("news", "x", timeout=1)
    assert list(notes(trace)) == ["Redis handed it to 1 listener more, which may be no server, or be slow."]


@pytest.mark.parametrize("told", ["no JSON", "[1]", "{}", '{"server": "x", "pid": "four"}'])
def test_an_answer_that_cannot_be_read(redis: str, told: str) -> None:
    with server_that_tells(told):
        trace = follow("news", "x", timeout=0.2)
    assert verdict(trace).startswith("It stops in the servers: 1 server heard it, and ")


def test_answers_of_a_newer_version_are_read(redis: str) -> None:
    with server_that_tells({**answer(), "novelty": [1]}):
        assert verdict(follow("news", "x")) == "It arrives: written to 3 clients."


def test_redis_that_goes_while_it_is_waited_for(own_valkey: EmbeddedValkey) -> None:
    with server_that_tells(then=lambda: os.kill(own_valkey._pid(), signal.SIGKILL)):
        trace = follow("news", "x")
    assert trace.heard == 1
    assert verdict(trace).startswith(
        "It stops in the servers: 1 server heard it, and what became of it is not known: it "
    )


def test_a_test_that_captures_what_is_published(redis: str) -> None:
    with captured_messages() as messages:
        trace = follow("news", "x")
    assert messages[0].trace is not None
    assert trace.heard is None and verdict(trace).endswith("it was not sent, since a test takes what is published.")
