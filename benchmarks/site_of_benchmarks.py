"""What the benchmarks share: a site in a temporary directory, its server as a process, and many plain connections."""

from __future__ import annotations

import ctypes
import os
import resource
import selectors
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from redis import Redis

ROOT = Path(__file__).parent.parent
HANDSHAKE = (
    "GET /{path} HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n{headers}"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
SETTINGS = """
SECRET_KEY = "benchmark"
ALLOWED_HOSTS = ["127.0.0.1"]
INSTALLED_APPS = ["django.contrib.auth", "django.contrib.contenttypes", "django.contrib.sessions", "djmease", "app"]
DATABASES = {{"default": {{"ENGINE": "django.db.backends.sqlite3", "NAME": {database!r}}}}}
SESSION_ENGINE = "django.contrib.sessions.backends.signed_cookies"
USE_TZ = True
MEASE_REDIS_URL = "embedded://"
MEASE_EMBEDDED_DIR = {valkey!r}
MEASE_PING_INTERVAL = 3600
MEASE_MAX_MESSAGE_RATE = None
"""
DEADLINE = 60.0


class LostMessageError(Exception):
    """A client got less, more, or something else than was published for it: the run is worth nothing."""


def cpu_of(pid: int) -> float:
    """Return the seconds of CPU, user and system, of all the threads that a process has or had.

    It is the process's own clock, which counts nanoseconds; ``/proc/<pid>/stat`` counts ticks of ten milliseconds.
    """
    clock = ctypes.c_int()
    error = ctypes.CDLL(None).clock_getcpuclockid(pid, ctypes.byref(clock))
    if error:
        raise OSError(error, os.strerror(error))
    return time.clock_gettime(clock.value)


def memory_of(pid: int) -> int:
    """Return the resident bytes of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()


def raise_file_limit() -> None:
    """Let this process, and those it starts, open as many files as the system allows."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def text_frame(text: str) -> bytes:
    """Return the frame that a server sends for a text of at most 125 bytes."""
    body = text.encode()
    return bytes([0x81, len(body)]) + body


class Server:
    """A ``run_websocket_server`` process, whose CPU time and memory the operating system tells."""

    def __init__(self, process: subprocess.Popen[str], home: Path) -> None:
        self.process = process
        self.home = home
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("Address"):
                self.port = int(line.rsplit(":", 1)[1].split("/")[0])
            if line.startswith("Quit"):
                break
        self.redis = Redis(unix_socket_path=str(home / "valkey" / "valkey.sock"))

    def cpu(self) -> float:
        """Return the seconds of CPU, user and system, that the process has taken so far."""
        return cpu_of(self.process.pid)

    def shell(self, code: str) -> str:
        """Run Python in the site's shell, and return the last line that it printed."""
        return manage(self.home, "shell", "-v0", "-c", code).splitlines()[-1]

    def publish(self, routing: str, body: bytes, fields: bytes = b"") -> None:
        message_id = os.urandom(8).hex().encode()
        self.redis.publish(f"mease:{routing}", b"\x00mease1 t %b %.6f%b\n%b" % (message_id, time.time(), fields, body))


MANAGE = (sys.executable, "-m", "django")


def environment_of(home: Path) -> dict[str, str]:
    path = os.pathsep.join([str(home), str(ROOT)])
    return {**os.environ, "DJANGO_SETTINGS_MODULE": "benchmark_settings", "PYTHONPATH": path}


def manage(home: Path, *arguments: str) -> str:
    """Run a management command of that site to its end, and return what it printed."""
    command = [*MANAGE, *arguments]
    done = subprocess.run(command, cwd=home, env=environment_of(home), check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout


@contextmanager
def site(registry: str, *, settings: str = "") -> Iterator[Path]:
    """Make a site whose ``mease_registry`` is this text, with more ``settings`` behind those of all benchmarks."""
    home = Path(tempfile.mkdtemp(prefix="mease-"))
    try:
        (home / "app").mkdir()
        (home / "app" / "__init__.py").touch()
        (home / "app" / "mease_registry.py").write_text(registry)
        (home / "benchmark_settings.py").write_text(
            SETTINGS.format(database=str(home / "db.sqlite3"), valkey=str(home / "valkey")) + settings
        )
        manage(home, "migrate", "-v0")
        yield home
    finally:
        shutil.rmtree(home)


@contextmanager
def server_of(home: Path, *, stderr: IO[str] | None = None, **environment: str) -> Iterator[Server]:
    """Run a server of that site."""
    process = subprocess.Popen(
        [*MANAGE, "run_websocket_server", "0"],
        cwd=home,
        env={**environment_of(home), **environment},
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
    )
    try:
        server = Server(process, home)
        yield server
        server.redis.close()
    finally:
        process.terminate()
        process.wait(DEADLINE)
        assert process.stdout is not None
        process.stdout.close()


@contextmanager
def serving(
    registry: str, *, settings: str = "", stderr: IO[str] | None = None, **environment: str
) -> Iterator[Server]:
    """Run a server of a site of its own."""
    with site(registry, settings=settings) as home, server_of(home, stderr=stderr, **environment) as server:
        yield server


Receipt = tuple[float, int, int]
"""When something came (``time.monotonic()``), and which of the expected bytes: from the first to before the second."""


class Connections:
    """Many open WebSockets, read by one selector; each byte is compared at each of them."""

    def __init__(self) -> None:
        raise_file_limit()
        self.sockets: list[socket.socket] = []
        self._selector = selectors.DefaultSelector()
        self._early: dict[int, bytes] = {}

    def open(self, port: int, count: int, *, path: str = "", headers: str = "") -> None:
        handshake = HANDSHAKE.format(path=path, headers=headers).encode()
        fresh = []
        for _ in range(count):
            connection = socket.create_connection(("127.0.0.1", port), timeout=DEADLINE)
            connection.sendall(handshake)
            fresh.append(connection)
        for connection in fresh:
            answer = b""
            while b"\r\n\r\n" not in answer:
                chunk = connection.recv(4096)
                if not chunk:
                    raise LostMessageError(f"no handshake, but {answer!r}")
                answer += chunk
            if not answer.startswith(b"HTTP/1.1 101"):
                raise LostMessageError(answer.decode())
            # What an opener writes may come together with the answer.
            self._early[len(self.sockets)] = answer.partition(b"\r\n\r\n")[2]
            connection.setblocking(False)
            self._selector.register(connection, selectors.EVENT_READ, len(self.sockets))
            self.sockets.append(connection)

    def receive(self, expected: bytes, indices: Iterable[int] | None = None) -> None:
        """Read until each connection, or each of those with these indices, has got these bytes, and no other any."""
        self.receive_each(dict.fromkeys(range(len(self.sockets)) if indices is None else indices, expected))

    def receive_each(self, expected: Mapping[int, bytes]) -> None:
        """Read until each connection with one of these indices has got its bytes, and no other any."""
        self._read(self._selector, expected)

    def receive_at(self, expected: bytes, indices: Collection[int]) -> list[Receipt]:
        """Read the same, and return when it came to those with these indices; the others are read behind them.

        A few are known at once, where reading them all would take longer than sending to them.
        """
        with selectors.DefaultSelector() as selector:
            for index in indices:
                self._selector.unregister(self.sockets[index])
                selector.register(self.sockets[index], selectors.EVENT_READ, index)
            receipts = self._read(selector, dict.fromkeys(indices, expected))
        for index in indices:
            self._selector.register(self.sockets[index], selectors.EVENT_READ, index)
        self.receive(expected, set(range(len(self.sockets))).difference(indices))
        return receipts

    def _read(self, selector: selectors.BaseSelector, expected: Mapping[int, bytes]) -> list[Receipt]:
        done = {}
        for index, wanted in expected.items():
            early = self._early.pop(index, b"")
            self._compare(index, early, wanted[: len(early)])
            done[index] = len(early)
        missing = sum(done[index] < len(wanted) for index, wanted in expected.items())
        receipts = []
        deadline = time.monotonic() + DEADLINE
        while missing:
            for key, _ in selector.select(1.0):
                index = key.data
                wanted, before = expected.get(index, b""), done.get(index, 0)
                chunk = key.fileobj.recv(1 << 20)  # type: ignore[union-attr]
                now = time.monotonic()
                after = before + len(chunk)
                if not chunk or wanted[before:after] != chunk:
                    self._compare(index, chunk, wanted[before:after])
                    raise LostMessageError(f"connection {index} was closed")
                receipts.append((now, before, after))
                done[index] = after
                missing -= after == len(wanted)
            if time.monotonic() > deadline:
                raise LostMessageError(f"{missing} connections miss messages after {DEADLINE} s")
        return receipts

    def drain(self) -> None:
        """Read whatever comes, for ever."""
        while True:
            for key, _ in self._selector.select():
                if not key.fileobj.recv(1 << 20):  # type: ignore[union-attr]
                    raise LostMessageError(f"connection {key.data} was closed")

    def expect_nothing(self) -> None:
        """See that nothing more has come than was expected so far."""
        for key, _ in self._selector.select(0.0):
            self._compare(key.data, key.fileobj.recv(1 << 20), b"")  # type: ignore[union-attr]

    def close(self) -> None:
        for connection in self.sockets:
            connection.close()
        self._selector.close()

    def _compare(self, index: int, chunk: bytes, expected: bytes) -> None:
        if chunk != expected:
            raise LostMessageError(f"connection {index} got {chunk[:120]!r} where {expected[:120]!r} was to come")
