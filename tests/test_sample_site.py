"""The sample site as somebody sees it who has just typed the README's command."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import sys
import tempfile
import urllib.parse
import urllib.request
from collections.abc import Iterator
from http.cookiejar import CookieJar
from pathlib import Path

import pytest
from websockets.sync.client import ClientConnection, connect

from tests.support import DEADLINE, ROOT, Process, eventually

SITE = ROOT / "sample_site"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


class Demo:
    def __init__(self) -> None:
        self.port = free_port()
        # A path that is short enough for a Unix socket, which pytest's own are not everywhere.
        self.home = Path(tempfile.mkdtemp(prefix="mease-"))
        self.process = Process(
            [sys.executable, "manage.py", "demo"],
            SITE,
            {
                "SAMPLE_SITE_DATABASE": str(self.home / "db.sqlite3"),
                "SAMPLE_SITE_EMBEDDED_DIR": str(self.home / "valkey"),
                "SAMPLE_SITE_PORT": str(self.port),
                "SAMPLE_SITE_WEBSOCKET_PORT": "0",
            },
        )
        self.websocket_port = self.process.port()
        self.process.wait_for("Quit the server with CONTROL-C.")
        self.browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(CookieJar()))
        eventually(self._answers, "the site")

    def stop(self) -> None:
        self.process.stop()
        shutil.rmtree(self.home)

    def _answers(self) -> bool:
        try:
            return bool(self.get("/"))
        except OSError:
            return False

    def get(self, path: str) -> str:
        with self.browser.open(f"http://127.0.0.1:{self.port}{path}", timeout=DEADLINE) as response:
            text: str = response.read().decode()
            return text

    def post(self, path: str, **fields: str) -> str:
        """Fill in the form of a page as a browser does, with its CSRF token."""
        token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', self.get(path))
        assert token is not None
        data = urllib.parse.urlencode({**fields, "csrfmiddlewaretoken": token[1]}).encode()
        with self.browser.open(f"http://127.0.0.1:{self.port}{path}", data, timeout=DEADLINE) as response:
            text: str = response.read().decode()
            return text

    def connect(self) -> ClientConnection:
        return connect(f"ws://127.0.0.1:{self.websocket_port}/", origin=f"http://127.0.0.1:{self.port}")


@pytest.fixture(scope="module")
def demo() -> Iterator[Demo]:
    demo = Demo()
    yield demo
    demo.stop()


def received(client: ClientConnection, kind: str) -> dict[str, str]:
    """Return the next message of that type."""
    while True:
        message: dict[str, str] = json.loads(client.recv(DEADLINE))
        if message["type"] == kind:
            return message


def test_the_demo_says_where_to_go_and_how_to_log_in(demo: Demo) -> None:
    assert f"http://127.0.0.1:{demo.port}/" in demo.process.out
    assert "log in as demo, password demo" in demo.process.out
    assert "For the demo only" in demo.process.out


def test_what_one_page_says_arrives_at_the_other_and_is_stored(demo: Demo) -> None:
    with demo.connect() as one, demo.connect() as two:
        received(one, "announcement"), received(two, "announcement")
        one.send(json.dumps({"type": "chat.say", "who": "Ada", "text": "<b>Good</b> morning!"}))
        assert received(two, "chat.message")["text"] == "<b>Good</b> morning!"
        assert received(one, "chat.message")["who"] == "Ada"
    assert "&lt;b&gt;Good&lt;/b&gt; morning!" in demo.get("/")
    with demo.connect() as late:
        assert received(late, "chat.message")["who"] == "Ada"


@pytest.mark.parametrize("fields", ['"who": 1, "text": "x"', '"who": "x", "text": ""', '"who": "x"'])
def test_what_is_no_chat_message_is_answered_to_its_sender(demo: Demo, fields: str) -> None:
    with demo.connect() as client:
        client.send("no json")
        client.send(b"\xff\x00")
        client.send(f'{{"type": "chat.say", {fields}}}')
        assert received(client, "error")["text"]


def test_an_announcement_saved_in_the_admin_arrives_at_the_pages(demo: Demo) -> None:
    assert "Log out" in demo.post("/admin/login/", username="demo", password="demo", next="/admin/")
    change = re.search(r"/admin/announcements/announcement/\d+/change/", demo.get("/admin/announcements/announcement/"))
    assert change is not None
    with demo.connect() as client:
        received(client, "announcement")
        demo.post(change[0], text="The board is open")
        assert received(client, "announcement")["text"] == "The board is open"
    assert "The board is open" in demo.get("/")


def test_a_foreign_page_is_refused(demo: Demo) -> None:
    with (
        pytest.raises(Exception, match="403"),
        connect(f"ws://127.0.0.1:{demo.websocket_port}/", origin="https://evil.example"),
    ):
        pass
    demo.process.wait_for("MEASE_ALLOWED_ORIGINS")


@pytest.mark.parametrize(
    "arguments", [["check", "--fail-level", "WARNING"], ["makemigrations", "--check"], ["test", "--noinput"]]
)
def test_the_sites_checks_migrations_and_tests_are_clean(arguments: list[str]) -> None:
    process = Process([sys.executable, "manage.py", *arguments], SITE, {})
    assert process.wait() == 0, process.out + process.err


def test_one_signal_ends_the_demo() -> None:
    demo = Demo()
    demo.process.send_signal(signal.SIGINT)
    assert demo.process.wait() == 0
    for port in (demo.port, demo.websocket_port):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=DEADLINE)
    demo.stop()
