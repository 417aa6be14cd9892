"""Order, threads, contexts, errors and database connections of callbacks."""

from __future__ import annotations

import asyncio
import functools
import re
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from django.core.exceptions import PermissionDenied
from django.db import connection
from django.utils import translation
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

import djmease
from djmease.server import dispatch, lanes
from djmease.server.calls import CALL_SIZE
from tests.support import DEADLINE, LiveServer, eventually

StartServer = Callable[[], LiveServer]
Log = Callable[[], list[str]]


def test_the_messages_of_one_client_are_received_in_order_by_def_and_async_alike(start_server: StartServer) -> None:
    seen: list[tuple[str, Any]] = []

    @djmease.receiver
    def first(message: Any) -> None:
        seen.append(("def", message))

    @djmease.receiver
    async def second(message: Any) -> None:
        await asyncio.sleep(0)
        seen.append(("async", message))

    @djmease.receiver
    def third(client: Any, message: Any) -> None:
        seen.append(("last", message))

    client = start_server().connect()
    for index in range(300):
        client.send(str(index))
    eventually(lambda: len(seen) == 900)
    assert seen == [(kind, str(index)) for index in range(300) for kind in ("def", "async", "last")]


def test_what_is_written_by_def_and_async_senders_comes_in_the_order_of_the_messages(start_server: StartServer) -> None:
    @djmease.sender(routing="mixed")
    def write(message: Any, clients_list: Any) -> None:
        clients_list.send(f"def {message}")

    @djmease.sender(routing="mixed")
    async def write_async(message: Any, clients_list: Any) -> None:
        clients_list.send(f"async {message}")

    client = start_server().connect()
    for index in range(300):
        djmease.publish("mixed", index)
    received = [client.recv(DEADLINE) for _ in range(600)]
    assert received == [f"{kind} {index}" for index in range(300) for kind in ("def", "async")]


def test_what_a_callback_writes_goes_out_while_it_still_runs(start_server: StartServer) -> None:
    may_end = threading.Event()

    @djmease.receiver
    def answer(client: Any) -> None:
        client.write_message("begun")
        assert may_end.wait(DEADLINE)
        client.write_message("ended")

    client = start_server().connect()
    client.send("go")
    assert client.recv(5) == "begun"
    may_end.set()
    assert client.recv(5) == "ended"


def test_clients_are_listed_from_the_end_of_their_openers_to_the_start_of_their_closers(
    start_server: StartServer,
) -> None:
    listed: dict[str, list[bool]] = {"opener": [], "receiver": [], "closer": []}

    @djmease.opener
    def on_open(client: Any, clients_list: Any) -> None:
        listed["opener"].append(client in clients_list)
        client.storage["who"] = "me"

    @djmease.receiver
    def on_message(client: Any, clients_list: Any) -> None:
        listed["receiver"].append(client in clients_list and client.storage == {"who": "me"})

    @djmease.closer
    def on_close(client: Any, clients_list: Any) -> None:
        listed["closer"].append(client in clients_list)

    client = start_server().connect()
    client.send("hi")
    client.close()
    eventually(lambda: listed["closer"])
    assert listed == {"opener": [False], "receiver": [True], "closer": [False]}


def test_frames_that_come_while_openers_run_wait_for_them(start_server: StartServer) -> None:
    may_open = threading.Event()
    order: list[str] = []

    @djmease.opener
    def open_slowly() -> None:
        assert may_open.wait(DEADLINE)
        order.append("opened")

    @djmease.receiver
    def receive(message: Any) -> None:
        order.append(message)

    server = start_server()
    with server.raw() as client:
        from tests.support import HANDSHAKE, masked_frame

        client.sendall(HANDSHAKE + masked_frame(1, b"early") + masked_frame(9, b"ping"))
        # The ping is answered although the opener still runs.
        eventually(lambda: b"\x8a\x04ping" in client.recv(4096))
        assert order == []
        may_open.set()
        eventually(lambda: order == ["opened", "early"])


def test_a_def_that_returns_a_coroutine_is_an_error_that_says_so(start_server: StartServer, log_of: Log) -> None:
    async def inner() -> None: ...

    @djmease.receiver
    def receive() -> Any:
        return inner()

    start_server().connect().send("x")
    eventually(lambda: any("declare it with async def" in line for line in log_of()))


def test_what_a_callback_returns_and_never_runs_is_an_error_that_says_so(
    start_server: StartServer, log_of: Log
) -> None:
    djmease.receiver(lambda clients_list: (client.send("x") for client in clients_list))
    start_server().connect().send("x")
    eventually(lambda: any("of which nothing has run: loop, and yield nothing" in line for line in log_of()))


@pytest.mark.parametrize("raises", [ValueError("no"), SystemExit(1), KeyboardInterrupt()])
def test_whatever_a_callback_raises_is_contained(start_server: StartServer, log_of: Log, raises: BaseException) -> None:
    @djmease.receiver
    def fail() -> None:
        raise raises

    @djmease.receiver
    def answer(client: Any, message: Any) -> None:
        client.write_message(message)

    client = start_server().connect()
    client.send("one")
    client.send("two")
    assert [client.recv(5), client.recv(5)] == ["one", "two"]
    assert len([line for line in log_of() if "fail raised" in line and "for client" in line]) == 2


def test_an_async_callback_that_raises_is_contained(start_server: StartServer, log_of: Log) -> None:
    @djmease.receiver
    async def fail() -> None:
        sys.exit("no")

    @djmease.receiver
    async def answer(client: Any, message: Any) -> None:
        await client.write_message(message)

    client = start_server().connect()
    client.send("one")
    assert client.recv(5) == "one"
    assert any("fail raised SystemExit('no')" in line for line in log_of())


class UntellableError(Exception):
    def __str__(self) -> str:
        raise KeyError("detail")

    __repr__ = __str__


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_an_error_whose_text_cannot_be_made_holds_up_nothing(start_server: StartServer, log_of: Log, kind: str) -> None:
    def fail(message: Any) -> None:
        if message == "bad":
            raise UntellableError

    async def fail_too(message: Any) -> None:
        fail(message)

    djmease.receiver(fail if kind == "def" else fail_too)
    djmease.sender(routing="news")(fail if kind == "def" else fail_too)

    @djmease.receiver
    def answer(client: Any, message: Any) -> None:
        client.write_message(message)

    @djmease.sender(routing="news")
    def show(clients_list: Any, message: Any) -> None:
        clients_list.send(message)

    server = start_server()
    client = server.connect()
    for text in ("one", "bad", "two"):
        client.send(text)
        assert client.recv(5) == text
        djmease.publish("news", text)
        assert client.recv(5) == text
    lines = [line for line in log_of() if "UntellableError: (its text raised KeyError)" in line]
    assert len(lines) == 2
    (tally, _) = server.server._dispatch._tallies.for_routing("news")
    assert tally.last_error is not None and tally.last_error[1] == "UntellableError: (its text raised KeyError)"


def test_who_is_turned_away_without_a_text_that_can_be_made_is_turned_away(start_server: StartServer) -> None:
    class UntellableDeniedError(UntellableError, PermissionDenied): ...

    @djmease.opener
    def turn_away() -> None:
        raise UntellableDeniedError

    with connect(start_server().url) as client, pytest.raises(ConnectionClosed) as closed:
        client.recv(5)
    assert closed.value.rcvd is not None and closed.value.rcvd.code == 4403


def test_a_rule_that_cannot_be_asked_is_a_refusal_that_says_so(
    start_server: StartServer, log_of: Log, db: None
) -> None:
    def fails(user: Any) -> bool:
        raise OSError("the database is away")

    @djmease.receiver(json=True, user_passes_test=fails)
    def hear(message: Any) -> None:
        raise AssertionError("it is not to be heard")

    client = start_server().connect()
    client.send('{"type": "a"}')
    assert client.recv(5) == '{"type":"mease.refused","reason":"error","refused":"a"}'
    assert any("hear raised OSError('the database is away')" in line for line in log_of())


def test_an_object_with_an_async_call_and_a_partial_are_callbacks(start_server: StartServer) -> None:
    class Answer:
        async def __call__(self, client: Any, message: Any) -> None:
            client.send(f"object {message}")

    def answer(client: Any, message: Any, *, greeting: str) -> None:
        client.send(f"{greeting} {message}")

    djmease.receiver(Answer())
    djmease.receiver(functools.partial(answer, greeting="partial"))
    client = start_server().connect()
    client.send("x")
    assert [client.recv(5), client.recv(5)] == ["object x", "partial x"]


def test_a_language_that_one_callback_activates_does_not_leak_into_the_next(start_server: StartServer) -> None:
    @djmease.receiver
    def answer(client: Any) -> None:
        client.send(translation.get_language())
        translation.activate("fr")

    client = start_server().connect()
    client.send("1")
    client.send("2")
    assert client.recv(5) == client.recv(5) != "fr"


def test_database_connections_are_closed_around_the_hop(start_server: StartServer) -> None:
    """CONN_MAX_AGE is 0, so that nothing is left open in the worker's thread when it goes idle."""
    seen: list[bool] = []

    @djmease.receiver
    def query() -> None:
        seen.append(connection.connection is None)
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")

    @djmease.receiver
    async def later() -> None: ...

    client = start_server().connect()
    for index in range(3):
        client.send(str(index))
        eventually(lambda index=index: len(seen) == index + 1)
    assert seen == [True, True, True]


def test_a_client_that_floods_is_read_no_faster_than_it_is_served_and_loses_nothing(
    start_server: StartServer, settings: Any
) -> None:
    seen: list[str] = []

    @djmease.receiver
    def slow(message: str) -> None:
        time.sleep(0.0001)
        seen.append(message)

    settings.MEASE_MAX_MESSAGE_RATE = None
    server = start_server()
    client = server.connect()
    other = server.connect()
    for index in range(5000):
        client.send(str(index).zfill(100))
    other.send("other")
    eventually(lambda: "other" in seen)
    eventually(lambda: len(seen) == 5001)
    seen.remove("other")
    assert seen == [str(index).zfill(100) for index in range(5000)]


def test_a_routing_whose_senders_are_too_slow_drops_and_says_so(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch, log_of: Log
) -> None:
    monkeypatch.setattr(dispatch, "MAX_ROUTING_WAITING", 5 * (CALL_SIZE + 2))
    may_go_on = threading.Event()
    seen: list[str] = []

    @djmease.sender(routing="slow")
    def slow(message: str) -> None:
        assert may_go_on.wait(DEADLINE)
        seen.append(message)

    all_have_come = threading.Event()
    djmease.sender(routing="end")(all_have_come.set)
    server = start_server()
    counts = server.server._dispatch
    for index in range(20):
        djmease.publish("slow", f"{index:02}")
    djmease.publish("end", "")
    assert all_have_come.wait(DEADLINE)
    assert counts.dropped == 15
    may_go_on.set()
    eventually(lambda: len(seen) == 5)
    assert seen == ["00", "01", "02", "03", "04"]
    assert any("wait for the senders of the routing, and the message " in line for line in log_of())
    djmease.publish("slow", "again")
    eventually(lambda: seen[-1] == "again")
    eventually(lambda: counts.published.size == 0)


def test_routings_whose_names_are_endless_have_a_bound_together(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch, log_of: Log
) -> None:
    monkeypatch.setattr(dispatch, "MAX_WAITING", 10 * (CALL_SIZE + 1))
    may_go_on = threading.Event()
    seen: list[str] = []

    @djmease.sender(routing="name.*")
    def slow(routing: str) -> None:
        assert may_go_on.wait(DEADLINE)
        seen.append(routing)

    server = start_server()
    counts = server.server._dispatch
    for index in range(100):
        djmease.publish(f"name.{index}", "x")
    eventually(lambda: counts.dropped == 90)
    may_go_on.set()
    eventually(lambda: len(seen) == 10)
    assert sorted(seen) == sorted(f"name.{index}" for index in range(10))
    eventually(lambda: counts.published.size == 0)
    assert any("of all routings together" in line for line in log_of())


def test_a_client_that_sends_too_much_is_read_again_when_half_of_it_is_done(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes, "MAX_CLIENT_LANE", 10)
    monkeypatch.setattr(lanes, "HOP_TIME", 0.0)
    may_go_on = threading.Semaphore(0)
    seen: list[str] = []

    @djmease.receiver
    def slow(message: str) -> None:
        assert may_go_on.acquire(timeout=DEADLINE)
        seen.append(message)

    server = start_server()
    client = server.connect()
    for index in range(10):
        client.send(str(index))
    (handler,) = eventually(lambda: server.call(lambda: tuple(server.server._limits.clients.values())))
    assert handler.ws_connection is not None
    eventually(lambda: not handler.ws_connection.is_reading)
    for index in range(10, 100):
        client.send(str(index))
    may_go_on.release(7)
    eventually(lambda: handler.ws_connection.is_reading or len(seen) == 7)
    may_go_on.release(93)
    eventually(lambda: len(seen) == 100)
    assert seen == [str(index) for index in range(100)]
    eventually(lambda: server.server._dispatch.heard.size == 0)


def test_a_client_that_asks_for_too_much_by_headers_is_not_read_for_a_while(
    start_server: StartServer, settings: Any
) -> None:
    settings.MEASE_MAX_MESSAGE_RATE = None
    settings.MEASE_GROUPS = {"open.*": True}
    may_go_on = threading.Event()

    @djmease.receiver
    def slow() -> None:
        assert may_go_on.wait(DEADLINE)

    server = start_server()
    client = server.connect(subprotocols=["mease.v1"])
    client.send("x")
    count = 3 * lanes.MAX_CLIENT_LANE
    for number in range(count):
        client.send(f'\x1e{{"type":"join","group":"open.1","ref":{number},"more":"{"x" * 3_000}"}}')
    (handler,) = eventually(lambda: server.call(lambda: tuple(server.server._limits.clients.values())))
    assert handler.ws_connection is not None
    eventually(lambda: not handler.ws_connection.is_reading, "a pause")
    lane = server.server._dispatch._client_lanes[handler]
    # What came with what filled the lane is in it too.
    assert len(lane) < lanes.MAX_CLIENT_LANE + 65_536 / 3_000 + 1
    assert lane.size > len(lane) * 3_000
    may_go_on.set()
    assert client.recv(5) == '\x1e{"type":"ready"}'
    for number in range(count):
        assert client.recv(5) == f'\x1e{{"type":"joined","group":"open.1","ref":{number}}}'


@pytest.mark.parametrize("bound", ["MAX_CLIENT_WAITING", "MAX_HEARD"])
def test_a_client_that_sends_too_many_bytes_is_not_read_for_a_while(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch, bound: str
) -> None:
    monkeypatch.setattr(lanes if bound == "MAX_CLIENT_WAITING" else dispatch, bound, 50_000)
    may_go_on = threading.Event()
    seen: list[str] = []

    @djmease.receiver
    def slow(message: str) -> None:
        assert may_go_on.wait(DEADLINE)
        seen.append(message)

    server = start_server()
    client = server.connect()
    (handler,) = eventually(lambda: server.call(lambda: tuple(server.server._limits.clients.values())))
    for _ in range(3):
        client.send("x" * 30_000)
    eventually(lambda: not handler.ws_connection.is_reading)
    assert server.server._dispatch.heard.size < 100_000
    may_go_on.set()
    eventually(lambda: len(seen) == 3)
    eventually(lambda: handler.ws_connection.is_reading)
    assert server.server._dispatch.heard.size == 0


def test_a_client_whose_receivers_never_come_to_what_it_sent_is_closed(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch, log_of: Log
) -> None:
    monkeypatch.setattr(lanes, "MAX_CLIENT_LANE", 5)
    monkeypatch.setattr(dispatch, "MAX_PAUSE", 0.2)
    may_go_on = threading.Event()
    events: list[str] = []

    @djmease.receiver
    def stuck(message: str) -> None:
        assert may_go_on.wait(DEADLINE)
        events.append(message)

    @djmease.closer
    def on_close() -> None:
        events.append("closed")

    server = start_server()
    client = server.connect()
    for index in range(5):
        client.send(str(index))
    with pytest.raises(ConnectionClosed) as closed:
        client.recv(DEADLINE)
    assert closed.value.rcvd is not None
    assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1013, "what you send is not handled in time")
    assert server.server._dispatch.given_up == 1
    assert any("its receivers came to none in" in line for line in log_of())
    may_go_on.set()
    eventually(lambda: events == ["0", "1", "2", "3", "4", "closed"])
    eventually(lambda: server.server._dispatch.heard.size == 0)


def test_a_client_whose_receivers_come_to_some_of_what_it_sent_is_waited_for(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes, "MAX_CLIENT_LANE", 10)
    monkeypatch.setattr(lanes, "HOP_TIME", 0.0)
    may_go_on = threading.Semaphore(0)

    @djmease.receiver
    def slow(client: Any, message: str) -> None:
        assert may_go_on.acquire(timeout=DEADLINE)
        client.write_message(message)

    server = start_server()
    client = server.connect()
    for index in range(12):
        client.send(str(index))
    (handler,) = server.server.clients.snapshot()
    dispatch_of_server, lane = server.server._dispatch, server.server._dispatch._client_lanes[handler]
    eventually(lambda: lane.pause is not None)
    for index in range(2):
        may_go_on.release()
        assert client.recv(DEADLINE) == str(index)
        eventually(lambda: lane.moves)
        server.call(lambda: dispatch_of_server._give_up(lane, handler))
        assert dispatch_of_server.given_up == 0
        assert lane.pause is not None
    server.call(lambda: dispatch_of_server._give_up(lane, handler))
    assert dispatch_of_server.given_up == 1
    may_go_on.release(10)
    with pytest.raises(ConnectionClosed):
        client.recv(DEADLINE)
    assert client.protocol.close_code == 1013


def test_a_closer_runs_while_all_other_workers_are_busy(start_server: StartServer, settings: Any) -> None:
    settings.MEASE_MAX_WORKERS = 3
    may_end = threading.Event()
    closed = threading.Event()
    running: list[int] = []

    @djmease.sender(routing="busy-*")
    def busy() -> None:
        running.append(1)
        may_end.wait(DEADLINE)

    @djmease.closer
    def on_close() -> None:
        closed.set()

    server = start_server()
    client = server.connect()
    for index in range(4):
        djmease.publish(f"busy-{index}", "")
    eventually(lambda: len(running) == 2)
    client.close()
    assert closed.wait(5)
    may_end.set()
    eventually(lambda: len(running) == 4)


def test_a_line_per_message_names_routing_id_sender_clients_and_time(
    start_server: StartServer, caplog: pytest.LogCaptureFixture, log_of: Log
) -> None:
    caplog.set_level("INFO", "djmease.traffic")

    @djmease.sender(routing="traced")
    def show(clients_list: Any) -> None:
        clients_list.send("x")

    server = start_server()
    client = server.connect()
    message_id = djmease.publish("traced", "x")
    assert client.recv(5) == "x"
    eventually(lambda: any(line.startswith(f"traced {message_id}: ") for line in log_of()))
    line = next(line for line in log_of() if line.startswith(f"traced {message_id}: "))
    assert ".show, 1 client, " in line and line.endswith(" ms")


def test_a_line_for_what_a_client_does_names_it_and_what_was_called(
    start_server: StartServer, caplog: pytest.LogCaptureFixture, settings: Any, log_of: Log
) -> None:
    caplog.set_level("INFO", "djmease.traffic")
    settings.MEASE_GROUPS = {"open.*": True}

    @djmease.receiver
    def hear(clients_list: Any) -> None: ...

    client = start_server().connect(subprotocols=["mease.v1"])
    client.send("x")
    client.send('\x1e{"type":"join","group":"open.1"}')
    assert [client.recv(5), client.recv(5)][1] == '\x1e{"type":"joined","group":"open.1"}'
    lines = eventually(lambda: (found := [line for line in log_of() if line.startswith("client ")])[1:] and found)
    assert re.fullmatch(r"client \w+: .*\.hear, \d+\.\d ms", lines[0])
    assert re.fullmatch(r"client \w+: join open\.1, \d+\.\d ms", lines[1])


def test_what_a_client_asks_for_cannot_write_a_log_line_of_its_own(
    start_server: StartServer, caplog: pytest.LogCaptureFixture, log_of: Log
) -> None:
    caplog.set_level("INFO", "djmease.traffic")
    client = start_server().connect(subprotocols=["mease.v1"])
    client.send('\x1e{"type":"join\\nERROR forged","group":"\\u001b[31m"}')
    (line,) = eventually(lambda: [line for line in log_of() if line.endswith(" ms")])
    assert re.fullmatch(r"client \w+: 'join\\nERROR forged' '\\x1b\[31m', \d+\.\d ms", line)


def test_a_routing_without_a_sender_is_named_in_the_traffic(
    start_server: StartServer, caplog: pytest.LogCaptureFixture, settings: Any, log_of: Log
) -> None:
    caplog.set_level("INFO", "djmease.traffic")
    settings.MEASE_STRICT_ROUTING = False
    start_server()
    message_id = djmease.publish("nobody", "x")
    eventually(lambda: f"nobody {message_id}: no sender" in log_of())


def test_lanes_vanish_when_they_are_empty(start_server: StartServer, settings: Any) -> None:
    seen: list[Any] = []

    @djmease.sender
    def show(message: Any) -> None:
        seen.append(message)

    server = start_server()
    client = server.connect()
    for index in range(500):
        djmease.publish(f"routing-{index}", index)
    client.close()
    eventually(lambda: len(seen) == 500)
    eventually(lambda: server.call(lambda: server.server._dispatch._idle.is_set()))
    assert server.server._dispatch._routings == server.server._dispatch._client_lanes == {}
