"""A real server and clients that do wrong: each gets its clear answer, and nobody else notices anything."""

from __future__ import annotations

import logging
import os
import random
import re
import select
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from types import ModuleType, TracebackType
from typing import Any

import pytest
from django.contrib.sessions.backends.signed_cookies import SessionStore
from websockets.frames import Frame
from websockets.streams import StreamReader

import djmease
from djmease.server import protocol as protocol_module
from djmease.server.protocol import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT
from tests.support import DEADLINE, HANDSHAKE, LiveServer, eventually, masked_frame

StartServer = Callable[[], LiveServer]
Log = Callable[[], list[str]]


class RawClient:
    """A WebSocket client that does whatever it is told, on a plain socket; another library reads its frames."""

    def __init__(
        self, server: LiveServer, more: bytes = b"", *, handshake: bytes = HANDSHAKE, receive_buffer: int | None = None
    ) -> None:
        self.socket = socket.socket()
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(DEADLINE)
        self.socket.connect(("127.0.0.1", server.port))
        self._reader = StreamReader()
        if handshake:
            self.socket.sendall(handshake + more)

    def __enter__(self) -> RawClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.socket.close()

    def shake_hands(self) -> RawClient:
        """Read the answer to the handshake, and nothing behind it."""
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            byte = self.socket.recv(1)
            assert byte, f"the connection ended behind {head!r}"
            head += byte
        assert head.startswith(b"HTTP/1.1 101 "), head
        return self

    def send(self, opcode: int, payload: bytes = b"", *, first: int | None = None) -> None:
        self.socket.sendall(masked_frame(opcode, payload, first=first))

    def frame(self) -> tuple[int, bytes] | None:
        """Return the next frame's opcode and payload, or ``None`` for a clean end; a reset raises."""
        parsing = Frame.parse(self._reader.read_exact, mask=False)
        while True:
            try:
                next(parsing)
            except StopIteration as done:
                assert done.value.fin
                return int(done.value.opcode), bytes(done.value.data)
            data = self.socket.recv(65536)
            if not data:
                assert not self._reader.buffer, "the connection ended within a frame"
                return None
            self._reader.feed_data(data)

    def frames(self) -> Iterator[tuple[int, bytes]]:
        """Yield everything up to a clean end."""
        while (received := self.frame()) is not None:
            yield received

    def reset(self) -> None:
        """Close with RST instead of FIN."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


def closed_with(client: RawClient) -> tuple[int, str]:
    """Read up to the end, of which the last must be a close frame, and return its code and reason."""
    opcode, payload = list(client.frames())[-1]
    assert opcode == CLOSE
    return int.from_bytes(payload[:2]), payload[2:].decode()


def request(server: LiveServer, *lines: str, body: bytes = b"") -> tuple[bytes, bytes, str]:
    """Send an HTTP request, and return the answer's status line, body and head."""
    with server.raw() as sock:
        sock.sendall("\r\n".join([*lines, "", ""]).encode("latin-1") + body)
        answer = b""
        while b"\r\n\r\n" not in answer:
            chunk = sock.recv(65536)
            if not chunk:
                break
            answer += chunk
        head, _, rest = answer.partition(b"\r\n\r\n")
        match = re.search(rb"(?i)content-length: (\d+)", head)
        while match and len(rest) < int(match[1]) and not lines[0].startswith("HEAD"):
            chunk = sock.recv(65536)
            assert chunk
            rest += chunk
    return head.partition(b"\r\n")[0], rest, head.decode("latin-1")


def handshake(**headers: str | None) -> list[str]:
    """Return a good handshake's lines, with some headers replaced (``None`` leaves one out)."""
    fields: dict[str, str | None] = {
        "Host": "127.0.0.1",
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    }
    fields.update({name.replace("_", "-"): value for name, value in headers.items()})
    return ["GET / HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items() if value is not None)]


@pytest.fixture(autouse=True)
def nothing_is_logged_as_an_error(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Whatever clients do is no error of the server's: no traceback, no exception in a callback of the loop."""
    yield
    records = [record for when in ("call", "teardown") for record in caplog.get_records(when)]
    wrong = [record.getMessage() for record in records if record.levelno >= logging.ERROR or record.exc_info]
    assert wrong == []


@pytest.fixture
def echo() -> list[Any]:
    """Registers a receiver that answers each client with what it sends; returns what it has received."""
    received: list[Any] = []

    @djmease.receiver
    def answer(client: Any, message: Any) -> None:
        received.append(message)
        client.write_message(message)

    return received


@pytest.fixture
def ends() -> list[tuple[str, int | None, str | None]]:
    """Registers a closer; returns the id, code and reason of each run."""
    ended: list[tuple[str, int | None, str | None]] = []

    @djmease.closer
    def note(client: Any) -> None:
        ended.append((client.id, client.close_code, client.close_reason))

    return ended


# Good clients in unusual ways


@pytest.mark.parametrize("size", [0, 1, 100, 60_000])
def test_frames_in_the_segment_of_the_handshake_arrive(start_server: StartServer, echo: list[Any], size: int) -> None:
    frames = masked_frame(BINARY, bytes(size)) + masked_frame(TEXT, b"two") + masked_frame(TEXT, b"three")
    with RawClient(start_server(), frames[:-1]).shake_hands() as client:
        client.socket.sendall(frames[-1:])
        assert [client.frame() for _ in range(3)] == [(BINARY, bytes(size)), (TEXT, b"two"), (TEXT, b"three")]


def test_a_handshake_and_a_whole_conversation_in_one_segment(
    start_server: StartServer, echo: list[Any], ends: list[Any]
) -> None:
    conversation = masked_frame(TEXT, b"hello") + masked_frame(CLOSE, b"\x0f\xa0bye")
    server = start_server()
    with RawClient(server, conversation).shake_hands() as client:
        client.socket.shutdown(socket.SHUT_WR)
        assert (CLOSE, b"\x0f\xa0") in list(client.frames())
    eventually(lambda: ends)
    assert echo == ["hello"], "what was sent right before the close is received"
    assert [end[1:] for end in ends] == [(4000, "bye")]


def test_a_handshake_that_comes_byte_by_byte_is_answered(start_server: StartServer, echo: list[Any]) -> None:
    server = start_server()
    with RawClient(server, handshake=b"") as client:
        client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in HANDSHAKE + masked_frame(TEXT, b"slow"):
            client.socket.sendall(bytes([byte]))
        client.shake_hands()
        assert client.frame() == (TEXT, b"slow")


def test_frames_that_come_while_an_opener_runs_wait_and_pings_do_not(
    start_server: StartServer, echo: list[Any]
) -> None:
    may_go_on = threading.Event()

    @djmease.opener
    def take_time(client: Any) -> None:
        may_go_on.wait(DEADLINE)
        client.write_message("opened")

    with RawClient(start_server(), masked_frame(TEXT, b"early") + masked_frame(PING, b"p")).shake_hands() as client:
        assert client.frame() == (PONG, b"p")
        assert echo == []
        may_go_on.set()
        assert [client.frame(), client.frame()] == [(TEXT, b"opened"), (TEXT, b"early")]


def test_a_ping_is_answered_with_its_payload_while_a_receiver_is_busy(start_server: StartServer) -> None:
    may_go_on = threading.Event()

    @djmease.receiver
    def take_time(client: Any) -> None:
        may_go_on.wait(DEADLINE)
        client.write_message("done")

    with RawClient(start_server()).shake_hands() as client:
        client.send(TEXT, b"go")
        for payload in (b"", b"one", b"x" * 125):
            client.send(PING, payload)
            assert client.frame() == (PONG, payload)
        may_go_on.set()
        assert client.frame() == (TEXT, b"done")


def test_messages_sent_right_before_the_close_are_received_in_order_before_the_closers_run(
    start_server: StartServer,
) -> None:
    seen: list[Any] = []

    @djmease.receiver
    def receive(message: Any) -> None:
        seen.append(message)

    @djmease.closer
    async def close(client: Any, clients_list: Any) -> None:
        seen.append((client in clients_list, client.close_code))

    with RawClient(start_server()).shake_hands() as client:
        messages = [str(number) for number in range(250)]
        frames = [masked_frame(TEXT, message.encode()) for message in messages]
        client.socket.sendall(b"".join(frames) + masked_frame(CLOSE, b"\x03\xe8"))
        assert closed_with(client) == (1000, "")
    eventually(lambda: len(seen) > 250)
    assert seen == [*messages, (False, 1000)]


# The close frame can be read


def send_for_ever(sock: socket.socket, data: bytes) -> None:
    """Send until the other side is gone, or ten megabytes are."""
    try:
        for _ in range(10_000_000 // len(data)):
            sock.sendall(data)
    except OSError:
        pass


VIOLATIONS = {
    "invalid UTF-8": (masked_frame(TEXT, b"\xff"), 1007),
    "invalid UTF-8 in a fragment": (masked_frame(TEXT, b"\xff", first=0x01), 1007),
    "unmasked": (b"\x81\x05Hello", 1002),
    "reserved bit": (masked_frame(TEXT, b"", first=0xC1), 1002),
    "unknown opcode": (masked_frame(3, b""), 1002),
    "continuation of nothing": (masked_frame(CONTINUATION, b""), 1002),
    "fragmented ping": (masked_frame(PING, b"", first=0x09), 1002),
    "broken close": (masked_frame(CLOSE, b"\x03"), 1002),
    "close with 1005": (masked_frame(CLOSE, b"\x03\xed"), 1002),
    "oversize": (masked_frame(BINARY, bytes(64 * 1024 + 1)), 1009),
    "oversize header alone": (b"\x82\xff" + (2**40).to_bytes(8), 1009),
}


@pytest.mark.parametrize("name", VIOLATIONS)
def test_a_violation_is_closed_with_its_code_and_a_clean_end(
    start_server: StartServer, echo: list[Any], ends: list[Any], name: str
) -> None:
    data, code = VIOLATIONS[name]
    server = start_server()
    bystander = server.connect()
    with RawClient(server).shake_hands() as client:
        client.socket.sendall(masked_frame(TEXT, b"good") + data + masked_frame(TEXT, b"never seen"))
        received = list(client.frames())
        assert received.pop()[0] == CLOSE
        assert received in ([], [(TEXT, b"good")])
    eventually(lambda: ends)
    assert [end[1] for end in ends] == [code]
    assert ends[0][2]
    assert echo == ["good"]
    bystander.send("hello")
    assert bystander.recv(DEADLINE) == "hello"


@pytest.mark.parametrize("name", VIOLATIONS)
def test_the_reason_can_be_read_also_by_a_client_that_still_sends(start_server: StartServer, name: str) -> None:
    data, code = VIOLATIONS[name]
    with RawClient(start_server()).shake_hands() as client, ThreadPoolExecutor(1) as pool:
        client.socket.sendall(data)
        sending = pool.submit(send_for_ever, client.socket, bytes(50_000))
        opcode, payload = client.frame() or (0, b"")
        assert (opcode, int.from_bytes(payload[:2])) == (CLOSE, code)
        assert client.frame() is None, "then comes the end, and no reset"
        sending.result(DEADLINE)


def test_an_oversize_message_is_refused_while_its_payload_still_comes(start_server: StartServer, settings: Any) -> None:
    settings.MEASE_MAX_MESSAGE_SIZE = 1000
    with RawClient(start_server()).shake_hands() as client:
        client.send(BINARY, bytes(1000))
        client.socket.sendall(b"\x82\xff" + (100_000_000).to_bytes(8) + bytes(4))
        assert client.frame() == (CLOSE, (1009).to_bytes(2) + b"a message may have 1000 bytes")


def test_a_client_that_goes_on_sending_behind_its_close_can_read_the_answer(start_server: StartServer) -> None:
    """RFC 6455, section 5.5.1, forbids it to send more, so that the end may be a reset, but not before the answer."""
    with RawClient(start_server()).shake_hands() as client:
        client.socket.sendall(masked_frame(CLOSE, b"\x03\xe8") + bytes(300_000))
        assert client.frame() == (CLOSE, b"\x03\xe8")


def test_a_client_that_is_closed_by_a_receiver_while_it_floods_reads_why(
    start_server: StartServer, ends: list[Any]
) -> None:
    """Its lane is full, so that it is not read; its answer to the close is still heard at once."""
    may_go_on = threading.Event()

    @djmease.receiver
    def throw_out(client: Any) -> None:
        client.close(4001, "too fast")
        may_go_on.wait(DEADLINE)

    server = start_server()
    try:
        with RawClient(server).shake_hands() as client:
            client.socket.sendall(masked_frame(TEXT, b"x") * 500)
            assert client.frame() == (CLOSE, b"\x0f\xa1too fast")
            started = time.monotonic()
            client.socket.sendall(masked_frame(TEXT, b"x") * 500 + masked_frame(CLOSE, b"\x0f\xa1"))
            assert client.frame() is None
            assert time.monotonic() - started < protocol_module.CLOSE_TIMEOUT / 2
    finally:
        may_go_on.set()
    eventually(lambda: ends)
    assert [end[1] for end in ends] == [4001]


# The closing handshake in all orders


def test_the_client_closes_first(start_server: StartServer, ends: list[Any]) -> None:
    with RawClient(start_server()).shake_hands() as client:
        client.send(CLOSE, b"\x0f\xa0why not")
        assert closed_with(client) == (4000, "")
    eventually(lambda: ends)
    assert ends[0][1:] == (4000, "why not")


def test_the_server_closes_first(start_server: StartServer, ends: list[Any]) -> None:
    @djmease.receiver
    def close(client: Any) -> None:
        client.write_message("before")
        client.close(4001, "enough €")
        client.write_message("too late")
        client.ping()
        client.close(4002)

    with RawClient(start_server()).shake_hands() as client:
        client.send(TEXT, b"go")
        received = [client.frame(), client.frame()]
        assert received[0] == (TEXT, b"before")
        assert (CLOSE, b"\x0f\xa1" + "enough €".encode()) in received
        assert ends == [], "it is still there until it answers"
        client.send(CLOSE, b"\x0f\xa1")
        assert client.frame() is None
    eventually(lambda: ends)
    assert ends[0][1:] == (4001, None)


def test_both_close_at_once(start_server: StartServer, ends: list[Any]) -> None:
    @djmease.receiver
    async def close(client: Any) -> None:
        client.close(4001, "server")

    server = start_server()
    for _ in range(50):
        with RawClient(server).shake_hands() as client:
            client.socket.sendall(masked_frame(TEXT, b"go") + masked_frame(CLOSE, b"\x0f\xa2client"))
            assert closed_with(client)[0] in (4001, 4002)
    eventually(lambda: len(ends) == 50)
    assert {end[1] for end in ends} == {4002}
    assert len({end[0] for end in ends}) == 50


def test_a_client_that_never_answers_the_close_is_gone_after_the_timeout(
    start_server: StartServer, ends: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol_module, "CLOSE_TIMEOUT", 0.1)

    @djmease.receiver
    def close(client: Any) -> None:
        client.close(4001)

    server = start_server()
    with RawClient(server).shake_hands() as client:
        client.send(TEXT, b"go")
        assert client.frame() == (CLOSE, b"\x0f\xa1")
        assert client.frame() is None
        eventually(lambda: len(server.server.clients) == 0)
        eventually(lambda: ends)
        assert [end[1] for end in ends] == [None]


@pytest.mark.parametrize(
    "kind",
    ["close", "close and vanish", "fin", "reset", "violation", "violation and reset", "server", "server and reset"],
)
def test_closers_run_exactly_once_whatever_ends_the_connection(
    start_server: StartServer, ends: list[Any], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(protocol_module, "CLOSE_TIMEOUT", 0.2)
    opened: list[str] = []

    @djmease.opener
    def note_opening(client: Any) -> None:
        opened.append(client.id)

    @djmease.receiver
    def close(client: Any) -> None:
        client.close(4001)

    server = start_server()
    for _ in range(5):
        with RawClient(server).shake_hands() as client:
            if kind.startswith("close"):
                client.send(CLOSE, b"\x03\xe8")
            elif kind.startswith("violation"):
                client.send(3)
            elif kind.startswith("server"):
                client.send(TEXT, b"close me")
                assert client.frame() == (CLOSE, b"\x0f\xa1")
            if kind.endswith("reset"):
                client.reset()
            elif kind in ("close", "violation"):
                list(client.frames())
    eventually(lambda: len(ends) >= 5)
    eventually(lambda: len(server.server.clients) == 0)
    server.stop()
    assert sorted(end[0] for end in ends) == sorted(opened)


# HTTP on the port


def test_a_plain_get_is_answered_with_426_and_a_text(start_server: StartServer) -> None:
    status, body, head = request(start_server(), "GET / HTTP/1.1", "Host: 127.0.0.1")
    assert status.startswith(b"HTTP/1.1 426 ")
    assert b"WebSocket" in body and body.endswith(b"\n")
    assert "upgrade: websocket" in head.lower()


@pytest.mark.parametrize("version", ["8", "0", "14", "13, 8", "x", "", None])
def test_a_wrong_version_is_answered_with_426_and_the_right_one(start_server: StartServer, version: str | None) -> None:
    """RFC 6455, section 4.4."""
    status, _, head = request(start_server(), *handshake(Sec_WebSocket_Version=version))
    assert status.startswith(b"HTTP/1.1 426 ")
    assert "sec-websocket-version: 13" in head.lower()


@pytest.mark.parametrize("key", ["", "short", "dGhlIHNhbXBsZQ==", "dGhlIHNhbXBsZSBub25jZQ", "#" * 24, "é" * 12, None])
def test_a_bad_key_is_answered_with_400_and_a_text(start_server: StartServer, key: str | None) -> None:
    status, body, _ = request(start_server(), *handshake(Sec_WebSocket_Key=key))
    assert status.startswith(b"HTTP/1.1 400 ")
    assert b"Sec-WebSocket-Key" in body


def test_a_handshake_without_connection_upgrade_is_answered_with_400(start_server: StartServer) -> None:
    assert request(start_server(), *handshake(Connection="keep-alive"))[0].startswith(b"HTTP/1.1 400 ")


def test_a_handshake_in_http_1_0_is_answered_with_400(start_server: StartServer) -> None:
    """RFC 6455, section 4.2.1: HTTP/1.1 or higher."""
    lines = ["GET / HTTP/1.0", *handshake()[1:]]
    assert b" 400 " in request(start_server(), *lines)[0]


@pytest.mark.parametrize("method", ["POST", "PUT", "HEAD", "OPTIONS", "DELETE", "BREW"])
def test_another_method_is_refused(start_server: StartServer, method: str) -> None:
    server = start_server()
    for lines in (handshake()[1:], ["Host: 127.0.0.1"]):
        status = request(server, f"{method} / HTTP/1.1", *lines, "Connection: close")[0]
        assert re.match(rb"HTTP/1.1 4\d\d ", status)


@pytest.mark.parametrize(
    ("head", "body"),
    [
        ("Content-Length: 5", b"hello"),
        ("Content-Length: 100000000", b"x"),
        ("Content-Length: -1", b""),
        ("Content-Length: 1\r\nContent-Length: 2", b"x"),
        ("Transfer-Encoding: chunked", b"5\r\nhello\r\n0\r\n\r\n"),
        ("Transfer-Encoding: gzip", b""),
    ],
)
@pytest.mark.parametrize("upgrade", [True, False])
def test_a_request_with_a_body_is_refused(start_server: StartServer, head: str, body: bytes, upgrade: bool) -> None:
    server = start_server()
    lines = handshake()[1:] if upgrade else ["Host: 127.0.0.1"]
    for method in ("POST", "GET"):
        assert request(server, f"{method} / HTTP/1.1", *lines, head, body=body)[0].startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("name", ["one long header", "many headers", "a long path", "no end at all"])
def test_more_than_16_kib_of_headers_end_the_connection(start_server: StartServer, name: str) -> None:
    server = start_server()
    lines = handshake()
    if name == "one long header":
        lines.append("X: " + "x" * 17_000)
    elif name == "many headers":
        lines.extend(f"X-{number}: {number}" for number in range(2000))
    elif name == "a long path":
        lines[0] = f"GET /{'x' * 17_000} HTTP/1.1"
    data = "\r\n".join([*lines, "", ""]).encode() if name != "no end at all" else b"x" * 40_000
    with server.raw() as sock:
        try:
            sock.sendall(data)
            answer = b""
            while chunk := sock.recv(65536):
                answer += chunk
        except ConnectionResetError:
            answer = b""
    assert b" 101 " not in answer


def test_almost_16_kib_of_headers_are_taken(start_server: StartServer) -> None:
    assert b" 101 " in request(start_server(), *handshake(Cookie="x" * 15_000))[0]


@pytest.mark.parametrize(
    "data", [b"", b"GET", HANDSHAKE[:-2], b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\n"]
)
def test_a_handshake_that_stays_silent_is_closed(start_server: StartServer, settings: Any, data: bytes) -> None:
    settings.MEASE_HANDSHAKE_TIMEOUT = 0.1
    with start_server().raw() as sock:
        sock.sendall(data)
        assert sock.recv(100) == b""


def test_a_handshake_that_trickles_is_closed(start_server: StartServer, settings: Any) -> None:
    settings.MEASE_HANDSHAKE_TIMEOUT = 0.2
    with start_server().raw() as sock:
        sock.settimeout(0.02)
        started = time.monotonic()
        while time.monotonic() - started < DEADLINE:
            try:
                sock.sendall(b"x")
                if sock.recv(1) == b"":
                    return
            except TimeoutError:
                continue
            except OSError:
                return
    raise AssertionError("it may trickle for ever")


@pytest.mark.parametrize("compression", ["permessage-deflate", "permessage-deflate; client_max_window_bits", "x;;,,="])
def test_extensions_are_not_agreed_to(start_server: StartServer, echo: list[Any], compression: str) -> None:
    lines = "\r\n".join([*handshake(Sec_WebSocket_Extensions=compression), "", ""]).encode()
    with RawClient(start_server(), handshake=lines) as client:
        client.socket.sendall(masked_frame(TEXT, b"x"))
        data = b""
        while not data.endswith(b"\x81\x01x"):
            chunk = client.socket.recv(65536)
            assert chunk
            data += chunk
        assert b"extensions" not in data.lower()


# Who may connect


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1.evil.example", "file://"])
def test_a_foreign_origin_is_answered_with_403_and_a_log_line_that_names_it_and_the_settings(
    start_server: StartServer, log_of: Log, origin: str
) -> None:
    status, body, _ = request(start_server(), *handshake(Origin=origin))
    assert status.startswith(b"HTTP/1.1 403 ")
    assert origin.encode() in body
    lines = [line for line in log_of() if repr(origin) in line]
    assert len(lines) == 1
    assert "MEASE_ALLOWED_ORIGINS" in lines[0] and "CSRF_TRUSTED_ORIGINS" in lines[0] and "127.0.0.1" in lines[0]


def test_a_refusal_of_one_kind_keeps_none_of_another_from_the_log(
    start_server: StartServer, settings: Any, log_of: Log
) -> None:
    settings.MEASE_LOGIN_REQUIRED = True
    server = start_server()
    for number in range(20):
        for lines in (handshake(Origin=f"https://{number}.example"), handshake(Host=f"{number}.example"), handshake()):
            request(server, *lines)
    refused = [line for line in log_of() if line.startswith("refused ")]
    # Each kind has its line at once, and no kind more than one a second, however the clients vary what they send.
    first = " ".join(refused[:3])
    assert "the page is of 'https://0.example'" in first and "the Host '0.example'" in first and "logged in" in first
    assert len(refused) < 30


def test_what_tornado_takes_for_the_same_origin_is_asked_as_well(start_server: StartServer) -> None:
    """Tornado 6.6 skips its check for these; anybody but a browser can send them."""
    server = start_server()
    for site in ("same-origin", "none", "cross-site", "same-site"):
        lines = handshake(Origin="https://evil.example", Sec_Fetch_Site=site)
        assert request(server, *lines)[0].startswith(b"HTTP/1.1 403 ")


@pytest.mark.parametrize("site", ["cross-site", "same-site", "same-origin", "none"])
def test_an_allowed_origin_is_let_in_whatever_the_browser_says_of_the_site(
    start_server: StartServer, settings: Any, site: str
) -> None:
    settings.MEASE_ALLOWED_ORIGINS = ["https://app.example"]
    server = start_server()
    assert b" 101 " in request(server, *handshake(Origin="https://app.example", Sec_Fetch_Site=site))[0]
    assert b" 101 " in request(server, *handshake(Origin="http://127.0.0.1:8000", Sec_Fetch_Site=site))[0]


@pytest.mark.parametrize("name", ["MEASE_ALLOWED_ORIGINS", "CSRF_TRUSTED_ORIGINS"])
def test_origins_are_allowed_by_either_setting_also_with_a_wildcard(
    start_server: StartServer, settings: Any, name: str
) -> None:
    setattr(settings, name, ["https://app.example", "https://*.shop.example:8443"])
    server = start_server()
    for origin, code in [
        ("https://app.example", 101),
        ("https://a.shop.example:8443", 101),
        ("https://a.b.shop.example:8443", 101),
        ("https://a.shop.example", 403),
        ("https://evilshop.example:8443", 403),
        ("http://app.example", 403),
        ("null", 403),
    ]:
        assert b" %d " % code in request(server, *handshake(Origin=origin))[0], origin


def test_a_sandboxed_page_is_let_in_where_the_settings_name_null(start_server: StartServer, settings: Any) -> None:
    settings.MEASE_ALLOWED_ORIGINS = ["null"]
    assert b" 101 " in request(start_server(), *handshake(Origin="null"))[0]


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "127.0.0.1@evil.example"])
def test_a_forged_host_is_answered_with_403_or_400(start_server: StartServer, log_of: Log, host: str) -> None:
    """DNS rebinding: the page's own host name is then that of the request, so only ALLOWED_HOSTS can tell."""
    status = request(start_server(), *handshake(Host=host, Origin=f"http://{host}"))[0]
    assert re.match(rb"HTTP/1.1 40[03] ", status)
    if b" 403 " in status:
        assert any(repr(host) in line and "ALLOWED_HOSTS" in line for line in log_of())


def test_a_handshake_with_two_hosts_or_none_is_answered_with_400(start_server: StartServer) -> None:
    server = start_server()
    assert b" 400 " in request(server, *handshake(), "Host: evil.example")[0]
    assert b" 40" in request(server, *handshake(Host=None))[0]


# Many that come and go


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_thousand_connects_and_aborts_leave_nobody_deaf_and_no_descriptor_open(
    start_server: StartServer, echo: list[Any], ends: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol_module, "CLOSE_TIMEOUT", 0.2)
    server = start_server()

    @djmease.sender(routing="unused")
    def unused() -> None: ...

    bystander = server.connect()
    before = descriptors()
    chance = random.Random(1)
    with ExitStack() as stack:
        healthy: list[RawClient] = []
        for number in range(1000):
            client = stack.enter_context(RawClient(server, handshake=b""))
            kind = number % 10
            if kind == 0:
                client.reset()
            elif kind == 1:
                client.socket.sendall(HANDSHAKE[: chance.randrange(1, len(HANDSHAKE))])
                client.reset() if number % 20 == 1 else client.socket.close()
            elif kind == 2:
                client.socket.sendall(HANDSHAKE)
                client.reset()
            elif kind == 3:
                client.socket.sendall(HANDSHAKE + masked_frame(TEXT, b"x" * 300)[: chance.randrange(300)])
                client.socket.close()
            else:
                client.socket.sendall(HANDSHAKE)
                client.shake_hands()
                if kind == 4:
                    client.socket.sendall(masked_frame(TEXT, b"x" * 300)[: chance.randrange(1, 300)])
                    client.reset()
                elif kind == 5:
                    client.send(TEXT, b"x" * 100)
                    client.socket.close()
                elif kind == 6:
                    client.send(TEXT, b"x" * 100)
                    client.reset()
                elif kind == 7:
                    client.send(3)
                    client.socket.close()
                elif kind == 8:
                    client.send(CLOSE, b"\x03\xe8")
                    client.socket.close()
                elif number % 20 == 9:
                    healthy.append(client)
                else:
                    client.socket.close()
            if number % 100 == 50 and healthy:
                # On a number that was another's a moment ago.
                healthy[-1].send(TEXT, b"%d" % number)
                assert healthy[-1].frame() == (TEXT, b"%d" % number)
        assert len(healthy) == 50
        for number, client in enumerate(healthy):
            client.send(TEXT, b"still here %d" % number)
            assert client.frame() == (TEXT, b"still here %d" % number)
        eventually(lambda: len(server.server.clients) == 51)
        for client in healthy:
            client.send(CLOSE, b"\x03\xe8")
            assert client.frame() == (CLOSE, b"\x03\xe8")
    eventually(lambda: len(server.server.clients) == 1)
    eventually(lambda: descriptors() <= before, f"{before} descriptors, and not {descriptors()}")
    bystander.send("me too")
    assert bystander.recv(DEADLINE) == "me too"
    assert len(ends) == len({end[0] for end in ends})


def test_three_hundred_streams_of_random_bytes_hurt_nobody(start_server: StartServer, echo: list[Any]) -> None:
    server = start_server()
    bystander = server.connect()
    before = descriptors()
    chance = random.Random(2)
    for number in range(300):
        with RawClient(server).shake_hands() as client:
            client.socket.setblocking(False)
            try:
                if number % 3:
                    good = masked_frame(TEXT, chance.randbytes(40).hex().encode())
                    data = bytearray(good * 5)
                    for _ in range(number % 7 + 1):
                        data[chance.randrange(len(data))] = chance.randrange(256)
                    client.socket.sendall(bytes(data))
                else:
                    client.socket.sendall(chance.randbytes(chance.randrange(1, 3000)))
            except OSError:
                pass
            if number % 4 == 0:
                client.reset()
        if number % 30 == 0:
            bystander.send(f"{number}")
            assert bystander.recv(DEADLINE) == f"{number}"
    bystander.send("after all")
    assert bystander.recv(DEADLINE) == "after all"
    eventually(lambda: len(server.server.clients) == 1)
    eventually(lambda: descriptors() <= before)


# Who does not read


def test_a_client_that_never_reads_is_cut_off_with_1013_and_the_others_get_all_fifty_megabytes(
    start_server: StartServer, settings: Any, ends: list[Any], log_of: Log
) -> None:
    limit = settings.MEASE_MAX_CLIENT_BUFFER = 200_000
    settings.MEASE_MAX_PUBLISH_SIZE = 2_000_000

    @djmease.sender(routing="large")
    def show(message: bytes, clients_list: Any) -> None:
        for client in clients_list:
            client.write_message(message)

    server = start_server()
    healthy = [server.connect() for _ in range(2)]
    with RawClient(server, receive_buffer=8192).shake_hands() as silent:
        eventually(lambda: len(server.server.clients) == 3)
        deaf = next(iter(reversed(server.server.clients.snapshot())))
        connection = deaf.ws_connection
        assert connection is not None
        size, peak = 1_000_000, 0
        for number in range(50):
            message = bytes([number]) * size
            djmease.publish("large", message)
            for client in healthy:
                assert client.recv(DEADLINE) == message
            peak = max(peak, len(connection.backlog))
        eventually(lambda: ends)
        assert ends == [(deaf.id, 1013, "you do not read what is sent")]
        assert peak <= limit + 4 * size, "bounded, and not what was published"
        assert len([line for line in log_of() if deaf.id in line and "MEASE_MAX_CLIENT_BUFFER" in line]) == 1
        # It has some seconds to read what it has not, and why it gets no more.
        received = list(silent.frames())
    assert received[-1] == (CLOSE, (1013).to_bytes(2) + b"you do not read what is sent")
    assert {opcode for opcode, _ in received[:-1]} == {BINARY}
    assert all(len(payload) == size for _, payload in received[:-1])
    eventually(lambda: len(server.server.clients) == 2)


def test_a_client_that_floods_with_pings_and_never_reads_is_cut_off(
    start_server: StartServer, settings: Any, ends: list[Any]
) -> None:
    settings.MEASE_MAX_CLIENT_BUFFER = 20_000
    settings.MEASE_MAX_MESSAGE_RATE = None
    server = start_server()
    with RawClient(server, receive_buffer=4096).shake_hands() as client:
        pings = masked_frame(PING, b"x" * 125) * 400
        started = time.monotonic()
        client.socket.setblocking(False)
        while not ends:
            _, writable, _ = select.select([], [client.socket], [], 0.05)
            if writable:
                client.socket.send(pings)
            assert time.monotonic() - started < DEADLINE
    assert [end[1] for end in ends] == [1013]


def test_a_client_that_sends_faster_than_its_receiver_runs_is_made_to_wait_and_loses_nothing(
    start_server: StartServer, settings: Any
) -> None:
    received: list[int] = []
    may_go_on = threading.Event()

    @djmease.receiver
    def take(message: str) -> None:
        may_go_on.wait(DEADLINE)
        received.append(int(message.partition(" ")[0]))

    settings.MEASE_MAX_MESSAGE_RATE = None
    server = start_server()
    count = 2000
    with RawClient(server).shake_hands() as client, ThreadPoolExecutor(1) as pool:
        frames = [masked_frame(BINARY, b"%d %s" % (number, b"x" * 10_000), first=0x81) for number in range(count)]

        def send() -> None:
            for frame in frames:
                client.socket.sendall(frame)

        sending = pool.submit(send)
        eventually(lambda: len(server.server.clients) == 1)
        connection = server.server.clients.snapshot()[0].ws_connection
        assert connection is not None
        eventually(lambda: not connection.is_reading, "a pause")
        assert not sending.done(), "twenty megabytes are more than the kernel takes"
        may_go_on.set()
        sending.result(DEADLINE)
        eventually(lambda: len(received) == count)
    assert received == list(range(count))


# While the session is read


class SlowSession(SessionStore):
    """A session that takes its time, as a database does."""

    may_go_on = threading.Event()
    reading = 0

    def load(self) -> dict[str, Any]:
        SlowSession.reading += 1
        SlowSession.may_go_on.wait(DEADLINE)
        return {}


@pytest.fixture
def slow_sessions(settings: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[SlowSession]]:
    module: Any = ModuleType("slow_sessions")
    module.SessionStore = SlowSession
    monkeypatch.setitem(sys.modules, "slow_sessions", module)
    monkeypatch.setattr(SlowSession, "reading", 0)
    SlowSession.may_go_on.clear()
    settings.SESSION_ENGINE = "slow_sessions"
    yield SlowSession
    SlowSession.may_go_on.set()


WITH_SESSION = HANDSHAKE[:-2] + b"Cookie: sessionid=abcdefghijklmnop\r\n\r\n"


@pytest.mark.parametrize("size", [10, 60_000])
def test_frames_that_come_while_the_session_is_read_arrive(
    start_server: StartServer, slow_sessions: type[SlowSession], echo: list[Any], size: int
) -> None:
    frames = [masked_frame(BINARY, bytes([number]) * size) for number in range(8)]
    with RawClient(start_server(), frames[0], handshake=WITH_SESSION) as client:
        eventually(lambda: slow_sessions.reading)
        for frame in frames[1:]:
            client.socket.sendall(frame)
        slow_sessions.may_go_on.set()
        client.shake_hands()
        assert [client.frame() for _ in frames] == [(BINARY, bytes([number]) * size) for number in range(8)]


@pytest.mark.parametrize("end", ["fin", "reset"])
@pytest.mark.parametrize("more", [b"", masked_frame(TEXT, b"early"), masked_frame(CLOSE, b"\x03\xe8"), b"\x81"])
def test_a_client_that_goes_while_its_session_is_read_leaves_nothing(
    start_server: StartServer,
    slow_sessions: type[SlowSession],
    ends: list[Any],
    end: str,
    more: bytes,
) -> None:
    opened: list[str] = []

    @djmease.opener
    def note_opening(client: Any) -> None:
        opened.append(client.id)

    server = start_server()
    bystander = server.connect()
    before = descriptors()
    for _ in range(10):
        slow_sessions.may_go_on.clear()
        slow_sessions.reading = 0
        with RawClient(server, more, handshake=WITH_SESSION) as client:
            eventually(lambda: slow_sessions.reading)
            if end == "reset":
                client.reset()
        slow_sessions.may_go_on.set()
        # On the number that was freed, or will be.
        with RawClient(server).shake_hands() as healthy:
            healthy.send(PING, b"hear me")
            assert healthy.frame() == (PONG, b"hear me")
            healthy.send(CLOSE)
            assert healthy.frame() == (CLOSE, b"")
    eventually(lambda: len(server.server.clients) == 1)
    eventually(lambda: descriptors() <= before)
    eventually(lambda: len(ends) == len(opened) - 1)
    assert len({closed[0] for closed in ends}) == len(ends)
    bystander.ping().wait(DEADLINE)
    server.stop()
    assert sorted(closed[0] for closed in ends) == sorted(opened)


def test_a_server_stops_while_a_session_is_read(
    start_server: StartServer, slow_sessions: type[SlowSession], ends: list[Any]
) -> None:
    server = start_server()
    with RawClient(server, handshake=WITH_SESSION) as client:
        eventually(lambda: slow_sessions.reading)
        started = time.monotonic()
        server.loop.call_soon_threadsafe(server.server.stop)
        assert client.socket.recv(100) == b""
        slow_sessions.may_go_on.set()
        server.stop()
        assert time.monotonic() - started < 3
    assert ends == []


# The end of the server


def test_a_server_that_stops_right_after_a_violation_closes_the_socket_that_waits_for_its_client(
    start_server: StartServer, ends: list[Any]
) -> None:
    """The closers have run, but the client has not gone yet: nothing counts it any more, and it must not be left."""
    server = start_server()
    with RawClient(server).shake_hands() as client:
        eventually(lambda: len(server.server.clients) == 1)
        connection = server.server.clients.snapshot()[0].ws_connection
        assert connection is not None
        client.send(3)
        assert closed_with(client)[0] == 1002
        eventually(lambda: ends)
        server.stop()
        left, connection._socket = connection._socket, None
        if left is not None:
            left.close()
        assert left is None


def test_half_a_handshake_does_not_hold_up_a_server_that_stops(start_server: StartServer) -> None:
    server = start_server()
    with RawClient(server, handshake=HANDSHAKE[:-4]) as client:
        assert server.connect() is not None
        started = time.monotonic()
        server.stop()
        assert time.monotonic() - started < 3
        assert client.socket.recv(100) == b""
