"""``Client``, as callbacks hold it: what it writes, how it closes, and that it goes when its connection has gone."""

from __future__ import annotations

import asyncio
import gc
import json
import re
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from tornado.websocket import WebSocketHandler
from websocket import ABNF, create_connection
from websockets.exceptions import ConnectionClosed

import djmease
from djmease.server.client import Client
from djmease.server.protocol import BINARY, CLOSE, PING, PONG, TEXT
from tests.support import DEADLINE, LiveServer, eventually, masked_frame
from tests.test_hostile import RawClient
from tests.test_outbox import MESSAGES

StartServer = Callable[[], LiveServer]
Log = Callable[[], list[str]]


@pytest.fixture
def opened() -> list[Client]:
    """Registers an opener; returns the clients that it has seen."""
    clients: list[Client] = []

    @djmease.opener
    def remember(client: Client) -> None:
        clients.append(client)

    return clients


def run_in_receiver(function: Callable[[Any], Any]) -> list[Any]:
    """Register a ``def`` receiver that runs ``function`` with the client; returns what that has returned or raised."""
    outcomes: list[Any] = []

    @djmease.receiver
    def receive(client: Any) -> None:
        try:
            outcomes.append(function(client))
        except Exception as error:
            outcomes.append(error)

    return outcomes


# Writing


@pytest.mark.parametrize("kind", ["def", "async def", "send", "clients_list.send"])
def test_every_kind_of_message_arrives_as_it_should(start_server: StartServer, kind: str) -> None:
    if kind == "async def":

        @djmease.receiver
        async def write_async(client: Any) -> None:
            for message, *_ in MESSAGES:
                await client.write_message(message)

    else:

        @djmease.receiver
        def write(client: Any, clients_list: Any) -> None:
            for message, *_ in MESSAGES:
                if kind == "clients_list.send":
                    clients_list.send(message)
                elif kind == "send":
                    client.send(message)
                else:
                    client.write_message(message)

    with RawClient(start_server()).shake_hands() as client:
        client.send(TEXT, b"go")
        assert [client.frame() for _ in MESSAGES] == [(opcode, payload) for _, opcode, payload in MESSAGES]


def test_text_goes_as_a_binary_frame_where_that_is_asked_for(start_server: StartServer) -> None:
    def write(client: Any) -> None:
        client.write_message("text", binary=True)
        client.write_message("text")
        client.write_message({"a": 1}, True)
        client.write_message(b"bytes", binary=False)

    run_in_receiver(write)
    with RawClient(start_server()).shake_hands() as client:
        client.send(TEXT, b"go")
        expected = [(BINARY, b"text"), (TEXT, b"text"), (BINARY, b'{"a":1}'), (BINARY, b"bytes")]
        assert [client.frame() for _ in expected] == expected


def test_a_message_that_changes_between_two_writes_is_written_as_it_is_at_each(start_server: StartServer) -> None:
    def write(client: Any) -> None:
        message = {"n": 0}
        for number in range(3):
            message["n"] = number
            client.write_message(message)

    run_in_receiver(write)
    client = start_server().connect()
    client.send("go")
    assert [client.recv(DEADLINE) for _ in range(3)] == ['{"n":0}', '{"n":1}', '{"n":2}']


def test_writing_returns_one_shared_awaitable_that_has_nothing_to_wait_for(start_server: StartServer) -> None:
    outcomes: list[Any] = []

    @djmease.receiver
    async def write(client: Any) -> None:
        first, second = client.write_message("one"), client.send("two")
        outcomes.append((first is second, await first, await first))
        client.close()
        outcomes.append(await client.write_message("in vain"))

    client = start_server().connect()
    client.send("go")
    assert [client.recv(DEADLINE), client.recv(DEADLINE)] == ["one", "two"]
    eventually(lambda: len(outcomes) == 2)
    assert outcomes == [(True, None, None), None]


def test_what_cannot_be_written_raises_in_the_callback_and_is_logged_and_hurts_nobody(
    start_server: StartServer, log_of: Log
) -> None:
    @djmease.receiver
    def write_rubbish(client: Any, message: str) -> None:
        client.write_message({"text": object()} if message == "object" else float("nan"))

    @djmease.receiver
    async def write_rubbish_async(client: Any) -> None:
        await client.write_message({1, 2})

    @djmease.receiver
    def write_well(client: Any) -> None:
        client.write_message("fine")

    server = start_server()
    client = server.connect()
    for message in ("object", "nan"):
        client.send(message)
        assert client.recv(DEADLINE) == "fine"
    lines = log_of()
    assert len([line for line in lines if "write_rubbish raised TypeError" in line]) == 1
    assert len([line for line in lines if "write_rubbish raised ValueError" in line]) == 1
    assert len([line for line in lines if "write_rubbish_async raised TypeError" in line]) == 2


def test_threads_of_ones_own_may_write(start_server: StartServer, opened: list[Client]) -> None:
    server = start_server()
    client = server.connect()
    eventually(lambda: opened)

    def write(writer: int) -> None:
        for number in range(200):
            opened[0].write_message([writer, number])

    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(write, writer) for writer in range(4)]:
            future.result(DEADLINE)
    received = [json.loads(client.recv(DEADLINE)) for _ in range(800)]
    for writer in range(4):
        assert [pair[1] for pair in received if pair[0] == writer] == list(range(200))


@pytest.mark.parametrize("size", [125, 126, 65535, 65536, 60_000, 1_000_000])
def test_other_libraries_send_and_get_messages_of_every_width(
    start_server: StartServer, settings: Any, size: int
) -> None:
    settings.MEASE_MAX_MESSAGE_SIZE = 2_000_000

    @djmease.receiver
    def echo(client: Any, message: Any) -> None:
        client.write_message(message)

    server = start_server()
    connection = server.connect()
    for message in ("ü" * (size // 2), b"\xff" * size):
        connection.send(message)
        assert connection.recv(DEADLINE) == message
    other = create_connection(server.url, timeout=DEADLINE)
    try:
        other.send_binary(b"\x00" * size)
        assert other.recv() == b"\x00" * size
        other.send("x" * size)
        assert other.recv() == "x" * size
    finally:
        other.close()


# Closing


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_a_close_arrives_behind_all_that_was_written(start_server: StartServer, kind: str) -> None:
    def write_and_close(client: Any) -> None:
        for number in range(300):
            client.write_message(f"{number}" if number % 2 else f"{number}".encode())
        client.write_message("x" * 500_000)
        client.close(4321, "the end")

    @djmease.receiver
    def receive(client: Any) -> None:
        if kind == "def":
            write_and_close(client)

    @djmease.receiver
    async def receive_async(client: Any) -> None:
        if kind == "async def":
            write_and_close(client)

    server = start_server()
    for _ in range(5):
        client = server.connect()
        client.send("go")
        for number in range(300):
            assert client.recv(DEADLINE) == (f"{number}" if number % 2 else f"{number}".encode())
        assert client.recv(DEADLINE) == "x" * 500_000
        with pytest.raises(ConnectionClosed) as caught:
            client.recv(DEADLINE)
        assert caught.value.rcvd is not None
        assert (caught.value.rcvd.code, caught.value.rcvd.reason) == (4321, "the end")


@pytest.mark.parametrize(
    ("arguments", "payload"),
    [
        ((), b""),
        ((1000,), b"\x03\xe8"),
        ((None, "a reason alone"), b"\x03\xe8a reason alone"),
        ((4999, "€" * 100), b"\x13\x87" + "€".encode() * 41),
        ((3000, None), b"\x0b\xb8"),
        ((1013, ""), b"\x03\xf5"),
    ],
)
def test_the_close_frame_carries_the_code_and_as_much_of_the_reason_as_fits(
    start_server: StartServer, arguments: tuple[Any, ...], payload: bytes
) -> None:
    outcomes = run_in_receiver(lambda client: client.close(*arguments))
    with RawClient(start_server()).shake_hands() as client:
        client.send(TEXT, b"go")
        assert client.frame() == (CLOSE, payload)
        client.send(CLOSE)
        assert client.frame() is None
    eventually(lambda: outcomes)
    assert outcomes == [None]


@pytest.mark.parametrize("code", [-1, 0, 1, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65535, 70000, 10**9])
def test_a_code_that_may_not_be_sent_raises_and_closes_nothing(start_server: StartServer, code: int) -> None:
    outcomes = run_in_receiver(lambda client: client.close(code, "x"))
    with RawClient(start_server()).shake_hands() as client:
        client.send(TEXT, b"go")
        eventually(lambda: outcomes)
        assert isinstance(outcomes[0], ValueError)
        assert repr(code) in str(outcomes[0]) and "3000 to 4999" in str(outcomes[0])
        client.send(PING, b"still there")
        assert client.frame() == (PONG, b"still there")


@pytest.mark.parametrize("arguments", [("1000",), (1000.5,), (1000, b"bytes"), (1000, 5), ([],)])
def test_a_close_of_the_wrong_types_raises_in_the_callback_and_not_on_the_loop(
    start_server: StartServer, log_of: Log, arguments: tuple[Any, ...]
) -> None:
    """An error on the loop is seen by nobody, and the connection that should be closed stays."""
    outcomes = run_in_receiver(lambda client: client.close(*arguments))
    with RawClient(start_server()).shake_hands() as client:
        client.send(TEXT, b"go")
        eventually(lambda: outcomes)
        client.send(PING, b"")
        assert client.frame() == (PONG, b"")
    assert isinstance(outcomes[0], TypeError | ValueError)
    assert not any("Exception in callback" in line for line in log_of())


def test_what_a_callback_writes_behind_its_close_is_not_sent(start_server: StartServer) -> None:
    """Somebody who is thrown out does not get what the same callback then writes to all."""

    def throw_out(client: Any) -> None:
        client.write_message("go away")
        client.close(4003)
        for _ in range(100):
            client.write_message("a secret")

    outcomes = run_in_receiver(throw_out)
    server = start_server()
    for number in range(20):
        with RawClient(server).shake_hands() as client:
            client.send(TEXT, b"go")
            assert client.frame() == (TEXT, b"go away")
            assert client.frame() == (CLOSE, b"\x0f\xa3")
            client.send(CLOSE)
            assert client.frame() is None
        eventually(lambda number=number: len(outcomes) > number)  # type: ignore[misc]
    assert outcomes == [None] * 20


def call_everything(client: Any) -> None:
    """Call what callbacks may call of a client."""
    client.write_message("text")
    client.write_message(b"bytes")
    client.send({"a": 1})
    client.ping(b"x")
    client.set_nodelay(True)
    assert client.selected_subprotocol is None
    assert client.request.path == "/"
    assert client.get_query_argument("q", "none") == "none"
    assert client.get_cookie("c") is None
    assert isinstance(repr(client), str) and len(client.id) == 16
    client.storage["x"] = 1
    client.close()
    client.close(1000, "again")


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_all_of_a_clients_methods_may_be_called_in_every_callback(
    start_server: StartServer, log_of: Log, kind: str
) -> None:
    ran: list[str] = []
    # An async callback runs on the loop, a def in a thread.
    for decorator, name in ((djmease.opener, "opener"), (djmease.receiver, "receiver"), (djmease.closer, "closer")):
        if kind == "def":

            @decorator  # type: ignore[arg-type]
            def call(client: Any, name: str = name) -> None:
                if name != "opener":
                    call_everything(client)
                ran.append(name)

        else:

            @decorator  # type: ignore[arg-type]
            async def call_async(client: Any, name: str = name) -> None:
                if name != "opener":
                    call_everything(client)
                ran.append(name)

    with RawClient(start_server()).shake_hands() as client:
        client.send(TEXT, b"go")
        received = []
        while (frame := client.frame()) is not None:
            received.append(frame)
            if frame[0] == CLOSE:
                client.send(CLOSE)
    assert received == [(TEXT, b"text"), (BINARY, b"bytes"), (TEXT, b'{"a":1}'), (PING, b"x"), (CLOSE, b"")]
    eventually(lambda: "closer" in ran or any("raised" in line for line in log_of()))
    assert not [line for line in log_of() if "raised" in line]
    assert ran == ["opener", "receiver", "closer"]


def test_a_client_that_has_gone_takes_everything_without_an_error(
    start_server: StartServer, opened: list[Client]
) -> None:
    server = start_server()
    with RawClient(server).shake_hands() as raw:
        eventually(lambda: opened)
        raw.reset()
    eventually(lambda: opened[0].ws_connection is None)
    opened[0].write_message("in vain")
    opened[0].send(b"in vain")
    opened[0].close()
    opened[0].close(4000, "in vain")
    opened[0].ping()
    server.call(lambda: opened[0].write_message("on the loop"))
    server.call(lambda: opened[0].close())
    server.stop()
    opened[0].write_message("after the server")
    opened[0].close()


def test_a_client_of_a_server_that_has_ended_takes_everything_without_an_error(
    start_server: StartServer, opened: list[Client]
) -> None:
    server = start_server()
    server.connect()
    eventually(lambda: opened)
    server.stop()
    opened[0].write_message("in vain")
    opened[0].close()
    opened[0].ping()


def test_what_belongs_to_http_raises_and_hurts_nothing(start_server: StartServer) -> None:
    def misuse(client: Any) -> list[str]:
        raised = []
        for name, arguments in [
            ("finish", ("x",)),
            ("write", ("x",)),
            ("redirect", ("/",)),
            ("render", ("x.html",)),
            ("flush", ()),
        ]:
            try:
                getattr(client, name)(*arguments)
            except Exception:
                raised.append(name)
        return raised

    outcomes = run_in_receiver(misuse)
    with RawClient(start_server()).shake_hands() as client:
        client.send(TEXT, b"go")
        eventually(lambda: outcomes)
        assert outcomes == [["finish", "write", "redirect", "render", "flush"]]
        client.send(PING, b"unhurt")
        assert client.frame() == (PONG, b"unhurt")


# What it is


def test_a_client_is_a_tornado_handler_with_its_request_an_id_and_a_storage(
    start_server: StartServer, opened: list[Client]
) -> None:
    seen: list[Any] = []

    @djmease.receiver
    def count(client: Any, message: str) -> None:
        client.storage["count"] = client.storage.get("count", 0) + 1
        seen.append((client.id, client.storage["count"], client.get_query_argument("room")))

    @djmease.closer
    async def end(client: Any) -> None:
        seen.append((client.id, client.storage["count"], "end"))

    server = start_server()
    one, two = server.connect("chat/?room=red"), server.connect("?room=blue", additional_headers={"Cookie": "a=b"})
    eventually(lambda: len(opened) == 2)
    for connection in (one, two, one):
        before = len(seen)
        connection.send("x")
        eventually(lambda before=before: len(seen) > before)  # type: ignore[misc]
    one.close()
    eventually(lambda: len(seen) == 4)
    first, second = opened
    assert seen == [(first.id, 1, "red"), (second.id, 1, "blue"), (first.id, 2, "red"), (first.id, 2, "end")]
    assert isinstance(first, WebSocketHandler) and isinstance(first, djmease.Client)
    assert first.request.path == "/chat/"
    assert second.get_cookie("a") == "b"
    assert first.id != second.id and re.fullmatch(r"[0-9a-f]{16}", first.id)
    assert repr(first) == f"<Client {first.id} from 127.0.0.1>"
    assert len({first, second, first}) == 2


def test_closers_learn_with_what_the_client_has_closed(start_server: StartServer) -> None:
    seen: list[Any] = []

    @djmease.closer
    def end(client: Any) -> None:
        seen.append((client.close_code, client.close_reason))

    server = start_server()
    for index, (payload, expected) in enumerate(
        [(b"", (None, None)), (b"\x03\xe9", (1001, None)), (b"\x0f\xa0why", (4000, "why"))], start=1
    ):
        with RawClient(server).shake_hands() as client:
            client.send(CLOSE, payload)
            assert list(client.frames())[-1] == (CLOSE, payload[:2])
        eventually(lambda index=index: len(seen) == index)  # type: ignore[misc]
        assert seen[-1] == expected


def test_a_client_is_pinged_by_hand(start_server: StartServer) -> None:
    def ping(client: Any) -> None:
        client.ping()
        client.ping("tëxt")
        client.ping(b"x" * 125)
        for too_long in (b"x" * 126, "é" * 63):
            with pytest.raises(ValueError, match="125 bytes, not 126"):
                client.ping(too_long)
        client.write_message("behind")

    outcomes = run_in_receiver(ping)
    server = start_server()
    with RawClient(server).shake_hands() as client:
        client.send(TEXT, b"go")
        received = [client.frame() for _ in range(4)]
        # A ping is no message: it may overtake or follow what a thread writes.
        assert [frame for frame in received if frame and frame[0] == PING] == [
            (PING, b""),
            (PING, "tëxt".encode()),
            (PING, b"x" * 125),
        ]
        assert (TEXT, b"behind") in received
    eventually(lambda: outcomes)
    assert outcomes == [None]
    other = create_connection(server.url, timeout=DEADLINE)
    try:
        other.send("go")
        assert other.recv_data_frame(control_frame=True)[0] == ABNF.OPCODE_PING
    finally:
        other.close()


def test_no_subprotocol_is_selected_and_one_that_is_offered_is_no_error(start_server: StartServer) -> None:
    server = start_server()
    connection = server.connect(subprotocols=["chat", "other"])
    assert connection.subprotocol is None


def test_a_subprotocol_that_a_handler_selects_is_agreed_on(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch, opened: list[Client]
) -> None:
    monkeypatch.setattr(Client, "select_subprotocol", lambda self, names: names[-1])
    connection = start_server().connect(subprotocols=["chat", "other"])
    assert connection.subprotocol == "other"
    eventually(lambda: opened)
    assert opened[0].selected_subprotocol == "other"


# That it goes


def leave(client: RawClient, kind: str) -> None:
    if kind == "close":
        client.send(CLOSE, b"\x03\xe8")
        list(client.frames())
    elif kind == "violation":
        client.send(3)
        list(client.frames())
    elif kind == "reset":
        client.reset()


def assert_freed(start_server: StartServer, kind: str, messages: int, count: int = 3) -> None:
    """Assert that all clients are freed some seconds after they have gone, while the server goes on without work."""
    server = start_server()
    clients: list[weakref.ref[Client]] = []
    with_messages = b"".join(masked_frame(TEXT, b"x") for _ in range(messages))
    for number in range(count):
        with RawClient(server, with_messages).shake_hands() as raw:
            for _ in range(messages):
                assert raw.frame() == (TEXT, b"x")
            eventually(lambda: len(server.server.clients) == 1)
            clients.extend(
                weakref.ref(client) for client in server.call(lambda: tuple(server.server._limits.clients.values()))
            )
            assert len(clients) == number + 1
            leave(raw, kind)
        eventually(lambda: len(server.server.clients) == 0)

    def are_freed() -> bool:
        gc.collect()
        return not any(reference() for reference in clients)

    eventually(are_freed, "being freed", timeout=3)


@pytest.mark.parametrize("kind", ["close", "violation", "reset", "fin"])
def test_a_client_is_freed_soon_after_its_connection_has_gone(
    start_server: StartServer, settings: Any, kind: str
) -> None:
    settings.MEASE_PING_INTERVAL = settings.MEASE_PING_TIMEOUT = 0.1
    assert_freed(start_server, kind, messages=0)


def test_a_client_is_freed_before_its_next_ping_would_be_due(start_server: StartServer) -> None:
    """With the default interval, whoever came and went would be kept for half a minute."""
    assert_freed(start_server, "close", messages=0)


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_a_client_is_freed_that_callbacks_have_seen(start_server: StartServer, settings: Any, kind: str) -> None:
    settings.MEASE_PING_INTERVAL = settings.MEASE_PING_TIMEOUT = 0.1
    if kind == "def":

        @djmease.opener
        @djmease.closer
        def note(client: Any, clients_list: Any) -> None: ...

        @djmease.receiver
        def echo(client: Any, clients_list: Any, message: str) -> None:
            clients_list.send(message)

    else:

        @djmease.opener
        @djmease.closer
        async def note_async(client: Any, clients_list: Any) -> None: ...

        @djmease.receiver
        async def echo_async(client: Any, clients_list: Any, message: str) -> None:
            clients_list.send(message)

    assert_freed(start_server, "close", messages=3)


def test_a_client_is_freed_that_was_in_the_last_clients_list(start_server: StartServer, settings: Any) -> None:
    """There is no closer here that would ask for a newer list."""
    settings.MEASE_PING_INTERVAL = settings.MEASE_PING_TIMEOUT = 0.1

    @djmease.receiver
    async def echo(clients_list: Any, message: str) -> None:
        clients_list.send(message)

    assert_freed(start_server, "close", messages=1)


def test_a_finished_client_leaves_no_task_and_no_timer(start_server: StartServer) -> None:
    server = start_server()

    def state() -> tuple[int, int]:
        loop: Any = server.loop
        return len(asyncio.all_tasks(loop)), len([timer for timer in loop._scheduled if not timer.cancelled()])

    # Timers and tasks of the server's own come and go; those of twenty clients would be more.
    (tasks, timers), threads = server.call(state), threading.active_count()
    for _ in range(20):
        with RawClient(server).shake_hands() as client:
            client.send(CLOSE, b"\x03\xe8")
            list(client.frames())
    eventually(lambda: len(server.server.clients) == 0)
    eventually(lambda: (now := server.call(state))[0] < tasks + 10 and now[1] < timers + 10)
    # Others of this process may end meanwhile; workers of the server stay, and are few.
    assert threading.active_count() < threads + 20
