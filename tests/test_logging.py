"""Log records carry whom they are about, so that a site can search its log for one message or one client."""

from __future__ import annotations

import ast
import asyncio
import io
import json
import logging
import logging.config
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.core.exceptions import PermissionDenied
from django.db import transaction
from redis import Redis

import djmease
from djmease import connections
from djmease.messages import Message
from djmease.server import dispatch
from djmease.server.calls import CALL_SIZE
from djmease.server.complaints import Complaints, fields_of
from tests.support import DEADLINE, HANDSHAKE, ROOT, LiveServer, eventually, masked_frame
from tests.test_hostile import RawClient, handshake, request

StartServer = Callable[[], LiveServer]
FIELDS = ("routing", "client_id", "message_id")


@pytest.fixture(autouse=True)
def everything(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "djmease")


@pytest.fixture
def record_of(caplog: pytest.LogCaptureFixture) -> Callable[[str], logging.LogRecord]:
    """Returns the first record whose text has this in it, as soon as there is one."""

    def wait(text: str) -> logging.LogRecord:
        found = eventually(lambda: [record for record in caplog.records if text in record.getMessage()], repr(text))
        return found[0]

    return wait


Find = Callable[[str], logging.LogRecord]


def fields(record: logging.LogRecord) -> dict[str, str]:
    return {name: getattr(record, name) for name in FIELDS if hasattr(record, name)}


def only_client(server: LiveServer) -> Any:
    return next(iter(server.server._limits.clients.values()))


# What they are about


def test_a_callback_that_raises(start_server: StartServer, record_of: Find) -> None:
    @djmease.sender(routing="news")
    def show(message: Any) -> None:
        raise ValueError("of a sender")

    @djmease.sender(routing="later")
    async def show_later(message: Any) -> None:
        raise ValueError("of an async sender")

    @djmease.receiver
    async def hear(message: Any) -> None:
        raise ValueError("of a receiver")

    server = start_server()
    client = server.connect()
    message_id, later_id = djmease.publish("news", "x"), djmease.publish("later", "x")
    client.send("x")
    assert fields(record_of("of a sender")) == {"routing": "news", "message_id": message_id}
    assert fields(record_of("of an async sender")) == {"routing": "later", "message_id": later_id}
    record = record_of("of a receiver")
    assert fields(record) == {"client_id": only_client(server).id}
    assert record.exc_info and record.getMessage().endswith(f"for client {only_client(server).id}")


def test_a_callback_that_is_slow(start_server: StartServer, settings: Any, record_of: Find) -> None:
    settings.MEASE_SLOW_CALLBACK_TIMEOUT = 0.1
    may_end = threading.Event()

    @djmease.receiver
    def hear(message: Any) -> None:
        assert may_end.wait(DEADLINE)

    @djmease.sender(routing="news")
    async def show(message: Any) -> None:
        while not may_end.is_set():
            await asyncio.sleep(0.01)

    server = start_server()
    client = server.connect()
    message_id = djmease.publish("news", "x")
    client.send("x")
    about_client, about_message = {"client_id": only_client(server).id}, {"routing": "news", "message_id": message_id}
    try:
        assert fields(record_of("hear still runs")) == about_client
        assert fields(record_of("show still waits")) == about_message
    finally:
        may_end.set()
    assert fields(record_of("hear has ended")) == about_client
    assert fields(record_of("show has ended")) == about_message


def test_a_loop_that_is_blocked(start_server: StartServer, settings: Any, record_of: Find) -> None:
    settings.MEASE_SLOW_CALLBACK_TIMEOUT = 0.1
    may_end = threading.Event()

    @djmease.sender(routing="news")
    async def show(message: Any) -> None:
        may_end.wait(DEADLINE)

    start_server()
    message_id = djmease.publish("news", "x")
    try:
        assert fields(record_of("has stood still")) == {"routing": "news", "message_id": message_id}
    finally:
        may_end.set()
    assert fields(record_of("turns again")) == {}


def test_a_client_that_does_not_read(start_server: StartServer, settings: Any, record_of: Find) -> None:
    settings.MEASE_ROUTES = {"news": "djmease.senders.broadcast"}
    settings.MEASE_MAX_CLIENT_BUFFER = 10_000
    server = start_server()
    with RawClient(server, receive_buffer=8192).shake_hands():
        client = eventually(lambda: server.server._limits.clients and only_client(server))
        eventually(lambda: djmease.publish("news", "x" * 500_000) and server.server._outbox.slow)
        assert fields(record_of("does not read")) == {"client_id": client.id}


def test_a_client_that_does_not_answer(start_server: StartServer, settings: Any, record_of: Find) -> None:
    settings.MEASE_PING_INTERVAL = settings.MEASE_PING_TIMEOUT = 0.1
    server = start_server()
    with server.raw() as sock:
        sock.sendall(HANDSHAKE)
        client = eventually(lambda: server.server._limits.clients and only_client(server))
        assert fields(record_of("has not answered a ping")) == {"client_id": client.id}


def test_a_client_that_sends_too_much(start_server: StartServer, settings: Any, record_of: Find) -> None:
    settings.MEASE_MAX_MESSAGE_BURST = 1
    server = start_server()
    client = server.connect()
    client_id = only_client(server).id
    client.socket.sendall(masked_frame(1, b"x") * 5)
    assert fields(record_of("MEASE_MAX_MESSAGE_RATE")) == {"client_id": client_id}


def test_a_message_that_is_dropped(start_server: StartServer, monkeypatch: pytest.MonkeyPatch, record_of: Find) -> None:
    monkeypatch.setattr(dispatch, "MAX_ROUTING_WAITING", 2 * (CALL_SIZE + 1))
    may_end = threading.Event()

    @djmease.sender(routing="news")
    def show(message: Any) -> None:
        assert may_end.wait(DEADLINE)

    start_server()
    ids = [djmease.publish("news", str(index)) for index in range(3)]
    try:
        assert fields(record_of("is dropped: they are too slow")) == {"routing": "news", "message_id": ids[2]}
    finally:
        may_end.set()


def test_a_message_that_is_refused(start_server: StartServer, record_of: Find) -> None:
    @djmease.receiver(user_passes_test=lambda user: False)
    def hear(message: Any) -> None: ...

    @djmease.receiver(type="chat.say")
    def say(message: Any) -> None: ...

    server = start_server()
    client = server.connect()
    client.send('{"type": "chat.sya"}')
    about = {"client_id": only_client(server).id}
    assert fields(record_of("may not be heard by")) == about
    assert fields(record_of("which no receiver takes; did you mean 'chat.say'?")) == about


def test_a_client_that_is_turned_away(start_server: StartServer, record_of: Find) -> None:
    seen: list[str] = []

    @djmease.opener
    def enter(client: Any) -> None:
        seen.append(client.id)
        raise PermissionDenied("not you")

    server = start_server()
    with RawClient(server).shake_hands():
        assert fields(record_of("is turned away by")) == {"client_id": seen[0]}


def test_a_handshake_that_is_refused(start_server: StartServer, record_of: Find) -> None:
    status, _, _ = request(start_server(), *handshake(Origin="https://elsewhere.example"))
    assert b"403" in status
    assert re.fullmatch("[0-9a-f]{16}", fields(record_of("refused '/' from"))["client_id"])


def test_a_payload_that_cannot_be_read(start_server: StartServer, record_of: Find) -> None:
    start_server()
    redis = Redis(connection_pool=connections.publisher_pool())
    redis.publish(f"{connections.channel_prefix()}news", b"\x00mease9 x")
    assert fields(record_of("is refused: envelope of version")) == {"routing": "news"}


def test_traffic(start_server: StartServer, settings: Any, record_of: Find) -> None:
    settings.MEASE_STRICT_ROUTING = False
    settings.MEASE_ROUTES = {"news": "djmease.senders.broadcast"}
    start_server()
    message_id, unrouted_id = djmease.publish("news", "x"), djmease.publish("nobody", "x")
    assert fields(record_of("djmease.senders.broadcast, 0 clients")) == {"routing": "news", "message_id": message_id}
    assert fields(record_of("no sender")) == {"routing": "nobody", "message_id": unrouted_id}


@pytest.mark.django_db(transaction=True)
def test_what_could_not_be_published(redis: str, settings: Any, record_of: Find) -> None:
    settings.MEASE_STRICT_ROUTING = False
    djmease.publish("unheard", "x")
    assert fields(record_of("nobody hears 'unheard'")).keys() == {"routing", "message_id"}
    settings.MEASE_REDIS_URL = "redis://127.0.0.1:1/0"
    message_id = djmease.publish("news", "x", fail_silently=True)
    record = record_of("The message on 'news' could not be published")
    assert fields(record) == {"routing": "news", "message_id": message_id}
    with transaction.atomic():
        lost_id = djmease.publish("later", "x")
    assert fields(record_of("is lost after the commit")) == {"routing": "later", "message_id": lost_id}


def test_a_message_a_client_and_a_routing_have_their_fields_and_nobody_has_none() -> None:
    message = Message(routing="news", body="x", id="7", published_at=0.0, size=1)
    assert fields_of(message) == {"routing": "news", "message_id": "7"}
    assert fields_of("news") == {"routing": "news"}
    assert fields_of(None) == fields_of(object()) == {}


def test_what_is_kept_back_is_not_looked_at(caplog: pytest.LogCaptureFixture) -> None:
    class Client:
        asked = 0

        @property
        def id(self) -> str:
            Client.asked += 1
            return "1"

    complaints = Complaints(logging.getLogger("djmease.server"))
    for _ in range(5):
        complaints.say("client %s", "1", about=Client())
    assert (len(caplog.records), Client.asked) == (1, 1)


def calls_of_loggers() -> Iterator[tuple[Path, ast.Call]]:
    methods = {"say", "debug", "info", "warning", "error", "exception", "log"}
    for path in (ROOT / "djmease").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in methods:
                yield path, node


def test_no_line_that_names_a_message_or_a_client_is_without_its_fields() -> None:
    found = 0
    for path, call in calls_of_loggers():
        text = ast.unparse(call)
        if re.search(r"client %s|message %s|\.subject|message\.id|client\.id", text):
            found += 1
            assert {keyword.arg for keyword in call.keywords} & {"extra", "about"}, f"{path}: {text}"
    assert found >= 15


# How a site shows them

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "mease": {
            "()": "logging.Formatter",
            "style": "{",
            "fmt": "{asctime} {levelname} {name} routing={routing} message={message_id} client={client_id} {message}",
            "defaults": {"routing": "-", "message_id": "-", "client_id": "-"},
        },
    },
    "handlers": {"mease": {"class": "logging.StreamHandler", "formatter": "mease"}},
    "loggers": {"djmease": {"handlers": ["mease"], "level": "INFO", "propagate": False}},
}
"""As docs/operations.rst has it."""


@pytest.fixture
def own_configuration() -> Iterator[None]:
    """What a test configures is gone after it."""
    logger = logging.getLogger("djmease")
    before = (logger.handlers[:], logger.level, logger.propagate)
    yield
    logger.handlers[:], logger.level, logger.propagate = before


def shown(configuration: dict[str, Any], start_server: StartServer) -> tuple[list[str], LiveServer, str]:
    """Return the lines of a receiver that raises, of a message that has no sender, and of one about nobody."""

    @djmease.receiver
    def hear(message: Any) -> None:
        raise ValueError("bad")

    stream = io.StringIO()
    logging.config.dictConfig({**configuration, "handlers": {"mease": {**HANDLER, "stream": stream}}})
    server = start_server()
    client = server.connect()
    message_id = djmease.publish("news", "x")
    eventually(lambda: "no sender" in stream.getvalue())
    client.send("x")
    eventually(lambda: "bad" in stream.getvalue())
    server.control({"order": "nothing of the kind"})
    eventually(lambda: "is not known" in stream.getvalue())
    lines = [line for line in stream.getvalue().splitlines() if "djmease." in line and "File" not in line]
    return lines, server, message_id


HANDLER = {"class": "logging.StreamHandler", "formatter": "mease"}


def test_a_format_with_the_fields_shows_records_without_them_too(
    start_server: StartServer, settings: Any, own_configuration: None
) -> None:
    settings.MEASE_STRICT_ROUTING = False
    lines, server, message_id = shown(LOGGING, start_server)
    client_id = only_client(server).id

    def line(text: str) -> str:
        return next(line for line in lines if text in line)

    assert f"djmease.traffic routing=news message={message_id} client=- " in line("no sender")
    assert f"ERROR djmease.server routing=- message=- client={client_id} " in line("raised")
    assert "WARNING djmease.server routing=- message=- client=- an order is not known" in line("is not known")


class JSONFormatter(logging.Formatter):
    """As packages do it: everything that a record has beside what each has."""

    ALWAYS = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime"}

    def format(self, record: logging.LogRecord) -> str:
        more = {name: value for name, value in record.__dict__.items() if name not in self.ALWAYS}
        return json.dumps({"logger": record.name, "text": record.getMessage(), **more})


def test_a_json_formatter_shows_the_fields(start_server: StartServer, settings: Any, own_configuration: None) -> None:
    settings.MEASE_STRICT_ROUTING = False
    formatters = {"mease": {"()": JSONFormatter}}
    lines, server, message_id = shown({**LOGGING, "formatters": formatters}, start_server)
    found = [json.loads(line) for line in lines if line.startswith("{")]
    traffic = next(line for line in found if line["text"].endswith("no sender"))
    assert (traffic["routing"], traffic["message_id"], "client_id" in traffic) == ("news", message_id, False)
    raised = next(line for line in found if "raised" in line["text"])
    assert raised.keys() == {"logger", "text", "client_id"}
    assert raised["client_id"] == only_client(server).id
    unknown = next(line for line in found if "is not known" in line["text"])
    assert unknown.keys() == {"logger", "text"}


def test_the_page_on_running_it_has_this_configuration() -> None:
    page = (ROOT / "docs" / "operations.rst").read_text()
    block = re.search(r"^    LOGGING = (\{.*?^    \})", page, re.MULTILINE | re.DOTALL)
    assert block is not None
    assert ast.literal_eval(re.sub(r"^    ", "", block[1], flags=re.MULTILINE)) == LOGGING
