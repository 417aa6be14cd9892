"""manage.py mease_routes: what is registered, and what would run, without a server and without Redis."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from django.core.management import call_command

import djmease
from tests.support import Project
from tests.terminal import Terminal

WHERE = "tests.test_mease_routes"


@pytest.fixture(autouse=True)
def site(settings: Any) -> None:
    settings.MEASE_REDIS_URL = "unix:///nonexistent/redis.sock"
    settings.MEASE_AUTODISCOVER = False
    settings.MEASE_ROUTES = {
        "news": "djmease.senders.broadcast",
        "item.*": {"SENDERS": ["djmease.senders.render", f"{WHERE}.show"], "TEMPLATE": "item.html"},
        "off": None,
    }
    settings.MEASE_RECEIVERS = [
        {"RECEIVER": "djmease.receivers.publish", "TYPE": ["a", "b.*"], "ROUTING": "news"},
        {
            "RECEIVER": f"{WHERE}.hear",
            "JSON": True,
            "PERMISSION_REQUIRED": "app.say",
            "USER_PASSES_TEST": f"{WHERE}.ok",
        },
        f"{WHERE}.hear_all",
    ]
    settings.MEASE_OPENERS = [f"{WHERE}.come"]
    settings.MEASE_CLOSERS = [f"{WHERE}.go"]
    settings.MEASE_GROUPS = {
        "board.*": True,
        "board.closed": False,
        "mine.*": {"LOGIN_REQUIRED": True, "USER_PASSES_TEST": f"{WHERE}.ok"},
    }


async def show(message: Any, *, template: str) -> None: ...


def every(message: Any) -> None: ...


def hear(message: Any) -> None: ...


def hear_all(message: Any) -> None: ...


def ok(user: Any) -> bool:
    return True


def come(client: Any) -> None: ...


async def go(client: Any) -> None: ...


def told(*arguments: str, columns: int = 200, code: int = 0) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", str(columns))
        out = io.StringIO()
        try:
            call_command("mease_routes", *arguments, stdout=out)
        except SystemExit as end:
            assert end.code == code
        else:
            assert code == 0
    return out.getvalue()


def words(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines()]


def test_all_that_is_registered_and_from_where() -> None:
    assert words(told()) == [
        "Routes",
        "routing sender options declared in",
        "news djmease.senders.broadcast async MEASE_ROUTES['news']",
        "item.* djmease.senders.render template='item.html' MEASE_ROUTES['item.*']",
        f"item.* {WHERE}.show async template='item.html' MEASE_ROUTES['item.*']",
        "",
        "Receivers",
        "receiver hears from whom options declared in",
        "djmease.receivers.publish type a, b.* logged in routing='news' MEASE_RECEIVERS[0]",
        f"{WHERE}.hear JSON may app.say, passes {WHERE}.ok MEASE_RECEIVERS[1]",
        f"{WHERE}.hear_all all MEASE_RECEIVERS[2]",
        "",
        "Openers",
        "opener declared in",
        f"{WHERE}.come MEASE_OPENERS[0]",
        "",
        "Closers",
        "closer declared in",
        f"{WHERE}.go async MEASE_CLOSERS[0]",
        "",
        "Groups that pages may join",
        "group who may join declared in",
        "board.* everybody MEASE_GROUPS['board.*']",
        "board.closed nobody MEASE_GROUPS['board.closed']",
        f"mine.* logged in, passes {WHERE}.ok MEASE_GROUPS['mine.*']",
    ]


@pytest.mark.parametrize("columns", [40, 60, 80, 120])
def test_it_fits_the_terminal(columns: int) -> None:
    lines = told(columns=columns).splitlines()
    assert columns - 15 < max(map(len, lines)) <= columns


def test_what_would_run_stands_in_its_order() -> None:
    djmease.sender(every)
    line = every.__code__.co_firstlineno
    assert words(told("item.new")) == [
        "item.new can be published, and 3 senders would run.",
        "",
        "Senders, in this order",
        "routing sender options declared in",
        "item.* djmease.senders.render template='item.html' MEASE_ROUTES['item.*']",
        f"item.* {WHERE}.show async template='item.html' MEASE_ROUTES['item.*']",
        f"* {WHERE}.every {WHERE}:{line}",
        "",
        "What is wrong",
        f"! The sender {WHERE}.every was registered by a module that Django does not import when it starts, so the "
        "server may never see it. (djmease.W002)",
        "Decorate it in the mease_registry of an installed app, or import its module there.",
    ]


def test_a_sender_that_matches_twice_is_told_once(settings: Any) -> None:
    settings.MEASE_ROUTES = {"a": f"{WHERE}.every", "*": f"{WHERE}.every"}
    found = json.loads(told("a", "--json"))
    assert [sender["routing"] for sender in found["senders"]] == ["a"]


def test_a_routing_for_which_nothing_would_run_is_refused_with_the_closest() -> None:
    text = told("newz", code=1)
    assert text.startswith(
        "newz cannot be published. No sender is registered for the routing 'newz'. Did you mean 'news'?"
    )
    assert "Senders" not in text


def test_what_settings_switch_off_does_not_run() -> None:
    assert "cannot be published" in told("off", code=1)


def test_without_strict_routing_it_passes_and_nothing_runs(settings: Any) -> None:
    settings.MEASE_STRICT_ROUTING = False
    assert words(told("newz", code=1)) == [
        "newz can be published, but no sender would run. Did you mean 'news'?",
    ]


@pytest.mark.parametrize("routing", ["a b", "", "mease.x", "x" * 201, "\x1b[2J"])
def test_what_is_no_name_is_refused(routing: str) -> None:
    djmease.sender(every)
    text = told(routing, code=1)
    assert "cannot be published" in text and "Senders" not in text and "\x1b" not in text


def test_faults_stand_at_the_end_the_worst_first(settings: Any) -> None:
    settings.MEASE_PROT = 1
    settings.MEASE_CLOSERS = [f"{WHERE}.gone"]
    lines = told().splitlines()
    at = lines.index("What is wrong")
    assert lines[at + 1].startswith(f"  ! MEASE_CLOSERS[0]: '{WHERE}.gone' does not import")
    assert lines[at + 1].endswith("(djmease.E002)")
    assert lines[at + 3 :] == [
        "  ! MEASE_PROT is not a setting of django-mease. (djmease.W003)",
        "    Did you mean MEASE_PORT?",
    ]


@pytest.mark.parametrize("routes", [["news"], "news", {3: "a.b"}, None])
def test_routes_of_a_wrong_type_are_a_fault_and_no_traceback(settings: Any, routes: Any) -> None:
    settings.MEASE_ROUTES = routes
    assert "(djmease.E001)" in told()
    assert "(djmease.E001)" in told("news", code=1)


def test_nothing_registered_says_so(settings: Any) -> None:
    settings.MEASE_ROUTES, settings.MEASE_RECEIVERS = {}, []
    settings.MEASE_OPENERS, settings.MEASE_CLOSERS, settings.MEASE_GROUPS = [], [], {}
    assert words(told()) == ["No sender is registered: MEASE_ROUTES is empty, and no mease_registry has one."]


def test_json() -> None:
    found = json.loads(told("--json"))
    assert list(found) == ["routes", "receivers", "openers", "closers", "groups", "faults"]
    assert found["routes"][2] == {
        "routing": "item.*",
        "path": f"{WHERE}.show",
        "source": "MEASE_ROUTES['item.*']",
        "is_async": True,
        "options": {"template": "'item.html'"},
    }
    assert found["receivers"][1] == {
        "path": f"{WHERE}.hear",
        "source": "MEASE_RECEIVERS[1]",
        "is_async": False,
        "options": {},
        "json": True,
        "types": [],
        "login_required": False,
        "permission_required": ["app.say"],
        "user_passes_test": f"{WHERE}.ok",
    }
    assert found["groups"][1:] == [
        {
            "group": "board.closed",
            "source": "MEASE_GROUPS['board.closed']",
            "may_be_joined": False,
            "login_required": False,
            "permission_required": [],
            "user_passes_test": None,
        },
        {
            "group": "mine.*",
            "source": "MEASE_GROUPS['mine.*']",
            "may_be_joined": True,
            "login_required": True,
            "permission_required": [],
            "user_passes_test": f"{WHERE}.ok",
        },
    ]
    assert found["faults"] == []


def test_json_of_a_routing() -> None:
    found = json.loads(told("newz", "--json", code=1))
    assert found["closest"] == ["news"] and found["senders"] == [] and "Did you mean" in found["refusal"]


# In a process of its own


def test_it_needs_no_server_and_ends_with_its_code(project: Project) -> None:
    project.registry("import djmease\n\n@djmease.sender(routing='echo')\ndef show(message): ...\n")
    done = project.run("mease_routes")
    assert (done.code, done.err) == (0, "")
    assert "app.mease_registry:3" in done.out
    assert project.run("mease_routes", "echo").code == 0
    assert project.run("mease_routes", "ecco").code == 1
    assert not project.runtime.exists(), "no Redis was started"
    assert "python manage.py mease_routes chat.message" in " ".join(project.run("mease_routes", "--help").out.split())


def test_colours_are_for_terminals(project: Project) -> None:
    with Terminal(project, "mease_routes", "ecco") as terminal:
        assert terminal.wait() == 1
    assert "\x1b[31" in terminal.out and terminal.plain.startswith("ecco cannot be published.")
