"""What the benchmarks share: a site in a temporary directory, its server as a process, and many plain connections."""

from __future__ import annotations

import os
import resource
import selectors
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
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
"""
DEADLINE = 60.0


class LostMessageError(Exception):
    """A client got less, more, or something else than was published for it: the run is worth nothing."""


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
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

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
def serving(
    registry: str, *, settings: str = "", stderr: IO[str] | None = None, **environment: str
) -> Iterator[Server]:
    """Run a server whose ``mease_registry`` is this text, with more ``settings`` behind those of all benchmarks."""
    home = Path(tempfile.mkdtemp(prefix="mease-"))
    (home / "app").mkdir()
    (home / "app" / "__init__.py").touch()
    (home / "app" / "mease_registry.py").write_text(registry)
    (home / "benchmark_settings.py").write_text(
        SETTINGS.format(database=str(home / "db.sqlite3"), valkey=str(home / "valkey")) + settings
    )
    manage(home, "migrate", "-v0")
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
        shutil.rmtree(home)


class Connections:
    """Many open WebSockets, read by one selector; each frame is counted at each of them."""

    def __init__(self) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        self.sockets: list[socket.socket] = []
        self._selector = selectors.DefaultSelector()
        self._early: dict[int, int] = {}

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
                answer += connection.recv(4096)
            if not answer.startswith(b"HTTP/1.1 101"):
                raise LostMessageError(answer.decode())
            # What an opener writes may come together with the answer.
            self._early[len(self.sockets)] = len(answer.partition(b"\r\n\r\n")[2])
            connection.setblocking(False)
            self._selector.register(connection, selectors.EVENT_READ, len(self.sockets))
            self.sockets.append(connection)

    def receive(self, expected: dict[int, int]) -> None:
        """Read until each connection (by its index) has got so many bytes, and no other any."""
        missing = {index: count - self._early.pop(index, 0) for index, count in expected.items()}
        missing = {index: count for index, count in missing.items() if count}
        deadline = time.monotonic() + DEADLINE
        while missing:
            for key, _ in self._selector.select(1.0):
                index = key.data
                count = len(key.fileobj.recv(1 << 20))  # type: ignore[union-attr]
                left = missing.get(index, 0) - count
                if left < 0 or not count:
                    raise LostMessageError(f"connection {index} got {-left} bytes too many")
                if left:
                    missing[index] = left
                else:
                    del missing[index]
            if time.monotonic() > deadline:
                raise LostMessageError(f"{len(missing)} connections miss messages after {DEADLINE} s")

    def close(self) -> None:
        for connection in self.sockets:
            connection.close()
        self._selector.close()
