"""The sample site's demo, started as the README says, in a directory and on ports of its own."""

from __future__ import annotations

import re
import shutil
import socket
import sys
import tempfile
import urllib.parse
import urllib.request
from http.cookiejar import CookieJar
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

from tests.support import DEADLINE, ROOT, Process, eventually

SITE = ROOT / "sample_site"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


class Demo:
    """Both servers, by one command, and a person without a browser who looks at them."""

    def __init__(self, **environment: str) -> None:
        self.port = free_port()
        # A path that is short enough for a Unix socket, which pytest's own are not everywhere.
        self.home = Path(tempfile.mkdtemp(prefix="mease-"))
        self.environment = {
            "SAMPLE_SITE_DATABASE": str(self.home / "db.sqlite3"),
            "SAMPLE_SITE_EMBEDDED_DIR": str(self.home / "valkey"),
            "SAMPLE_SITE_PORT": str(self.port),
            "SAMPLE_SITE_WEBSOCKET_PORT": str(free_port()),
            **environment,
        }
        self.processes: list[Process] = []
        self.browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(CookieJar()))
        try:
            self.start()
            eventually(self._answers, "the site")
        except BaseException:
            self.stop()
            raise

    def start(self) -> None:
        self.process = self.manage("demo")
        self.websocket_port = self.process.port()
        self.process.wait_for("Quit the server with CONTROL-C.")

    def manage(self, *arguments: str) -> Process:
        """Start a command of the site; it ends with us."""
        process = Process([sys.executable, "manage.py", *arguments], SITE, self.environment)
        self.processes.append(process)
        return process

    def run(self, *arguments: str) -> str:
        """Run a command of the site to its end, and return what it printed."""
        process = self.manage(*arguments)
        assert process.wait() == 0, process.out + process.err
        return process.out

    def stop(self) -> None:
        for process in reversed(self.processes):
            process.stop()
        shutil.rmtree(self.home)

    def url(self, path: str = "/", host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"

    def get(self, path: str) -> str:
        with self.browser.open(self.url(path), timeout=DEADLINE) as response:
            text: str = response.read().decode()
            return text

    def post(self, path: str, **fields: str) -> str:
        """Fill in the form of a page as a browser does, with its CSRF token."""
        token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', self.get(path))
        assert token is not None
        data = urllib.parse.urlencode({**fields, "csrfmiddlewaretoken": token[1]}).encode()
        with self.browser.open(self.url(path), data, timeout=DEADLINE) as response:
            text: str = response.read().decode()
            return text

    def connect(self, query: str = "", **options: Any) -> ClientConnection:
        options.setdefault("origin", self.url("").rstrip("/"))
        return connect(f"ws://127.0.0.1:{self.websocket_port}/{query}", **options)

    def _answers(self) -> bool:
        try:
            return bool(self.get("/"))
        except OSError:
            return False


class SingleSteps(Demo):
    """The same in single steps: a site, and a WebSocket server of its own that a test may kill."""

    def start(self) -> None:
        self.run("migrate", "--verbosity", "0")
        self.process = self.manage("run_websocket_server", "--noreload")
        self.websocket_port = self.process.port()
        site = self.manage("runserver", "--noreload", f"127.0.0.1:{self.port}")
        site.wait_for("Quit the server with CONTROL-C.")

    def kill(self) -> None:
        """End the WebSocket server as a machine that fails does: it can say no goodbye."""
        self.process.popen.kill()
        self.process.wait()

    def start_again(self) -> None:
        self.process = self.manage("run_websocket_server", "--noreload")
        self.process.port()
