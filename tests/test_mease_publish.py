"""manage.py mease_publish: what is published, to whom, what is printed, and with which exit code it ends."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from django.apps import apps
from django.core.management import CommandError, call_command
from websockets.sync.client import connect

import djmease
from djmease.messages import Message
from djmease.reporting import get_status
from djmease.test import captured_messages
from tests.support import DEADLINE, ROOT, LiveServer, Project, eventually
from tests.terminal import Terminal

StartServer = Callable[[], LiveServer]


@pytest.fixture(autouse=True)
def site(settings: Any) -> None:
    settings.MEASE_REPORT_INTERVAL = 0.1
    settings.MEASE_ROUTES = {"news": "djmease.senders.broadcast"}


def run(*arguments: str, code: int = 0) -> str:
    out = io.StringIO()
    if code:
        with pytest.raises(SystemExit) as caught:
            call_command("mease_publish", *arguments, stdout=out)
        assert caught.value.code == code
    else:
        call_command("mease_publish", *arguments, stdout=out)
    return out.getvalue()


def published(*arguments: str) -> Message:
    """Return what the command publishes."""
    with captured_messages() as messages:
        run(*arguments)
    (message,) = messages
    return message


class Input(io.StringIO):
    def __init__(self, text: str = "", is_terminal: bool = False) -> None:
        super().__init__(text)
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal


@pytest.mark.parametrize(
    ("arguments", "body"),
    [
        (["hello"], "hello"),
        (['{"a": 1}'], '{"a": 1}'),
        (['{"a": 1}', "--json"], {"a": 1}),
        (["null", "--json"], None),
        ([""], ""),
        (["--", "-5"], "-5"),
    ],
)
def test_text_is_text_unless_it_is_said_to_be_json(redis: str, arguments: list[str], body: Any) -> None:
    message = published("news", *arguments)
    assert (message.routing, message.body, message.groups, message.users) == ("news", body, None, None)
    assert message.trace is None


@pytest.mark.parametrize("arguments", [[], ["-"]])
@pytest.mark.parametrize(("text", "body"), [("hello", "hello"), ("two\nlines\n", "two\nlines"), ("a\n\n", "a\n")])
def test_a_message_from_the_standard_input(
    redis: str, monkeypatch: pytest.MonkeyPatch, arguments: list[str], text: str, body: str
) -> None:
    monkeypatch.setattr(sys, "stdin", Input(text))
    assert published("news", *arguments).body == body


@pytest.mark.parametrize("arguments", [[], ["-"], ["--json"]])
@pytest.mark.parametrize("text", ["", "\n"])
def test_an_empty_input_is_no_message(monkeypatch: pytest.MonkeyPatch, arguments: list[str], text: str) -> None:
    monkeypatch.setattr(sys, "stdin", Input(text))
    with pytest.raises(
        CommandError, match="There is no MESSAGE: the standard input is empty. Where that is meant, say"
    ):
        run("news", *arguments)


def test_an_empty_message_can_be_said(redis: str) -> None:
    assert published("news", "").body == ""


def test_a_person_is_told_that_there_is_no_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", Input(is_terminal=True))
    with pytest.raises(CommandError, match="There is no MESSAGE"):
        run("news")


def test_groups_and_users(redis: str) -> None:
    message = published("news", "x", "--group", "a", "--group", "b", "--user", "07", "--user", "8")
    assert (message.groups, message.users) == (("a", "b"), ("7", "8"))


def test_a_user_by_something_else_than_a_number(redis: str, monkeypatch: pytest.MonkeyPatch) -> None:
    key = str(uuid.uuid4())
    monkeypatch.setattr(apps, "is_installed", lambda name: name != "django.contrib.auth")
    assert published("news", "x", "--user", key).users == (key,)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["newz", "x"], r"No sender is registered for the routing 'newz'. Did you mean 'news'\?"),
        (["a b", "x"], "routing 'a b' is not a valid name: a routing has 1 to 200"),
        (["a b", "x", "--trace"], "routing 'a b' is not a valid name: a routing has 1 to 200"),
        (["news", "x", "--group", "a b"], "group 'a b' is not a valid name: a group has 1 to 200"),
        (["news", "x", "--group", "mease.x"], "begins with 'mease.', which is reserved"),
        (["news", "x", "--user", "ada"], r"--user 'ada' is no primary key of auth.User \(.*\): name the user by its"),
        (["news", "{a: 1}", "--json"], r"--json: the message '{a: 1}' is not JSON \(Expecting .*\): quote it"),
        (["news", "[" * 100_000, "--json"], "is nested too deeply"),
        (["news", "NaN", "--json"], "Out of range float values are not JSON compliant"),
        (["news", "x" * 2_000_000], "has 2000000 bytes, more than the 1048576 of MEASE_MAX_PUBLISH_SIZE"),
        (["news", "x", "--timeout", "0"], "'0' should be a number of seconds above 0, for example 10"),
        (["news", "x", "--timeout", "soon"], "'soon' should be a number of seconds"),
    ],
)
def test_what_cannot_be_published_is_named_with_its_cure(redis: str, arguments: list[str], told: str) -> None:
    with pytest.raises(CommandError, match=told):
        run(*arguments)


def test_input_that_is_no_text(redis: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xfe"), encoding="utf-8"))
    with pytest.raises(CommandError, match="The standard input is not text in utf-8: invalid start byte"):
        run("news", "-")


@pytest.mark.parametrize("arguments", [["news"], ["news", "-"]])
def test_input_that_is_closed(monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(CommandError, match="There is no MESSAGE, and the standard input is closed"):
        run(*arguments)


def test_arguments_that_the_locale_has_not_understood_are_utf_8(redis: str) -> None:
    assert published("news", "\udcc3\udcbc").body == "ü"
    with pytest.raises(CommandError, match=r"The message is not text in UTF-8 \(invalid start byte\)"):
        run("news", "\udcff")


def test_it_tells_how_many_servers_heard_it(start_server: StartServer) -> None:
    clients = [start_server().connect(), start_server().connect()]
    text = run("news", "hello")
    assert text.startswith("Published ") and text.endswith(": 2 servers heard it.\n")
    assert [client.recv(timeout=DEADLINE) for client in clients] == ["hello", "hello"]


def test_no_server_is_no_failure_and_is_told_once(redis: str, log_of: Callable[[], list[str]]) -> None:
    assert run("news", "x").endswith("and no server heard it. Start one: python manage.py run_websocket_server\n")
    assert log_of() == []


@pytest.mark.parametrize("url", ["unix:///nonexistent/redis.sock", "nonsense://x"])
def test_redis_that_does_not_take_it(redis: str, settings: Any, url: str) -> None:
    settings.MEASE_REDIS_URL = url
    with pytest.raises(CommandError, match="could not be published to Redis at .*: "):
        run("news", "x")
    assert "It stops at Redis: " in run("news", "x", "--trace", code=1)


@pytest.mark.parametrize("arguments", [[], ["--trace"]])
def test_no_redis_in_the_settings(settings: Any, arguments: list[str]) -> None:
    settings.MEASE_REDIS_URL, settings.DEBUG = None, False
    with pytest.raises(CommandError, match="MEASE_REDIS_URL is not set, and DEBUG is off"):
        run("news", "x", *arguments)


def test_who_is_for_nobody_is_told_so(start_server: StartServer) -> None:
    start_server().connect()
    assert run("news", "x", "--user", "7").endswith(
        ", and no server has a client whom it is for; see mease_status, or --trace.\n"
    )


def test_several_groups_are_heard_on_several_channels(start_server: StartServer) -> None:
    @djmease.opener
    def enter(client: Any) -> None:
        client.join("a")
        client.join("b")

    client = start_server().connect()
    assert run("news", "x", "--group", "a", "--group", "b").endswith(" on 2 channels: servers heard it 2 times.\n")
    assert client.recv(timeout=DEADLINE) == "x"


def test_a_trace_that_arrives(start_server: StartServer) -> None:
    client = start_server().connect()
    text = run("news", '{"a": 1}', "--json", "--trace")
    assert text.startswith("Message ") and text.endswith("\n\nIt arrives: written to 1 client.\n")
    assert client.recv(timeout=DEADLINE) == '{"a":1}'


def test_a_trace_that_stops(start_server: StartServer) -> None:
    start_server().connect()
    eventually(lambda: get_status().servers, "the server's report")
    text = run("news", "x", "--group", "room.7", "--trace", code=1)
    assert "It stops in front of the clients: 1 client is connected, and none" in " ".join(text.split())


# In a process of its own

REGISTRY = """
import djmease

@djmease.sender(routing="echo")
def show(message, clients_list):
    clients_list.send(message)

@djmease.sender(routing="bad")
def fail():
    raise ValueError("\\x1b[31mred")
"""


def test_the_whole_way_from_a_shell(project: Project) -> None:
    project.registry(REGISTRY)
    servers = [project.start("run_websocket_server", "--noreload") for _ in range(2)]
    ports = [server.port() for server in servers]
    with connect(f"ws://127.0.0.1:{ports[0]}/") as client:
        done = project.run("mease_publish", "echo", "hello", "--trace")
        assert (done.code, done.err) == (0, "")
        assert client.recv(DEADLINE) == "hello"
        for server in servers:
            assert f"Server    {server.pid} on " in done.out
        assert done.out.endswith("It arrives: written to 1 client.\n")
        failed = project.run("mease_publish", "bad", "x", "--trace")
        assert failed.code == 1 and "\x1b" not in failed.out
        last = " ".join(failed.out.split("\n\n")[-1].split())
        assert last == r"It stops in the senders: app.mease_registry.fail raised ValueError: \x1b[31mred."
    for server in servers:
        server.stop()
    alone = project.run("mease_publish", "echo", "x", "--trace")
    assert alone.code == 1 and "Start one: python manage.py run_websocket_server" in " ".join(alone.out.split())


def test_servers_with_other_settings_are_found_out(project: Project) -> None:
    project.registry(REGISTRY)
    project.settings("MEASE_AUTODISCOVER = False\nMEASE_ROUTES = {'old': 'djmease.senders.broadcast'}")
    project.start("run_websocket_server", "--noreload").port()
    project.settings()
    done = project.run("mease_publish", "echo", "x", "--trace")
    assert done.code == 1
    assert "they were started with other settings or code. Restart them." in " ".join(done.out.split())


def test_input_from_a_pipe_and_the_exit_code_of_a_failure(project: Project) -> None:
    project.registry(REGISTRY)

    def piped(text: bytes, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        command = [sys.executable, "manage.py", "mease_publish", *arguments]
        return subprocess.run(
            command, cwd=project.home, env={"PYTHONPATH": str(ROOT)}, input=text, capture_output=True, check=False
        )

    done = piped(json.dumps({"a": 1}).encode(), "echo", "--json")
    assert done.returncode == 0 and b"no server heard it" in done.stdout
    failed = piped(b"{", "echo", "--json")
    assert (failed.returncode, failed.stdout) == (1, b"")
    assert failed.stderr.startswith(b"CommandError: --json: the message '{' is not JSON")


def test_at_a_terminal(project: Project) -> None:
    project.registry(REGISTRY)
    with Terminal(project, "mease_publish", "echo") as terminal:
        assert terminal.wait() == 1
    assert "There is no MESSAGE" in terminal.plain
    with Terminal(project, "mease_publish", "echo", "x", "--trace") as terminal:
        assert terminal.wait() == 1
    assert "\x1b[31;1mIt stops behind Redis" in terminal.out


def test_help_shows_an_example(project: Project) -> None:
    told = " ".join(project.run("mease_publish", "--help").out.split())
    assert 'Example: python manage.py mease_publish news "Hello world !" --trace' in told
