"""How much a client may do, and what it is told where that is too much."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any

import pytest
from tornado.iostream import IOStream
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

import djmease
from djmease.server.limits import Limits, counted_as
from djmease.server.protocol import CLOSE, CONTINUATION, PONG, TEXT
from tests.support import DEADLINE, LiveServer, eventually, masked_frame
from tests.test_hostile import RawClient

StartServer = Callable[[], LiveServer]
Log = Callable[[], list[str]]


@pytest.fixture
def echo() -> None:
    @djmease.receiver
    async def answer(client: Any, message: Any) -> None:
        client.write_message(message)


def refused(server: LiveServer, **headers: str) -> tuple[int, str]:
    with pytest.raises(InvalidStatus) as caught, connect(server.url, additional_headers=headers):
        pass
    return caught.value.response.status_code, (caught.value.response.body or b"").decode()


@pytest.mark.usefixtures("echo")
def test_who_sends_too_many_messages_is_closed_with_4429_and_the_others_notice_nothing(
    start_server: StartServer, settings: Any, log_of: Log
) -> None:
    settings.MEASE_MAX_MESSAGE_RATE, settings.MEASE_MAX_MESSAGE_BURST = 10, 20
    server = start_server()
    loud, quiet = server.connect(), server.connect()
    with pytest.raises(ConnectionClosed) as caught:
        for number in range(1000):
            loud.send(str(number))
        while True:
            loud.recv(DEADLINE)
    assert caught.value.rcvd is not None
    assert (caught.value.rcvd.code, caught.value.rcvd.reason) == (4429, "you send too many messages")
    quiet.send("still here")
    assert quiet.recv(DEADLINE) == "still here"
    assert any("MEASE_MAX_MESSAGE_RATE" in line for line in log_of())
    assert server.server._limits.refused["messages"] == 1


@pytest.mark.usefixtures("echo")
def test_a_whole_burst_is_taken_at_once(start_server: StartServer, settings: Any) -> None:
    settings.MEASE_MAX_MESSAGE_RATE, settings.MEASE_MAX_MESSAGE_BURST = 1, 50
    client = start_server().connect()
    for number in range(50):
        client.send(str(number))
    assert [client.recv(DEADLINE) for _ in range(50)] == [str(number) for number in range(50)]


@pytest.mark.usefixtures("echo")
def test_a_client_may_go_on_for_ever_at_the_rate(start_server: StartServer, settings: Any) -> None:
    settings.MEASE_MAX_MESSAGE_RATE, settings.MEASE_MAX_MESSAGE_BURST = 500, 2
    client = start_server().connect()
    for number in range(100):
        began = time.monotonic()
        client.send(str(number))
        assert client.recv(DEADLINE) == str(number)
        eventually(lambda began=began: time.monotonic() >= began + 0.002)


def test_who_was_not_read_for_a_while_has_sent_at_its_rate_meanwhile(start_server: StartServer, settings: Any) -> None:
    settings.MEASE_MAX_MESSAGE_RATE, settings.MEASE_MAX_MESSAGE_BURST = 1000, 250
    may_go_on = threading.Event()

    @djmease.receiver
    def slow(client: Any, message: Any) -> None:
        may_go_on.wait(DEADLINE)
        client.write_message(message)

    server = start_server()
    client = server.connect()
    connection = server.server.clients.snapshot()[0].ws_connection
    assert connection is not None
    for number in range(220):
        client.send(str(number))
    eventually(lambda: not connection.is_reading, "a pause")
    paused_at = time.monotonic()
    eventually(lambda: time.monotonic() >= paused_at + 0.5)
    for number in range(220, 570):
        client.send(str(number))
    may_go_on.set()
    assert [client.recv(DEADLINE) for _ in range(570)] == [str(number) for number in range(570)]
    # From then on it is as before.
    with pytest.raises(ConnectionClosed):
        for _ in range(10_000):
            client.ping()
        client.recv(DEADLINE)
    assert client.protocol.close_code == 4429


@pytest.mark.usefixtures("echo")
def test_pings_are_counted_as_messages_are(start_server: StartServer, settings: Any) -> None:
    settings.MEASE_MAX_MESSAGE_RATE, settings.MEASE_MAX_MESSAGE_BURST = 1, 20
    client = start_server().connect()
    with pytest.raises(ConnectionClosed):
        for _ in range(1000):
            client.ping()
        client.recv(DEADLINE)
    assert client.protocol.close_code == 4429


@pytest.mark.usefixtures("echo")
@pytest.mark.parametrize(
    ("opcode", "first", "payload"),
    [(PONG, None, b""), (CONTINUATION, CONTINUATION, b""), (CONTINUATION, CONTINUATION, b"x" * 20)],
    ids=["pongs", "empty fragments", "small fragments"],
)
def test_frames_that_are_no_messages_are_counted_as_messages_are(
    start_server: StartServer, settings: Any, opcode: int, first: int | None, payload: bytes
) -> None:
    settings.MEASE_MAX_MESSAGE_RATE, settings.MEASE_MAX_MESSAGE_BURST = 1, 20
    with RawClient(start_server()).shake_hands() as client:
        if opcode == CONTINUATION:
            client.socket.sendall(masked_frame(TEXT, b"", first=TEXT))
        with suppress(ConnectionError):
            client.socket.sendall(masked_frame(opcode, payload, first=first) * 1000)
        assert client.frame() == (CLOSE, (4429).to_bytes(2) + b"you send too many messages")


@pytest.mark.usefixtures("echo")
def test_a_long_message_in_fragments_of_a_kilobyte_is_one_message(start_server: StartServer, settings: Any) -> None:
    settings.MEASE_MAX_MESSAGE_RATE, settings.MEASE_MAX_MESSAGE_BURST = 1, 20
    client = start_server().connect()
    client.send(["x" * 1024] * 50)
    assert client.recv(DEADLINE) == "x" * 1024 * 50


def test_no_limit_is_none(start_server: StartServer, settings: Any) -> None:
    settings.MEASE_MAX_MESSAGE_RATE = settings.MEASE_MAX_CONNECTIONS = None
    settings.MEASE_MAX_CONNECTIONS_PER_USER = settings.MEASE_MAX_CONNECTIONS_PER_ADDRESS = None
    heard: list[Any] = []

    @djmease.receiver
    async def hear(message: Any) -> None:
        heard.append(message)

    client = start_server().connect()
    for number in range(2000):
        client.send(str(number))
    eventually(lambda: len(heard) == 2000)


def test_more_connections_than_there_may_be_are_answered_with_503_and_one_that_ends_makes_room(
    start_server: StartServer, settings: Any, log_of: Log
) -> None:
    settings.MEASE_MAX_CONNECTIONS = 2
    server = start_server()
    first = server.connect()
    server.connect()
    status, text = refused(server)
    assert status == 503 and "MEASE_MAX_CONNECTIONS" in text
    assert any("503" in line for line in log_of())
    first.close()
    eventually(lambda: len(server.server.clients) == 1)
    eventually(lambda: len(server.server._limits.clients) == 1)
    server.connect()


asked: list[Any] = []


def counts_questions(request: Any) -> None:
    asked.append(request)


@pytest.fixture
def counted_questions(settings: Any) -> list[Any]:
    """Returns what authenticators were asked: handshakes for which a session would be read."""
    settings.MEASE_AUTHENTICATORS = [f"{__name__}.counts_questions", "djmease.authenticators.session"]
    asked.clear()
    return asked


def test_a_flood_at_the_limit_of_connections_asks_no_database(
    start_server: StartServer, settings: Any, counted_questions: list[Any]
) -> None:
    settings.MEASE_MAX_CONNECTIONS = 1
    server = start_server()
    server.connect()
    assert len(counted_questions) == 1
    for _ in range(50):
        status, _text = refused(server, Cookie="sessionid=" + 32 * "x")
        assert status == 503
    assert len(counted_questions) == 1
    assert server.server._limits.refused == {"connections": 50}


def test_a_flood_from_one_address_asks_no_database_and_others_get_in(
    start_server: StartServer, settings: Any, counted_questions: list[Any]
) -> None:
    settings.MEASE_MAX_CONNECTIONS_PER_ADDRESS = 1
    settings.MEASE_TRUSTED_PROXIES = ["127.0.0.1"]
    server = start_server()
    server.connect(additional_headers={"X-Forwarded-For": "192.0.2.1"})
    for _ in range(50):
        status, text = refused(server, Cookie="sessionid=" + 32 * "x", **{"X-Forwarded-For": "192.0.2.1"})
        assert status == 429 and "192.0.2.1" in text
    assert len(counted_questions) == 1
    assert server.server._limits.refused == {"address": 50}
    server.connect(additional_headers={"X-Forwarded-For": "192.0.2.2"})
    assert len(counted_questions) == 2


def test_those_that_come_at_once_for_the_last_place_are_counted_when_they_are_known(
    start_server: StartServer, settings: Any
) -> None:
    settings.MEASE_AUTHENTICATORS = [f"{__name__}.waits_for_the_other"]
    settings.MEASE_MAX_CONNECTIONS = 1
    server = start_server()
    statuses: list[int] = []

    def come() -> None:
        try:
            with connect(server.url) as connection:
                statuses.append(101)
                meeting.wait(DEADLINE)
                assert connection.protocol.state.name == "OPEN"
        except InvalidStatus as refusal:
            statuses.append(refusal.response.status_code)
            meeting.wait(DEADLINE)

    threads = [threading.Thread(target=come) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    assert sorted(statuses) == [101, 503]
    assert server.server._limits.refused == {"connections": 1}


meeting = threading.Barrier(2)


def waits_for_the_other(request: Any) -> None:
    meeting.wait(DEADLINE)


class Somebody:
    def __init__(self, name: str, user_key: str | None = None, address: str = "192.0.2.1") -> None:
        self.id, self.user_key, self.address = name, user_key, address


def limits(**options: Any) -> Limits[Somebody]:
    unlimited: dict[str, Any] = {"connections": None, "per_user": None, "per_address": None, "message_rate": None}
    return Limits(**{**unlimited, "message_burst": 1, **options})


def test_users_are_counted_each_for_itself_and_nobody_is_not_counted(log_of: Log) -> None:
    counted = limits(per_user=1)
    ada = Somebody("1", "7")
    counted.enter(ada)
    counted.enter(Somebody("2"))
    counted.enter(Somebody("3"))
    refusal = counted.refusal("192.0.2.1", "7")
    assert refusal is not None and refusal.status == 429 and "MEASE_MAX_CONNECTIONS_PER_USER" in refusal.reason
    assert counted.refusal("192.0.2.1", "8") is None
    assert counted.refusal("192.0.2.1", None) is None
    ada.user_key = None  # It has logged out meanwhile, and is still counted as who it was.
    counted.leave(ada)
    assert counted.refusal("192.0.2.1", "7") is None
    assert counted.of_user("7") == ()
    assert any("a handshake from 192.0.2.1, of the user 7, is refused with 429: this user" in line for line in log_of())


def test_addresses_are_counted_but_for_those_of_this_machine_where_a_proxy_stands() -> None:
    counted = limits(per_address=1)
    counted.enter(Somebody("1", address="192.0.2.1"))
    counted.enter(Somebody("2", address="127.0.0.1"))
    refusal = counted.refusal("192.0.2.1", None)
    assert refusal is not None and refusal.status == 429 and "MEASE_MAX_CONNECTIONS_PER_ADDRESS" in refusal.reason
    assert counted.refusal("192.0.2.2", None) is None
    assert counted.refusal("127.0.0.1", None) is None


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8::1", "2001:db8::/64"),
        ("2001:db8:0:0:1234:5678:9abc:def0", "2001:db8::/64"),
        ("2001:db8:0:1::1", "2001:db8:0:1::/64"),
        ("127.0.0.1", None),
        ("::ffff:127.0.0.1", None),
        ("::1", None),
        ("0.0.0.0", None),
        ("", None),
    ],
)
def test_as_what_addresses_are_counted(address: str, expected: str | None) -> None:
    assert counted_as(address) == expected


def test_a_network_of_one_host_counted_as_as_one() -> None:
    counted = limits(per_address=2)
    for number in range(2):
        counted.enter(Somebody(str(number), address=f"2001:db8::{number}"))
    assert counted.refusal("2001:db8::abcd", None) is not None
    assert counted.refusal("2001:db8:0:1::", None) is None


def test_unfinished_handshakes_of_one_address_leave_room_for_others(
    start_server: StartServer, settings: Any, log_of: Callable[[], list[str]]
) -> None:
    settings.MEASE_MAX_CONNECTIONS_PER_ADDRESS = 3
    settings.MEASE_TRUSTED_PROXIES = ["192.0.2.99"]
    server = start_server()
    http = server.server._http
    with ExitStack() as stack:
        listening = stack.enter_context(socket.create_server(("127.0.0.1", 0)))

        def come(address: str) -> socket.socket:
            """Connect as from another address: what comes to the loopback has one."""
            client = stack.enter_context(socket.create_connection(listening.getsockname(), timeout=DEADLINE))
            accepted, _ = listening.accept()
            server.call(lambda: http.handle_stream(IOStream(accepted), (address, 12345)))
            return client

        def is_closed(client: socket.socket) -> bool:
            client.setblocking(False)
            try:
                return client.recv(1) == b""
            except BlockingIOError:
                return False

        flood = [come("192.0.2.1") for _ in range(3)]
        too_many = come("192.0.2.1")
        eventually(lambda: is_closed(too_many), "the end of the fourth")
        assert any("3 handshakes from 192.0.2.1 are unfinished" in line for line in log_of())
        others = [come("192.0.2.2"), *(come("192.0.2.99") for _ in range(5))]
        assert not any(map(is_closed, [*flood, *others]))
        flood.pop().close()
        eventually(lambda: not http._unfinished["192.0.2.1"] > 2, "that one is forgotten")
        assert not is_closed(come("192.0.2.1"))
    eventually(lambda: not +http._unfinished, "that all are")


def test_what_has_gone_is_forgotten() -> None:
    counted = limits(per_user=5, per_address=5)
    everybody = [Somebody(str(number), str(number % 3), f"192.0.2.{number % 5}") for number in range(50)]
    for somebody in everybody:
        counted.enter(somebody)
    for somebody in everybody:
        counted.leave(somebody)
    assert not counted.clients and not counted._users and not counted._addresses and not counted._counted_as
