"""The README's first live page, walked as it is written: but for the installing, and on ports of its own."""

from __future__ import annotations

import re
import shlex
import shutil
import signal
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser import Browser, Window
from tests.demo import free_port
from tests.support import ROOT, Process


def blocks() -> list[str]:
    """Return the code of the section: the commands that install, the Python, the page, and the commands that run."""
    text = (ROOT / "README.rst").read_text()
    section = text[text.index("Your first live page\n---") : text.index("The idea\n---")]
    found = re.findall(r"^\.\. code-block:: \w+\n\n((?:    .*\n|\n)+)", section, re.MULTILINE)
    return [textwrap.dedent(block).strip() + "\n" for block in found]


@pytest.fixture
def home() -> Iterator[Path]:
    # A path that is short enough for a Unix socket, which pytest's own are not everywhere.
    home = Path(tempfile.mkdtemp(prefix="mease-"))
    yield home
    shutil.rmtree(home)


def test_two_windows_show_what_the_shell_publishes_and_come_back(home: Path, browser: Browser) -> None:
    install, python, page, run = blocks()
    start_project = install.splitlines()[-1]
    assert start_project.startswith("django-admin ")
    shop = home / "shop"
    shop.mkdir()
    processes: list[Process] = []

    def start(*command: str) -> Process:
        processes.append(Process([sys.executable, *command], shop, {}))
        return processes[-1]

    assert start("-m", "django", *shlex.split(start_project)[1:]).wait() == 0
    settings, urls = python.split("# at the end of shop/urls.py\n")
    port, websocket_port = free_port(), free_port()
    own = f"\nMEASE_PORT = {websocket_port}\nMEASE_EMBEDDED_DIR = {str(home / 'valkey')!r}\n"
    for name, more in (("settings.py", settings + own), ("urls.py", urls)):
        with (shop / "shop" / name).open("a") as file:
            file.write(more)
    (shop / "shop" / "templates").mkdir()
    (shop / "shop" / "templates" / "news.html").write_text(page)

    server_line, publish_line = run.splitlines()
    migrate, serve = (shlex.split(command)[1:] for command in server_line.split(" && "))
    assert start(*migrate).wait() == 0

    def start_server() -> Process:
        server = start(*serve, f"127.0.0.1:{port}")
        server.wait_for("Quit the server with CONTROL-C.")
        return server

    def publish_to(windows: list[Window], shown: str) -> None:
        for window in windows:
            window.wait_for("live.state === 'open'")
        assert start(*shlex.split(publish_line)[1:]).wait() == 0
        for window in windows:
            window.wait_for_text("#news", shown)

    try:
        server = start_server()
        windows = [browser.open(f"http://127.0.0.1:{port}/") for _ in range(2)]
        publish_to(windows, "Hello world !")
        server.wait_for("djmease.senders.broadcast, 2 clients")
        server.send_signal(signal.SIGINT)
        assert server.wait() == 0
        for window in windows:
            window.wait_for("live.state === 'reconnecting'")
        start_server()
        publish_to(windows, "Hello world !\nHello world !")
    finally:
        for process in reversed(processes):
            process.stop()
