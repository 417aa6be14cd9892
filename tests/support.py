"""What the tests stand on: a server in a thread, a site in a directory, and waiting with a deadline."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from websockets.sync.client import ClientConnection, connect

from djmease.server import live

DEADLINE = 20.0
"""Seconds after which whatever a test waits for is taken for lost."""

ROOT = Path(__file__).parent.parent


def eventually(condition: Callable[[], Any], what: str = "the condition", timeout: float = DEADLINE) -> Any:
    """Return the first true value of ``condition``, looked at until the deadline."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"{what} did not come true in {timeout} s"
        time.sleep(0.01)


class LiveServer(live.LiveServer):
    """The package's own live server, here with a real Redis, and with clients of the ``websockets`` library."""

    def __init__(self, ssl_context: ssl.SSLContext | None = None) -> None:
        super().__init__(hears_redis=True, ssl_context=ssl_context)
        self._connections = ExitStack()

    def stop(self) -> None:
        """Close what is connected, stop, and raise what the server died of."""
        self._connections.close()
        super().stop()
        assert not self._thread.is_alive()

    def connect(self, path: str = "", **options: Any) -> ClientConnection:
        """Return an open connection of the ``websockets`` library, counted among the clients; it closes with us."""
        before = self.call(lambda: self.server.clients.snapshot())
        options.setdefault("max_size", None)
        options.setdefault("compression", None)
        connection = self._connections.enter_context(connect(self.url + path, **options))
        eventually(lambda: any(client not in before for client in self.server.clients.snapshot()), "a new client")
        return connection

    def raw(self) -> socket.socket:
        """Return a plain TCP connection to the port."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=DEADLINE)


HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


def masked_frame(opcode: int, payload: bytes, *, first: int | None = None, mask: bytes = b"\x01\x02\x03\x04") -> bytes:
    """Return a client's frame; ``first`` replaces its first byte."""
    size = len(payload)
    head = bytes([0x80 | opcode if first is None else first])
    if size < 126:
        head += bytes([0x80 | size])
    elif size < 65536:
        head += bytes([0x80 | 126]) + size.to_bytes(2)
    else:
        head += bytes([0x80 | 127]) + size.to_bytes(8)
    return head + mask + bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload))


MANAGE = """
import os, sys
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "site_settings")
from django.core.management import execute_from_command_line
execute_from_command_line(sys.argv)
"""


class Project:
    """A Django site in a directory of its own, run by its ``manage.py`` in processes of their own."""

    def __init__(self, home: Path, runtime: Path) -> None:
        self.home = home
        self.runtime = runtime
        self.processes: list[Process] = []
        self.write("manage.py", MANAGE)
        self.write("app/__init__.py", "")
        self.settings()

    def write(self, path: str, text: str) -> Path:
        file = self.home / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    def settings(self, more: str = "", debug: bool = False) -> None:
        """Write the site's settings: an embedded Valkey in the test's directory, port 0."""
        self.write(
            "site_settings.py",
            f"DEBUG = {debug}\nSECRET_KEY = 'test'\nALLOWED_HOSTS = ['127.0.0.1']\n"
            f"INSTALLED_APPS = ['djmease', 'app']\nUSE_TZ = True\n"
            f"MEASE_REDIS_URL = 'embedded://'\nMEASE_EMBEDDED_DIR = {str(self.runtime)!r}\nMEASE_PORT = 0\n{more}\n",
        )

    def registry(self, text: str) -> Path:
        return self.write("app/mease_registry.py", text)

    def start(self, *arguments: str, **environment: str) -> Process:
        """Start ``manage.py`` with these arguments."""
        process = Process([sys.executable, "manage.py", *arguments], self.home, environment)
        self.processes.append(process)
        return process

    def run(self, *arguments: str, **environment: str) -> SimpleNamespace:
        """Run ``manage.py`` to its end, and return its ``code``, ``out`` and ``err``."""
        process = self.start(*arguments, **environment)
        code = process.wait()
        return SimpleNamespace(code=code, out=process.out, err=process.err)

    def stop(self) -> None:
        for process in self.processes:
            process.stop()


class Process:
    """A process whose output is read as it comes."""

    def __init__(
        self, command: list[str], home: Path, environment: dict[str, str], pass_fds: Sequence[int] = ()
    ) -> None:
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        inherited = {name: value for name, value in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"}
        self.popen = subprocess.Popen(
            command,
            cwd=home,
            env={**inherited, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            pass_fds=pass_fds,
            text=True,
        )
        self.out = self.err = ""
        self._readers = [threading.Thread(target=self._read, args=(name,), daemon=True) for name in ("out", "err")]
        for reader in self._readers:
            reader.start()

    def _read(self, name: str) -> None:
        stream = self.popen.stdout if name == "out" else self.popen.stderr
        assert stream is not None
        for line in stream:
            setattr(self, name, getattr(self, name) + line)
        stream.close()

    @property
    def pid(self) -> int:
        return self.popen.pid

    def wait_for(self, text: str, times: int = 1) -> None:
        """Wait until the output (of both kinds) has ``text`` so many times."""
        eventually(
            lambda: (self.out + self.err).count(text) >= times or self.popen.poll() is not None,
            f"{text!r} in the output {self.out + self.err!r}",
        )
        assert (self.out + self.err).count(text) >= times, self.out + self.err

    def port(self, times: int = 1) -> int:
        """Return the port that the banner names, of the so manieth start."""
        self.wait_for("Quit with Ctrl-C.", times)
        lines = [line for line in self.out.splitlines() if line.startswith("Address")]
        return int(lines[-1].rsplit(":", 1)[1].split("/")[0])

    def send_signal(self, number: int) -> None:
        self.popen.send_signal(number)

    def wait(self) -> int:
        code = self.popen.wait(DEADLINE)
        for reader in self._readers:
            reader.join(DEADLINE)
        return code

    def stop(self) -> None:
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGTERM)
            try:
                self.popen.wait(DEADLINE)
            except subprocess.TimeoutExpired:
                self.popen.kill()
        self.wait()
