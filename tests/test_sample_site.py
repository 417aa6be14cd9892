"""The sample site as somebody sees it who has just typed the README's command."""

from __future__ import annotations

import json
import re
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import ClientConnection

from djmease.embedded import EmbeddedValkey
from tests.demo import SITE, Demo, free_port
from tests.support import DEADLINE, Process, eventually


@pytest.fixture(scope="module")
def demo() -> Iterator[Demo]:
    demo = Demo()
    yield demo
    demo.stop()


def received(client: ClientConnection, kind: str) -> dict[str, Any]:
    """Return the next message of that type, without its header."""
    while True:
        text = str(client.recv(DEADLINE))
        message: dict[str, Any] = json.loads(text.partition("\n")[2] if text.startswith("\x1e") else text)
        if message["type"] == kind:
            return message


def test_the_demo_says_where_to_go_and_how_to_log_in_when_it_is_up(demo: Demo) -> None:
    demo.process.wait_for("everybody knows that password")
    before, _, greeting = demo.process.out.partition("The sample site ")
    assert "Quit with Ctrl-C." in before and "Quit the server with CONTROL-C." in before
    assert demo.url() in greeting
    assert demo.url() in demo.process.out
    assert "log in as demo, password demo" in demo.process.out
    assert "For the demo only" in demo.process.out


@pytest.mark.parametrize("variable", ["SAMPLE_SITE_PORT", "SAMPLE_SITE_WEBSOCKET_PORT"])
def test_a_port_in_use_is_told_with_the_variable_that_names_another(tmp_path: Path, variable: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = {name: str(free_port()) for name in ("SAMPLE_SITE_PORT", "SAMPLE_SITE_WEBSOCKET_PORT")}
        ports[variable] = str(taken.getsockname()[1])
        process = Process(
            [sys.executable, "manage.py", "demo"],
            SITE,
            {**ports, "SAMPLE_SITE_DATABASE": str(tmp_path / "db.sqlite3"), "SAMPLE_SITE_EMBEDDED_DIR": str(tmp_path)},
        )
        try:
            assert process.wait() == 1
        finally:
            process.stop()
    assert f"Port {ports[variable]} cannot be used (Address already in use)" in process.err
    assert f"{variable}=" in process.err and "Traceback" not in process.err


def test_what_one_page_says_arrives_at_the_other_and_is_stored(demo: Demo) -> None:
    with demo.connect("?room=lobby&name=Ada") as one, demo.connect("?room=lobby&name=Grace") as two:
        for client in (one, two):
            client.send(json.dumps({"type": "chat.look", "after": 0}))
            received(client, "chat.here")
        one.send(json.dumps({"type": "chat.say", "text": "<b>Good</b> morning!"}))
        assert received(two, "chat.message")["text"] == "<b>Good</b> morning!"
        assert received(one, "chat.message")["who"] == "Ada"
    assert "&lt;b&gt;Good&lt;/b&gt; morning!" in demo.get("/chat/")
    with demo.connect("?room=lobby&name=Alan") as late:
        late.send(json.dumps({"type": "chat.look", "after": 0}))
        assert received(late, "chat.message")["who"] == "Ada"


def names_seen_by(client: ClientConnection) -> list[str]:
    client.send(json.dumps({"type": "chat.look", "after": 0}))
    return [person["info"]["name"] for person in received(client, "chat.here")["persons"]]


def see_each_other(demo: Demo) -> None:
    with demo.connect("?room=garden&name=Ada") as ada:
        eventually(lambda: names_seen_by(ada) == ["Ada"])
        with demo.connect("?room=garden&name=Grace") as grace:
            for client in (ada, grace):
                eventually(lambda client=client: names_seen_by(client) == ["Ada", "Grace"])
        while (left := received(ada, "mease.presence"))["event"] != "leave":
            pass
        assert (left["user"], left["info"]) == (None, {"name": "Grace"})
        assert names_seen_by(ada) == ["Ada"]


def test_those_in_a_room_see_each_other_with_the_embedded_valkey(demo: Demo) -> None:
    see_each_other(demo)


def test_those_in_a_room_see_each_other_with_a_redis(valkey: EmbeddedValkey) -> None:
    demo = Demo(SAMPLE_SITE_REDIS_URL=f"unix://{valkey.socket}")
    try:
        assert str(valkey.socket) in demo.process.out
        assert not (demo.home / "valkey").exists()
        see_each_other(demo)
    finally:
        demo.stop()


@pytest.mark.parametrize("fields", ['"text": 1', '"text": ""', '"who": "x"'])
def test_what_is_no_chat_message_is_answered_to_its_sender(demo: Demo, fields: str) -> None:
    with demo.connect("?room=lobby&name=Ada") as client:
        client.send("no json")
        client.send(b"\xff\x00")
        client.send(f'{{"type": "chat.say", {fields}}}')
        assert received(client, "chat.error")["text"]


def test_an_announcement_saved_in_the_admin_arrives_at_the_pages(demo: Demo) -> None:
    assert "Log out" in demo.post("/login/", username="demo", password="demo", next="/admin/")
    change = re.search(r"/admin/announcements/announcement/\d+/change/", demo.get("/admin/announcements/announcement/"))
    assert change is not None
    with demo.connect(subprotocols=["mease.v1"]) as client:
        assert client.recv(DEADLINE) == '\x1e{"type":"ready"}'
        client.send('\x1e{"type":"join","group":"board"}')
        assert client.recv(DEADLINE) == '\x1e{"type":"joined","group":"board"}'
        client.send('{"type": "board.look"}')
        received(client, "board")
        demo.post(change[0], title="The board is open", text="")
        assert "The board is open" in str(received(client, "board"))
    assert "The board is open" in demo.get("/board/")


def test_a_score_goes_from_redis_to_every_page_by_a_line_in_the_settings(demo: Demo) -> None:
    payload = '{"type": "score", "home": 3, "away": 1}'
    with demo.connect() as client, demo.connect() as other:
        for connection in (client, other):
            connection.send('{"type": "board.look"}')
            received(connection, "board")
        demo.run("shell", "-c", f"import djmease; djmease.publish('scores', {payload!r})")
        assert [received(connection, "score") for connection in (client, other)] == 2 * [json.loads(payload)]


def test_scores_are_taken_from_those_alone_who_have_logged_in(demo: Demo) -> None:
    with demo.connect() as client:
        client.send('{"type": "score", "home": 9, "away": 9}')
        assert received(client, "mease.refused")["refused"] == "score"


def test_a_foreign_page_is_refused(demo: Demo) -> None:
    with pytest.raises(Exception, match="403"), demo.connect(origin="https://evil.example"):
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
