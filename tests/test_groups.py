"""One user, one room, one kind of message, over real sockets and real sessions."""

from __future__ import annotations

import importlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY
from django.contrib.auth.models import Permission, User
from websockets.sync.client import connect

import djmease
from djmease.server import dispatch
from tests.support import LiveServer, Project, eventually

StartServer = Callable[[], LiveServer]
Log = Callable[[], list[str]]


def logged_in(user: User, settings: Any) -> dict[str, str]:
    """Return the headers of a browser in which the user has logged in."""
    session = importlib.import_module(settings.SESSION_ENGINE).SessionStore()
    session[SESSION_KEY] = str(user.pk)
    session[BACKEND_SESSION_KEY] = "django.contrib.auth.backends.ModelBackend"
    session[HASH_SESSION_KEY] = user.get_session_auth_hash()
    session.save()
    return {"Cookie": f"{settings.SESSION_COOKIE_NAME}={session.session_key}"}


@pytest.mark.django_db(transaction=True)
def test_a_client_has_the_user_and_the_session_of_djangos_cookie(start_server: StartServer, settings: Any) -> None:
    @djmease.receiver
    def who(client: Any) -> None:
        client.send([str(client.user), client.user.is_authenticated, client.session.session_key])

    ada = User.objects.create_user("ada")
    server = start_server()
    headers = logged_in(ada, settings)
    pages = [
        server.connect(additional_headers=headers),
        server.connect(),
        server.connect(additional_headers={"Cookie": f"{settings.SESSION_COOKIE_NAME}=forged"}),
    ]
    for page in pages:
        page.send("who?")
    key = headers["Cookie"].partition("=")[2]
    assert pages[0].recv(5) == f'["ada",true,"{key}"]'
    assert pages[1].recv(5) == '["AnonymousUser",false,null]'
    assert '["AnonymousUser",false,' in str(pages[2].recv(5))


def test_clients_join_and_leave_and_lists_are_narrowed(start_server: StartServer) -> None:
    @djmease.receiver
    def do(client: Any, message: str, clients_list: Any) -> None:
        verb, _, group = message.partition(" ")
        if verb in ("join", "leave"):
            getattr(client, verb)(group)
        else:
            clients_list.group(group).send(f"to {group}")
        client.send(sorted(client.groups))

    server = start_server()
    one, two = server.connect(), server.connect()
    for message, answer in (("join a", '["a"]'), ("join b", '["a","b"]'), ("join a", '["a","b"]')):
        one.send(message)
        assert one.recv(5) == answer
    two.send("tell a")
    assert (one.recv(5), two.recv(5)) == ("to a", "[]")
    one.send("leave a")
    assert one.recv(5) == '["b"]'
    two.send("tell a")
    assert two.recv(5) == "[]"
    one.close()
    eventually(lambda: len(server.server.clients) == 1)
    assert server.server.clients._groups == {}


def test_group_names_and_users_are_checked_by_name(start_server: StartServer) -> None:
    caught: list[str] = []

    @djmease.receiver
    def misuse(client: Any, clients_list: Any) -> None:
        for call in (client.join, client.leave, clients_list.group):
            try:
                call("a room")
            except ValueError as error:
                caught.append(str(error))

    djmease.sender(misuse_sender)
    start_server().connect().send("x")
    eventually(lambda: len(caught) == 3)
    assert all("'a room'" in error and "1 to 200" in error for error in caught)
    with pytest.raises(ValueError, match="'a room'"):
        djmease.publish("x", "", group="a room")
    with pytest.raises(ValueError, match=r"'mease\.x' begins with 'mease\.'"):
        djmease.publish("x", "", group=["a", "mease.x"])
    with pytest.raises(ValueError, match="not saved"):
        djmease.publish("x", "", user=User(username="new"))


def misuse_sender(message: Any) -> None: ...


@pytest.mark.django_db(transaction=True)
def test_a_right_that_is_revoked_does_not_live_as_long_as_the_tab(
    start_server: StartServer, settings: Any, monkeypatch: pytest.MonkeyPatch, log_of: Log
) -> None:
    @djmease.receiver(type="def", permission_required="auth.add_user")
    def restricted(client: Any) -> None:
        client.send("ok")

    @djmease.receiver(type="async", user_passes_test=lambda user: user.has_perm("auth.add_user"))
    async def restricted_async(client: Any) -> None:
        await client.send("ok async")

    ada = User.objects.create_user("ada")
    ada.user_permissions.add(Permission.objects.get(codename="add_user"))
    page = start_server().connect(additional_headers=logged_in(ada, settings))
    page.send('{"type": "def"}')
    page.send('{"type": "async"}')
    assert [page.recv(5), page.recv(5)] == ["ok", "ok async"]
    ada.user_permissions.clear()
    page.send('{"type": "def"}')
    assert page.recv(5) == "ok", "it is read again only after a while"
    monkeypatch.setattr(dispatch, "MAX_IDENTITY_AGE", 0.0)
    page.send('{"type": "def"}')
    page.send('{"type": "async"}')
    assert page.recv(5) == '{"type":"mease.refused","reason":"permission_required","refused":"def"}'
    assert page.recv(5) == '{"type":"mease.refused","reason":"user_passes_test","refused":"async"}'
    assert any("may not be heard by" in line for line in log_of())


@pytest.mark.django_db(transaction=True)
def test_who_logs_out_is_nobody_when_read_again_and_found_under_no_user(
    start_server: StartServer, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "MAX_IDENTITY_AGE", 0.0)

    @djmease.receiver(type="who", login_required=True)
    def who(client: Any) -> None:
        client.send(str(client.user))

    server = start_server()
    headers = logged_in(User.objects.create_user("ada"), settings)
    page = server.connect(additional_headers=headers)
    page.send('{"type": "who"}')
    assert page.recv(5) == "ada"
    assert len(server.server.clients._users) == 1
    importlib.import_module(settings.SESSION_ENGINE).SessionStore(headers["Cookie"].partition("=")[2]).delete()
    page.send('{"type": "who"}')
    assert "login_required" in str(page.recv(5))
    assert server.server.clients._users == {}


def test_a_type_that_no_receiver_takes_is_counted_and_named_with_the_closest(
    start_server: StartServer, caplog: pytest.LogCaptureFixture, log_of: Log
) -> None:
    caplog.set_level("INFO", "djmease.traffic")

    @djmease.receiver(type="chat.say")
    def say() -> None: ...

    server = start_server()
    server.connect().send('{"type": "chat.sai"}')
    meant = "'chat.sai', which no receiver takes; did you mean 'chat.say'?"
    eventually(lambda: any(meant in line for line in log_of()))
    assert server.server._dispatch.unheard == 1


async def promise(user: Any) -> bool:
    return True


def generate(user: Any) -> Iterator[bool]:
    yield True


async def generate_async(user: Any) -> AsyncIterator[bool]:
    yield True


def divide(user: Any) -> bool:
    return bool(1 / 0)


@pytest.mark.parametrize(
    ("test", "told"),
    [
        (divide, "ZeroDivisionError"),
        (lambda user: promise(user), "returned <coroutine"),
        (generate, "returned <generator"),
        (generate_async, "returned <async_generator"),
    ],
)
def test_a_test_of_a_user_that_raises_or_gives_no_answer_is_a_no(
    start_server: StartServer, log_of: Log, test: Callable[[Any], Any], told: str
) -> None:
    ran: list[str] = []

    @djmease.receiver(user_passes_test=test)
    def never() -> None:
        ran.append("never")

    @djmease.receiver
    def always(client: Any) -> None:
        client.send("always")

    page = start_server().connect()
    page.send("x")
    assert page.recv(5) == "always"
    assert ran == []
    assert any(told in line for line in log_of())


@pytest.mark.parametrize("apps", [["djmease"], ["djmease", "django.contrib.auth", "django.contrib.contenttypes"]])
def test_sites_without_auth_or_sessions_work_too(start_server: StartServer, settings: Any, apps: list[str]) -> None:
    settings.INSTALLED_APPS = apps

    @djmease.receiver
    def who(client: Any) -> None:
        client.send([client.user is None, client.session is None])

    page = start_server().connect(additional_headers={"Cookie": "sessionid=x"})
    page.send("who?")
    assert page.recv(5) == ("[true,true]" if len(apps) == 1 else "[false,true]")


def test_a_session_that_cannot_be_read_is_a_503_and_not_an_open_door(start_server: StartServer, log_of: Log) -> None:
    """This test may not use a database, as a site whose database is away may not."""
    server = start_server()
    with pytest.raises(Exception, match="503"):
        server.connect(additional_headers={"Cookie": f"sessionid={32 * 'x'}"})
    assert any("could not be read" in line for line in log_of())


TWO_PROCESSES = """
import djmease

@djmease.opener
def enter(client):
    client.join(client.get_query_argument("room"))
    client.write_message("open")

@djmease.sender(routing="say")
def show(message, clients_list):
    for client in clients_list:
        client.write_message(message)
"""
A_SITE_WITH_USERS = """
INSTALLED_APPS = ["django.contrib.auth", "django.contrib.contenttypes", "django.contrib.sessions", "djmease", "app"]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "db.sqlite3"}}
SESSION_ENGINE = "django.contrib.sessions.backends.signed_cookies"
"""
LOG_IN = """
from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY
from django.contrib.auth.models import User
from django.contrib.sessions.backends.signed_cookies import SessionStore
for name in ("ada", "grace"):
    user = User.objects.create_user(name)
    session = SessionStore()
    session[SESSION_KEY] = str(user.pk)
    session[BACKEND_SESSION_KEY] = "django.contrib.auth.backends.ModelBackend"
    session[HASH_SESSION_KEY] = user.get_session_auth_hash()
    session.save()
    print(session.session_key)
"""
PUBLISH = """
import djmease
from django.contrib.auth.models import User
ada, grace = User.objects.order_by("pk")
for index in range(50):
    djmease.publish("say", f"room0 {index}", group="room.0")
    djmease.publish("say", f"ada {index}", user=ada)
    djmease.publish("say", f"both {index}", group=["room.0", "room.1"])
    djmease.publish("say", f"grace in 1 {index}", user=[grace.pk], group="room.1")
    djmease.publish("say", f"nobody {index}", group="room.2")
djmease.publish("say", "end")
"""


def test_two_users_two_tabs_each_two_rooms_and_two_server_processes(project: Project) -> None:
    """Each message reaches exactly its clients, once, in order."""
    project.registry(TWO_PROCESSES)
    project.settings(A_SITE_WITH_USERS)
    assert project.run("migrate", "-v0").code == 0
    cookies = project.run("shell", "-v0", "-c", LOG_IN).out.split()
    servers = [project.start("run_websocket_server"), project.start("run_websocket_server")]
    ports = [server.port() for server in servers]
    with ExitStack() as stack:
        tabs = {
            (user, room): stack.enter_context(
                connect(
                    f"ws://127.0.0.1:{ports[(user + room) % 2]}/?room=room.{room}",
                    additional_headers={"Cookie": f"sessionid={cookies[user]}"},
                )
            )
            for user in (0, 1)
            for room in (0, 1)
        }
        # The opener's word comes before the client is listed; what is published right then may come too early.
        assert [tab.recv(5) for tab in tabs.values()] == ["open"] * 4
        assert project.run("shell", "-v0", "-c", PUBLISH).code == 0
        for (user, room), tab in tabs.items():
            expected = []
            for index in range(50):
                expected += [f"room0 {index}"] * (room == 0) + [f"ada {index}"] * (user == 0) + [f"both {index}"]
                expected += [f"grace in 1 {index}"] * ((user, room) == (1, 1))
            assert [tab.recv(5) for _ in range(len(expected) + 1)] == [*expected, "end"]
