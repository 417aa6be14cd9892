"""wss:// without a proxy: what plain connections do, the same ciphered, and clients that do wrong with TLS itself."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame
from websockets.streams import StreamReader

import djmease
from djmease.server.protocol import BINARY, CLOSE, TEXT, WebSocketProtocol
from djmease.server.tls import CertificateError, TLSSocket, make_context, reload
from tests.support import DEADLINE, HANDSHAKE, LiveServer, Process, Project, eventually, masked_frame

StartServer = Callable[[], LiveServer]
HELLO = b"\x16\x03\x01\x02\x00\x01\x00"
"""How a ClientHello begins."""


class Files(SimpleNamespace):
    """A certificate with its key, another key, and the key encrypted."""

    certificate: str
    key: str
    other_key: str
    encrypted_key: str
    both: str


def openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True, timeout=DEADLINE)


def make_certificate(home: Path, name: str) -> tuple[str, str]:
    certificate, key = str(home / f"{name}.pem"), str(home / f"{name}.key")
    openssl(
        *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"),
        *("-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1", "-out", certificate, "-keyout", key),
    )
    return certificate, key


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    home = tmp_path_factory.mktemp("certificates")
    certificate, key = make_certificate(home, "site")
    _, other_key = make_certificate(home, "other")
    encrypted, both = str(home / "encrypted.key"), home / "both.pem"
    openssl("pkey", "-in", key, "-aes256", "-passout", "pass:secret", "-out", encrypted)
    both.write_text(Path(certificate).read_text() + Path(key).read_text())
    return Files(certificate=certificate, key=key, other_key=other_key, encrypted_key=encrypted, both=str(both))


@pytest.fixture
def trust(files: Files) -> ssl.SSLContext:
    """What a client needs to take the server for who it is."""
    return ssl.create_default_context(cafile=files.certificate)


@pytest.fixture
def start_tls(redis: str, files: Files) -> Iterator[StartServer]:
    servers: list[LiveServer] = []

    def start() -> LiveServer:
        server = LiveServer(make_context(files.certificate, files.key))
        servers.append(server)
        server.start()
        return server

    yield start
    for server in servers:
        server.stop()


@pytest.fixture(autouse=True)
def nothing_is_logged_as_an_error(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Whatever clients do is no error of the server's, and Tornado has nothing to say of it."""
    yield
    records = [record for when in ("call", "teardown") for record in caplog.get_records(when)]
    wrong = [
        record.getMessage()
        for record in records
        if record.levelno >= logging.ERROR or record.exc_info or record.name.startswith("tornado")
    ]
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


class RawClient:
    """A WebSocket client on a TLS socket that does whatever it is told."""

    def __init__(
        self, server: LiveServer, trust: ssl.SSLContext, more: bytes = b"", *, receive_buffer: int | None = None
    ) -> None:
        plain = socket.socket()
        if receive_buffer is not None:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        plain.settimeout(DEADLINE)
        plain.connect(("127.0.0.1", server.port))
        self.socket = trust.wrap_socket(plain, server_hostname="127.0.0.1", suppress_ragged_eofs=False)
        self.socket.sendall(HANDSHAKE + more)
        self._reader = StreamReader()
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            byte = self.socket.recv(1)
            assert byte, f"the connection ended behind {head!r}"
            head += byte
        assert head.startswith(b"HTTP/1.1 101 "), head

    def __enter__(self) -> RawClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, opcode: int, payload: bytes = b"") -> None:
        self.socket.sendall(masked_frame(opcode, payload))

    def frame(self) -> tuple[int, bytes] | None:
        """Return the next frame's opcode and payload, or ``None`` behind close_notify; an end without it raises."""
        parsing = Frame.parse(self._reader.read_exact, mask=False)
        while True:
            try:
                next(parsing)
            except StopIteration as done:
                return int(done.value.opcode), bytes(done.value.data)
            data = self.socket.recv(65536)
            if not data:
                assert not self._reader.buffer, "the connection ended within a frame"
                return None
            self._reader.feed_data(data)

    def frames(self) -> Iterator[tuple[int, bytes]]:
        while (received := self.frame()) is not None:
            yield received


class Library:
    """Clients of the ``websockets`` library, on a loop in a thread of their own.

    Not the library's clients for threads: they read and write one TLS connection from two threads at once, which
    OpenSSL does not allow, and now and then a request is never sent.
    """

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._connections: list[LibraryClient] = []

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(asyncio.wait_for(coroutine, DEADLINE), self._loop).result()

    def connect(self, url: str, trust: ssl.SSLContext) -> LibraryClient:
        async def opened() -> ClientConnection:
            return await connect(url, ssl=trust, max_size=None, compression=None, proxy=None)

        client = LibraryClient(self, self.run(opened()))
        self._connections.append(client)
        return client

    def end(self) -> None:
        for client in self._connections:
            client.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(DEADLINE)
        self._loop.close()


class LibraryClient:
    def __init__(self, library: Library, connection: ClientConnection) -> None:
        self._library = library
        self._connection = connection

    def send(self, message: str | bytes) -> None:
        self._library.run(self._connection.send(message))

    def recv(self) -> Any:
        return self._library.run(self._connection.recv())

    def close(self) -> None:
        self._library.run(self._connection.close())

    @property
    def close_code(self) -> int | None:
        return self._connection.close_code

    @property
    def version(self) -> str:
        return str(self._connection.transport.get_extra_info("ssl_object").version())


@pytest.fixture
def library() -> Iterator[Library]:
    library = Library()
    yield library
    library.end()


def connection_of(server: LiveServer) -> WebSocketProtocol:
    """Return the server's side of its one connection."""
    (client,) = eventually(lambda: server.call(lambda: server.server.clients.snapshot()))
    connection = client.ws_connection
    assert isinstance(connection, WebSocketProtocol)
    return connection


# What plain connections do


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_def_and_async_receivers_answer(
    start_tls: StartServer, trust: ssl.SSLContext, library: Library, version: ssl.TLSVersion
) -> None:
    @djmease.receiver
    def answer(client: Any, message: Any) -> None:
        client.send(["def", message])

    @djmease.receiver
    async def answer_later(client: Any, message: Any) -> None:
        await asyncio.sleep(0)
        client.send(["async", message])

    trust.maximum_version = version
    connection = library.connect(start_tls().url, trust)
    assert connection.version == {771: "TLSv1.2", 772: "TLSv1.3"}[version]
    connection.send("hé")
    assert sorted(connection.recv() for _ in range(2)) == ['["async","hé"]', '["def","hé"]']


def test_tls_before_1_2_is_refused(start_tls: StartServer, log_of: Callable[[], list[str]]) -> None:
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    with pytest.warns(DeprecationWarning):
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    old.set_ciphers("ALL:@SECLEVEL=0")
    with start_tls().raw() as plain, pytest.raises(OSError):
        old.wrap_socket(plain)
    eventually(lambda: [line for line in log_of() if line.startswith("no TLS with 127.0.0.1: ")])


@pytest.mark.parametrize("size", [0, 1, 16_000, 60_000])
def test_frames_in_the_record_of_the_handshake_arrive(
    start_tls: StartServer, trust: ssl.SSLContext, echo: list[Any], size: int
) -> None:
    frames = masked_frame(BINARY, bytes(size)) + masked_frame(TEXT, b"two") + masked_frame(TEXT, b"three")
    with RawClient(start_tls(), trust, frames[:-1]) as client:
        client.socket.sendall(frames[-1:])
        assert [client.frame() for _ in range(3)] == [(BINARY, bytes(size)), (TEXT, b"two"), (TEXT, b"three")]


def test_what_tornado_left_within_openssl_is_read_at_the_hand_over(
    start_tls: StartServer, trust: ssl.SSLContext, echo: list[Any]
) -> None:
    server = start_tls()
    # So that Tornado reads less than a record at a time.
    server.call(lambda: setattr(server.server._http, "read_chunk_size", 64))
    with RawClient(server, trust, b"".join(masked_frame(TEXT, b"%d" % number) for number in range(500))) as client:
        assert [client.frame() for _ in range(500)] == [(TEXT, b"%d" % number) for number in range(500)]


@pytest.mark.parametrize("size", [16_383, 16_384, 16_385, 1024 * 1024])
def test_long_messages_go_both_ways(
    start_tls: StartServer, trust: ssl.SSLContext, library: Library, echo: list[Any], settings: Any, size: int
) -> None:
    settings.MEASE_MAX_MESSAGE_SIZE = 1024 * 1024
    connection = library.connect(start_tls().url, trust)
    payload = os.urandom(size)
    for _ in range(3):
        connection.send(payload)
    assert [connection.recv() for _ in range(3)] == [payload] * 3


def test_a_big_backlog_comes_whole_to_a_client_that_reads_in_small_pieces(
    start_tls: StartServer, trust: ssl.SSLContext, settings: Any
) -> None:
    """OpenSSL wants what it could not write again, as it was, while the backlog grows behind it."""
    settings.MEASE_MAX_CLIENT_BUFFER = 16 * 1024 * 1024
    clients: list[Any] = []

    @djmease.opener
    def note(client: Any) -> None:
        clients.append(client)

    messages = [os.urandom(1 + 997 * number % 40_000) for number in range(300)]
    with RawClient(start_tls(), trust, receive_buffer=4096) as client:
        eventually(lambda: clients)
        for message in messages:
            clients[0].send(message)
        assert [client.frame() for _ in messages] == [(BINARY, message) for message in messages]


def test_a_broadcast_reaches_many(start_tls: StartServer, trust: ssl.SSLContext, library: Library) -> None:
    @djmease.receiver
    def say(message: Any, clients_list: Any) -> None:
        clients_list.send(message)

    server = start_tls()
    connections = [library.connect(server.url, trust) for _ in range(50)]
    for number in range(20):
        connections[number].send(str(number))
    for connection in connections:
        assert {connection.recv() for _ in range(20)} == {str(number) for number in range(20)}


def test_a_client_that_does_not_read_is_cut_off_and_the_others_are_not(
    start_tls: StartServer, trust: ssl.SSLContext, library: Library, settings: Any, log_of: Callable[[], list[str]]
) -> None:
    settings.MEASE_MAX_CLIENT_BUFFER = 256 * 1024
    ends: list[tuple[int | None, str | None]] = []

    @djmease.receiver
    def say(message: Any, clients_list: Any) -> None:
        clients_list.send("x" * 50_000)

    @djmease.closer
    def note(client: Any) -> None:
        ends.append((client.close_code, client.close_reason))

    server = start_tls()
    good = library.connect(server.url, trust)
    with RawClient(server, trust, receive_buffer=4096) as slow:
        count = 0
        deadline = time.monotonic() + DEADLINE
        while not ends:
            assert time.monotonic() < deadline
            good.send("more")
            assert good.recv() == "x" * 50_000
            count += 1
        assert ends == [(1013, "you do not read what is sent")]
        *messages, (opcode, payload) = slow.frames()
        assert opcode == CLOSE and payload[:2] == (1013).to_bytes(2)
        assert {message for _, message in messages} == {b"x" * 50_000}
        assert len(messages) <= count
    good.send("still there")
    assert good.recv()
    assert [line for line in log_of() if "does not read" in line]


# The end


def test_a_close_code_arrives_either_way_and_close_notify_behind_it(
    start_tls: StartServer, trust: ssl.SSLContext
) -> None:
    ends: list[tuple[int | None, str | None]] = []

    @djmease.receiver
    def leave(client: Any, message: Any) -> None:
        client.close(4001, "as you wish")

    @djmease.closer
    def note(client: Any) -> None:
        ends.append((client.close_code, client.close_reason))

    server = start_tls()
    with RawClient(server, trust) as client:
        client.send(TEXT, b"close")
        assert client.frame() == (CLOSE, (4001).to_bytes(2) + b"as you wish")
        client.send(CLOSE, (4001).to_bytes(2))
        assert client.frame() is None
    with RawClient(server, trust) as client:
        client.send(CLOSE, (4002).to_bytes(2) + b"bye")
        assert client.frame() == (CLOSE, (4002).to_bytes(2))
        assert client.frame() is None
    eventually(lambda: len(ends) == 2)
    # Closers of two clients run side by side.
    assert set(ends) == {(4001, None), (4002, "bye")}


def test_a_violation_is_told_to_a_client_that_still_sends(start_tls: StartServer, trust: ssl.SSLContext) -> None:
    server = start_tls()
    with RawClient(server, trust) as client:
        client.socket.sendall(b"\x81\x05Hello" + bytes(100_000))
        opcode, payload = client.frame() or (0, b"")
        assert (opcode, payload[:2]) == (CLOSE, (1002).to_bytes(2))
        assert client.frame() is None, "close_notify comes, and no reset"
    eventually(lambda: not server.call(lambda: server.server._readers.connections))


@pytest.mark.parametrize("how", ["close_notify", "FIN", "RST", "garbage"])
def test_a_client_that_goes_without_a_close_frame_is_noticed(
    start_tls: StartServer, trust: ssl.SSLContext, how: str
) -> None:
    server = start_tls()
    with RawClient(server, trust) as client:
        if how == "close_notify":
            client.socket.setblocking(False)
            with suppress(ssl.SSLWantReadError):  # Unless the server has answered already.
                client.socket.unwrap()
        elif how == "FIN":
            socket.socket.shutdown(client.socket, socket.SHUT_WR)
        elif how == "RST":
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.socket.close()
        else:
            socket.socket.sendall(client.socket, b"\x17\x03\x03\x00\x20" + bytes(32))
        eventually(lambda: not server.call(lambda: server.server.clients.snapshot()))
        eventually(lambda: not server.call(lambda: server.server._readers.connections))


def test_the_server_closes_with_1012_when_it_stops(
    start_tls: StartServer, trust: ssl.SSLContext, library: Library
) -> None:
    server = start_tls()
    connection = library.connect(server.url, trust)
    server.loop.call_soon_threadsafe(server.server.stop)
    with pytest.raises(ConnectionClosed):
        connection.recv()
    assert connection.close_code == 1012


# Reading that pauses, and who is alive


def test_what_comes_while_reading_is_paused_is_read_later(
    start_tls: StartServer, trust: ssl.SSLContext, settings: Any
) -> None:
    """A flood makes a slow receiver's client wait, and nothing of it is lost or left within OpenSSL."""
    received: list[Any] = []

    @djmease.receiver
    async def take_time(message: Any) -> None:
        await asyncio.sleep(0.001)
        received.append(message)

    settings.MEASE_MAX_MESSAGE_RATE = None
    server = start_tls()
    messages = [f"{number}{'x' * (number % 3000)}" for number in range(1000)]
    paused = 0
    with RawClient(server, trust) as client, ThreadPoolExecutor(1) as pool:
        connection = connection_of(server)
        sending = pool.submit(client.socket.sendall, b"".join(masked_frame(TEXT, m.encode()) for m in messages))

        def all_received() -> bool:
            nonlocal paused
            paused += not connection.is_reading
            return len(received) == len(messages)

        eventually(all_received)
        sending.result(DEADLINE)
    assert received == messages
    assert paused, "reading has been paused"


def test_the_other_sides_acknowledgements_are_seen_through_the_ciphering(
    start_tls: StartServer, trust: ssl.SSLContext
) -> None:
    """Small records weigh more ciphered than plain, which must not make who reads look like one that is gone."""
    server = start_tls()
    with RawClient(server, trust, receive_buffer=4096) as client:
        connection = connection_of(server)
        frame = b"\x82\x01x"

        def fill() -> int:
            before = connection.delivered()
            while not connection.backlog:
                connection.transmit(frame)
            return before

        before = server.call(fill)
        eventually(lambda: server.call(connection.delivered) > before)
        settled: list[int] = [-1]

        def has_settled() -> bool:
            settled.append(server.call(connection.delivered))
            return settled[-1] == settled[-2]

        eventually(has_settled)
        assert server.call(connection.undelivered) > 0
        client.socket.recv(65536)
        eventually(lambda: (client.socket.recv(65536), server.call(connection.delivered))[1] > settled[-1])


def test_a_client_that_answers_no_ping_is_given_up(
    start_tls: StartServer, trust: ssl.SSLContext, library: Library, settings: Any
) -> None:
    settings.MEASE_PING_INTERVAL, settings.MEASE_PING_TIMEOUT = 0.2, 0.5
    server = start_tls()
    good = library.connect(server.url, trust)
    with RawClient(server, trust):
        eventually(lambda: server.server._pings.timed_out == 1)
    (left,) = server.call(lambda: server.server.clients.snapshot())
    assert left.ws_connection is not None
    good.send("here")


# Clients that do wrong before they are ones


@pytest.mark.parametrize("start", [b"", HELLO])
def test_a_handshake_that_stalls_is_given_up(
    start_tls: StartServer,
    trust: ssl.SSLContext,
    library: Library,
    settings: Any,
    echo: list[Any],
    start: bytes,
) -> None:
    settings.MEASE_HANDSHAKE_TIMEOUT = 0.5
    server = start_tls()
    good = library.connect(server.url, trust)
    with ExitStack() as stack:
        before = len(os.listdir("/proc/self/fd"))
        stalled = [stack.enter_context(server.raw()) for _ in range(50)]
        for sock in stalled:
            sock.sendall(start)
        for sock in stalled:
            assert sock.recv(1) == b""
        eventually(lambda: not server.call(lambda: server.server._http._connections))
        assert len(os.listdir("/proc/self/fd")) == before + len(stalled), "only the clients' own files are left"
        good.send("unharmed")
        assert good.recv() == "unharmed"


def test_a_http_request_that_stalls_behind_its_tls_handshake_is_given_up(
    start_tls: StartServer, trust: ssl.SSLContext, settings: Any
) -> None:
    settings.MEASE_HANDSHAKE_TIMEOUT = 0.5
    with trust.wrap_socket(start_tls().raw(), server_hostname="127.0.0.1", suppress_ragged_eofs=False) as sock:
        sock.sendall(HANDSHAKE[:-2])
        assert sock.recv(1) == b""


@pytest.mark.parametrize("data", [HANDSHAKE, b"\x00" * 100, HELLO + b"\xff" * 600], ids=["HTTP", "zeros", "broken"])
def test_what_is_no_tls_is_closed_with_one_line_a_second(
    start_tls: StartServer,
    trust: ssl.SSLContext,
    library: Library,
    log_of: Callable[[], list[str]],
    echo: list[Any],
    data: bytes,
) -> None:
    server = start_tls()
    began = time.monotonic()
    for _ in range(30):
        with server.raw() as sock:
            sock.sendall(data)
            try:
                while sock.recv(4096):
                    pass
            except ConnectionResetError:
                pass
    eventually(lambda: not server.call(lambda: server.server._http._connections))
    lines = [line for line in log_of() if line.startswith("no TLS with 127.0.0.1: ")]
    assert 1 <= len(lines) <= 1 + int(time.monotonic() - began)
    connection = library.connect(server.url, trust)
    connection.send("unharmed")
    assert connection.recv() == "unharmed"


def test_a_client_that_does_not_trust_us_is_named_with_its_reason(
    start_tls: StartServer, log_of: Callable[[], list[str]]
) -> None:
    with start_tls().raw() as plain, pytest.raises(ssl.SSLCertVerificationError):
        ssl.create_default_context().wrap_socket(plain, server_hostname="127.0.0.1")
    eventually(lambda: [line for line in log_of() if re.fullmatch(r"no TLS with 127\.0\.0\.1: TLSV1_ALERT_\w+", line)])


@pytest.mark.parametrize("data", [b"", HELLO, b"GET"])
def test_connections_that_are_reset_before_they_are_accepted_are_no_error(
    start_tls: StartServer, trust: ssl.SSLContext, library: Library, echo: list[Any], data: bytes
) -> None:
    server = start_tls()

    def connect_and_reset() -> None:
        """On the loop, which cannot accept meanwhile."""
        for _ in range(20):
            with server.raw() as sock:
                sock.sendall(data)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    server.call(connect_and_reset)
    connection = library.connect(server.url, trust)
    connection.send("unharmed")
    assert connection.recv() == "unharmed"
    eventually(lambda: not server.call(lambda: server.server._http._connections))


def test_garbage_behind_the_tls_handshake_ends_without_a_word(start_tls: StartServer, trust: ssl.SSLContext) -> None:
    server = start_tls()
    with trust.wrap_socket(server.raw(), server_hostname="127.0.0.1") as sock:
        socket.socket.sendall(sock, b"\x17\x03\x03\x00\x20" + bytes(32))
        eventually(lambda: not server.call(lambda: server.server._http._connections))


def test_https_without_an_upgrade_gets_its_answer(start_tls: StartServer, trust: ssl.SSLContext) -> None:
    with trust.wrap_socket(start_tls().raw(), server_hostname="127.0.0.1", suppress_ragged_eofs=False) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        answer = b""
        while chunk := sock.recv(4096):
            answer += chunk
        assert answer.startswith(b"HTTP/1.1 426 ")


# The socket alone


def test_a_socket_says_that_it_is_not_ready_as_a_plain_one_does(files: Files, trust: ssl.SSLContext) -> None:
    ours, theirs = _pair(files, trust)
    with closing(ours), closing(theirs):
        ours.setblocking(False)
        with pytest.raises(BlockingIOError):
            ours.recv(65536)
        theirs.sendall(b"x" * 16_384)
        assert len(eventually(lambda: _received(ours, 10))) == 16_384
        assert not ours.pending(), "nothing is left where no kernel tells of it"
        while True:
            try:
                ours.send(bytes(1_000_000))
            except BlockingIOError:
                break
        assert (ours.acknowledged() or 0) > 0


def _received(sock: TLSSocket, size: int) -> bytes:
    try:
        return sock.recv(size)
    except BlockingIOError:
        return b""


def _pair(files: Files, trust: ssl.SSLContext) -> tuple[TLSSocket, ssl.SSLSocket]:
    with socket.create_server(("127.0.0.1", 0)) as listening, ThreadPoolExecutor(1) as pool:
        plain = socket.create_connection(listening.getsockname(), timeout=DEADLINE)
        shaking = pool.submit(trust.wrap_socket, plain, server_hostname="127.0.0.1")
        accepted, _ = listening.accept()
        ours = make_context(files.certificate, files.key).wrap_socket(accepted, server_side=True)
        assert isinstance(ours, TLSSocket)
        return ours, shaking.result(DEADLINE)


# The command


def failure(process: Process) -> str:
    """Return the sentence with which a process failed; it has to be one, without a traceback."""
    assert process.wait() == 1
    assert "Traceback" not in process.err
    return process.err


def test_the_command_serves_wss_and_says_so_and_renews_the_certificate(
    project: Project, files: Files, trust: ssl.SSLContext, library: Library
) -> None:
    project.registry(
        "import djmease\n\n@djmease.receiver\ndef say(client, message):\n    client.write_message(message)\n"
    )
    certificate = project.write("site.pem", Path(files.both).read_text())
    server = project.start("run_websocket_server", "--certificate", "site.pem")
    port = server.port()
    url = f"wss://127.0.0.1:{port}/"
    assert f"Address   {url}" in server.out.splitlines()
    old = library.connect(url, trust)
    certificate.write_text("broken")
    server.send_signal(signal.SIGHUP)
    server.wait_for("the old certificate is kept: site.pem holds no certificate: ")
    connection = library.connect(url, trust)
    connection.send("hello")
    assert connection.recv() == "hello"
    new_certificate, new_key = make_certificate(project.home, "new")
    certificate.write_text(Path(new_certificate).read_text() + Path(new_key).read_text())
    server.send_signal(signal.SIGHUP)
    server.wait_for("new connections get the certificate that is in site.pem now")
    connection = library.connect(url, ssl.create_default_context(cafile=new_certificate))
    connection.send("hello")
    assert connection.recv() == "hello"
    old.send("still here")
    assert old.recv() == "still here"
    server.send_signal(signal.SIGTERM)
    assert server.wait() == 0


def test_the_command_serves_wss_on_a_socket_that_it_inherits(
    project: Project, files: Files, trust: ssl.SSLContext, library: Library
) -> None:
    project.write("inherit.py", INHERIT)
    server = Process([sys.executable, "inherit.py", sys.executable, files.certificate, files.key], project.home, {})
    project.processes.append(server)
    library.connect(f"wss://127.0.0.1:{server.port()}/", trust)


INHERIT = """
import os, socket, sys
listening = socket.create_server(("127.0.0.1", 0))
listening.set_inheritable(True)
python, certificate, key = sys.argv[1:]
os.execv(python, [python, "manage.py", "run_websocket_server", "--fd", str(listening.fileno()),
    "--certificate", certificate, "--key", key])
"""


def test_a_certificate_that_cannot_be_used_is_one_sentence_with_its_cure(project: Project, files: Files) -> None:
    failed = project.start("run_websocket_server", "--certificate", files.certificate, "--key", files.other_key)
    assert failure(failed) == (
        f"CommandError: The private key in {files.other_key} is not that of the first certificate in "
        f"{files.certificate}: name the key that belongs to it, and put the site's own certificate before those of "
        "its chain.\n"
    )
    failed = project.start("run_websocket_server", "--key", files.key)
    assert failure(failed) == "CommandError: --key goes with --certificate: name the certificate's file too.\n"
    failed = project.start("run_websocket_server", "--unix", "x.sock", "--certificate", files.both)
    assert "--certificate does not go with --unix" in failure(failed)


def test_each_fault_of_the_files_has_its_reason(files: Files, tmp_path: Path) -> None:
    missing, damaged = str(tmp_path / "missing.pem"), tmp_path / "damaged.pem"
    damaged.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    for certificate, key, said in [
        (missing, files.key, rf"{missing} cannot be read \(No such file or directory\): name a file"),
        (files.certificate, missing, rf"{missing} cannot be read \(No such file or directory\): name a file"),
        (str(tmp_path), None, r"cannot be read \(Is a directory\)"),
        (files.key, files.key, rf"{files.key} holds no certificate: name"),
        (files.certificate, None, rf"{files.certificate} holds no private key: name a PEM file that does with --key"),
        (files.certificate, files.encrypted_key, rf"The private key in {files.encrypted_key} is encrypted: decrypt it"),
        (str(damaged), files.key, rf"The certificate in {damaged} and the key in {files.key} cannot be used \("),
    ]:
        with pytest.raises(CertificateError, match=said) as raised:
            make_context(certificate, key)
        assert "\n" not in str(raised.value)


def test_a_broken_certificate_leaves_the_old_one(files: Files, trust: ssl.SSLContext) -> None:
    context = make_context(files.certificate, files.key)
    with pytest.raises(CertificateError):
        reload(context, files.certificate, files.other_key)
    reload(context, files.both)
