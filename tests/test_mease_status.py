"""manage.py mease_status: in pytest's process for what it says, in a process and terminal of its own for the rest."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import time
from dataclasses import fields
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from djmease.reporting import Status
from djmease.reports import ServerReport
from tests import reported
from tests.support import ROOT, Project, eventually
from tests.terminal import Terminal

ESCAPES = "\x1b[31m\x9b2J\u202e"


def told(columns: int = 200, code: int = 0, *arguments: str) -> str:
    """Return what the command writes, which ends with this code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", str(columns))
        out = io.StringIO()
        if code:
            with pytest.raises(SystemExit) as caught:
                call_command("mease_status", *arguments, stdout=out)
            assert caught.value.code == code
        else:
            call_command("mease_status", *arguments, stdout=out)
    return out.getvalue()


def words(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines()]


@pytest.fixture
def servers(redis: str) -> tuple[ServerReport, ServerReport]:
    """Two servers that report, one of them deaf, with much that came from outside."""
    callbacks = (
        reported.sender(heard=1204, calls=1204, rate=3.4, delivered=14404, p50=0.00012, p99=0.0021),
        reported.sender(
            "chat.*",
            "company.shop.apps.chat.mease_registry.show",
            is_async=True,
            source="company.shop.apps.chat.mease_registry:12",
            errors=3,
            last_error=f"ValueError('{ESCAPES}')",
            last_error_at=reported.message().published_at,
        ),
        reported.receiver(calls=3),
    )
    first = reported.server(
        callbacks=callbacks,
        messages=tuple(reported.message(f"{index:016x}", routing="chat.room") for index in range(20)),
        unrouted=(reported.unrouted("chat.mesage", 4),),
        lost={"slow_clients": 3, "dropped": 0},
        refused={"origin": 5, "login_ended": 2},
        slow=1,
        blocked=2,
        waiting_published=2048,
        unsent=10,
    )
    second = reported.server(
        "77", pid=4712, host="web2", trouble=f"it is deaf {ESCAPES}", recent_errors=3, callbacks=callbacks
    )
    reported.put(first, second)
    return first, second


def test_it_is_well(redis: str) -> None:
    reported.put(reported.server())
    text = words(told())
    assert text[0] == "It is well: 1 server, 12 clients."
    at = text.index("Servers")
    assert text[at + 1].startswith("process state clients in/s out/s lag p50 p99")
    assert text[at + 2].startswith("4711 web1 well 12 3.5 340 0.8 ms 4.1 ms 0.3 ms 61 MiB 3% 2 h 05 min 0 B ")


def test_no_server_is_not_well_and_has_a_cure(redis: str) -> None:
    text = words(told(code=1))
    assert text[:3] == [
        "It is not well: 0 servers, 0 clients.",
        "! No WebSocket server runs: what is published reaches nobody.",
        "Start one: python manage.py run_websocket_server",
    ]
    assert "Servers" not in text


def test_redis_away_is_told_as_a_problem(redis: str, settings: Any) -> None:
    settings.MEASE_REDIS_URL = "unix:///nonexistent/redis.sock"
    text = told(200, 1)
    assert "! Redis does not answer this process" in text and "unix:///nonexistent/redis.sock" in text


def test_no_redis_in_the_settings_is_one_sentence(settings: Any) -> None:
    settings.MEASE_REDIS_URL, settings.DEBUG = None, False
    with pytest.raises(CommandError, match="MEASE_REDIS_URL is not set"):
        call_command("mease_status", stdout=io.StringIO())


def test_everything_of_two_servers(servers: tuple[ServerReport, ServerReport]) -> None:
    text = words(told(200, 1))
    assert text[0] == "It is not well: 2 servers, 24 clients."
    states = [line.split()[:3] for line in text[text.index("Servers") + 2 :][:2]]
    assert states == [["4711", "web1", "well"], ["4712", "web2", "deaf"]]
    routes = text[text.index("Routes") + 2 :][:2]
    assert routes[0] == "news djmease.senders.broadcast 1,204 28,808 6.8 0 0.1 ms 2.1 ms - MEASE_ROUTES['news']"
    assert routes[1].startswith("chat.* company.shop.apps.chat.mease_registry.show async 0 0 0 6 - - -")
    assert text[text.index("Receivers, openers, closers") + 2].startswith("receiver chat.live.say 6 0 0 - - -")
    assert text[text.index("Last errors") + 1].startswith(
        "- company.shop.apps.chat.mease_registry.show for chat.*, 3 s ago: ValueError"
    )
    assert "Lost 3 slow clients" in text and "Refused 5 origin" in text and "Sent away 2 login ended" in text
    assert "Slow 1 call over MEASE_SLOW_CALLBACK_TIMEOUT, the event loop stood still 2 times" in text
    assert " 2 h 05 min 2.0 KiB 10 B ws://" in text[text.index("Servers") + 2]
    assert text[text.index("Published, without a sender") + 2] == "chat.mesage 4 5 s ago"
    messages = text[text.index("Last messages") + 2 :]
    assert len(messages) == 10
    assert messages[0].startswith("3 s ago chat.room 12 0.9 ms 120 B 0 broadcast 0000")


@pytest.mark.parametrize(
    ("fields", "state", "code"),
    [
        ({"is_draining": True}, "stopping", 1),
        ({"trouble": "it is deaf"}, "deaf", 1),
        ({"reported_at": reported.server().reported_at - 60}, "late", 0),
        ({}, "well", 0),
    ],
)
def test_the_state_of_a_server(redis: str, fields: dict[str, Any], state: str, code: int) -> None:
    reported.put(reported.server(**fields))
    text = words(told(200, code))
    assert text[text.index("Servers") + 2].startswith(f"4711 web1 {state} ")


def test_errors_are_told_the_newest_first_and_not_all(redis: str) -> None:
    now = time.time()
    failed = [reported.sender(f"r{at}", last_error="no", last_error_at=now - 60 * at) for at in range(30)]
    reported.put(reported.server(callbacks=tuple(failed)))
    text = words(told())
    at = text.index("Last errors")
    assert [line.split(",")[0].rpartition(" ")[2] for line in text[at + 1 :]] == [f"r{at}" for at in range(10)]


def test_bodies_are_shown_where_they_are_reported(redis: str) -> None:
    reported.put(reported.server(messages=(reported.message(body=f'{{"a":"{ESCAPES}"}}'),)))
    text = words(told())
    assert text[-2].endswith(" id body") and text[-1].endswith(r' {"a":"\x1b[31m\x9b2J\u202e"}')


@pytest.mark.parametrize("columns", [40, 60, 80, 120, 200])
def test_it_fits_the_terminal(servers: tuple[ServerReport, ServerReport], columns: int) -> None:
    lines = told(columns, 1).splitlines()
    assert max(map(len, lines)) <= columns
    assert max(map(len, lines)) > min(columns, 150) - 15


def test_nothing_from_outside_commands_the_terminal(servers: tuple[ServerReport, ServerReport]) -> None:
    text = told(200, 1)
    assert not set("\x1b\x9b\u202e") & set(text)
    assert r"\x1b[31m\x9b2J\u202e" in text


def test_json_has_the_fields_of_the_dataclasses(servers: tuple[ServerReport, ServerReport]) -> None:
    text = told(80, 1, "--json")
    assert text.isascii() and text.count("\n") == 1
    found = json.loads(text)
    assert set(found) == {each.name for each in fields(Status)} | {"is_well"}
    assert found["is_well"] is False
    assert set(found["servers"][0]) == {each.name for each in fields(ServerReport)}
    assert found["servers"][0]["lost"] == {"slow_clients": 3, "dropped": 0}
    assert found["servers"][0]["history"]["sent"] == [100.0, 340.0]
    assert found["problems"][0]["kind"] == "deaf"


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C is pressed at the end of the second wait."""
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) > 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", sleep)


@pytest.mark.parametrize(("term", "redraws"), [("xterm", True), ("dumb", False)])
def test_watching_a_terminal(
    redis: str, interrupted: None, monkeypatch: pytest.MonkeyPatch, term: str, redraws: bool
) -> None:
    monkeypatch.setenv("TERM", term)
    reported.put(reported.server())
    out = Screen()
    call_command("mease_status", watch=True, stdout=out)
    text = out.getvalue()
    assert text.count("It is well: 1 server") == 2
    assert text.count("\x1b[H") == (2 if redraws else 0)
    assert ("until Ctrl-C" in text) == redraws


def test_watching_as_json(redis: str, interrupted: None) -> None:
    lines = told(80, 1, "--watch", "--json").splitlines()
    assert [json.loads(line)["is_well"] for line in lines] == [False, False]


# In a process of its own


@pytest.fixture
def site(project: Project, redis: str, settings: Any) -> Project:
    """A site that finds what this process writes into Redis."""
    project.settings(
        f"MEASE_REDIS_URL = {settings.MEASE_REDIS_URL!r}\nMEASE_KEY_PREFIX = {settings.MEASE_KEY_PREFIX!r}"
    )
    return project


def test_the_exit_code_says_whether_it_is_well(site: Project) -> None:
    assert site.run("mease_status").code == 1
    reported.put(reported.server())
    done = site.run("mease_status")
    assert (done.code, done.err) == (0, "")
    assert "\x1b" not in done.out


def test_help_shows_an_example(site: Project) -> None:
    assert "python manage.py mease_status --watch" in " ".join(site.run("mease_status", "--help").out.split())


def test_watching_appends_where_there_is_no_terminal(site: Project) -> None:
    reported.put(reported.server())
    watch = site.start("mease_status", "--watch")
    watch.wait_for("It is well: 1 server, 12 clients.")
    reported.put(reported.server(clients=13))
    watch.wait_for("It is well: 1 server, 13 clients.")
    watch.send_signal(signal.SIGINT)
    assert (watch.wait(), watch.err) == (0, "")
    assert "\x1b" not in watch.out


def test_watching_as_json_is_a_line_for_each_look(site: Project) -> None:
    watch = site.start("mease_status", "--watch", "--json")
    watch.wait_for("\n", times=2)
    watch.send_signal(signal.SIGINT)
    assert (watch.wait(), watch.err) == (1, "")
    assert [json.loads(line)["is_well"] for line in watch.out.splitlines()[:2]] == [False, False]


@pytest.mark.parametrize("columns", [80, 200])
def test_watching_redraws_a_terminal_in_place(site: Project, columns: int) -> None:
    reported.put(reported.server(), *(reported.server(f"{pid}", pid=pid) for pid in range(100, 140)))
    with Terminal(site, "mease_status", "--watch", columns=columns, lines=24) as terminal:
        terminal.wait_for("It is well: 41 servers", times=2)
        eventually(lambda: terminal.out.count("\x1b[J") >= 2, "the end of the second screen")
        terminal.interrupt()
        assert terminal.wait() == 0
    assert "Traceback" not in terminal.out
    screens = terminal.out.split("\x1b[H")[1:]
    assert screens[0].count("\r\n") == screens[1].count("\r\n") == 23, "a screen never scrolls"
    assert "more lines)" in screens[0]
    assert terminal.out.count("\x1b[2J") == 1, "the screen is cleared once, so that it does not flicker"
    lines = terminal.plain.splitlines()
    assert 60 < max(map(len, lines)) <= columns
    assert ("settings" in terminal.plain) == (columns == 200)


def test_a_terminal_has_colours_unless_they_are_not_wanted(site: Project) -> None:
    for options, has_colours in [((), True), (("--no-color",), False)]:
        with Terminal(site, "mease_status", *options) as terminal:
            assert terminal.wait() == 1
        assert ("\x1b[" in terminal.out) == has_colours
        assert "It is not well" in terminal.plain


def test_who_reads_the_output_may_go(site: Project) -> None:
    process = subprocess.Popen(
        [sys.executable, "manage.py", "mease_status", "--watch", "--json"],
        cwd=site.home,
        env={"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None and process.stderr is not None
    with process:
        assert b"is_well" in process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


def test_real_servers_are_shown_as_they_come_and_go(project: Project) -> None:
    project.registry("import djmease\n\n@djmease.sender(routing='echo')\nasync def show(message): ...\n")
    servers = [project.start("run_websocket_server", "--noreload") for _ in range(2)]
    for server in servers:
        server.port()
    done = project.run("mease_status", COLUMNS="200")
    assert (done.code, done.err) == (0, "")
    for server in servers:
        assert any(line.split()[0:1] == [str(server.pid)] and " well " in line for line in done.out.splitlines())
    assert "echo     app.mease_registry.show  async" in done.out
    for server in servers:
        server.stop()
    done = project.run("mease_status")
    assert done.code == 1 and "No WebSocket server runs" in done.out
