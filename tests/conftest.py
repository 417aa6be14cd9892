from __future__ import annotations

import shutil
import signal
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from djmease import publishing
from djmease.embedded import EmbeddedValkey
from djmease.registry import declarations
from tests.browser import Browser, running_browser
from tests.support import LiveServer, Project


def pytest_configure() -> None:
    # Behind a shell's "&" SIGINT is ignored, by nohup SIGHUP, and then by each process that the tests start.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session")
def valkey() -> Iterator[EmbeddedValkey]:
    """A real Valkey for all tests, in a directory whose path is short enough for its socket."""
    home = Path(tempfile.mkdtemp(prefix="mease-"))
    valkey = EmbeddedValkey(home)
    valkey.acquire()
    yield valkey
    valkey.release()
    shutil.rmtree(home)


@pytest.fixture
def redis(settings: Any, valkey: EmbeddedValkey) -> str:
    """The settings name that Valkey, with a prefix of this test's own; returns the prefix with its colon."""
    settings.MEASE_REDIS_URL = f"unix://{valkey.socket}"
    settings.MEASE_KEY_PREFIX = f"test-{uuid.uuid4().hex}"
    return f"{settings.MEASE_KEY_PREFIX}:"


@pytest.fixture
def own_valkey(redis: str, settings: Any, short_directory: Path) -> Iterator[EmbeddedValkey]:
    """A Valkey that this test may kill."""
    valkey = EmbeddedValkey(short_directory)
    valkey.acquire()
    settings.MEASE_REDIS_URL = f"unix://{valkey.socket}"
    yield valkey
    valkey.ensure_running()
    valkey.release()


@pytest.fixture(autouse=True)
def own_declarations() -> Iterator[None]:
    """What a test decorates is gone after it, and what it counts begins at nothing."""
    before = declarations[:]
    declarations.clear()
    publishing.counts.clear()
    yield
    declarations[:] = before


@pytest.fixture
def start_server(redis: str) -> Iterator[Callable[[], LiveServer]]:
    """Starts servers in threads, by the settings and decorators of the moment in which it is called."""
    servers: list[LiveServer] = []

    def start() -> LiveServer:
        server = LiveServer()
        servers.append(server)
        server.start()
        return server

    yield start
    for server in servers:
        server.stop()


@pytest.fixture
def short_directory() -> Iterator[Path]:
    """A temporary directory whose path is short enough for a Unix socket."""
    home = Path(tempfile.mkdtemp(prefix="mease-"))
    yield home
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
def project(tmp_path: Path, short_directory: Path) -> Iterator[Project]:
    """A Django site of its own; its processes end with the test."""
    project = Project(tmp_path, short_directory / "valkey")
    yield project
    project.stop()


@pytest.fixture(scope="session")
def running_chromium() -> Iterator[Browser]:
    with running_browser() as browser:
        yield browser


@pytest.fixture
def browser(running_chromium: Browser) -> Iterator[Browser]:
    """Headless Chromium, without windows or cookies of another test."""
    yield running_chromium
    running_chromium.clear()


@pytest.fixture
def log_of(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """Returns the log messages so far."""

    def messages(*_: Any) -> list[str]:
        return [record.getMessage() for record in caplog.records]

    return messages
