"""Who is asked whose a handshake is, in which order, what their answers mean; and what is read again later."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pytest
from django.contrib.auth.models import AnonymousUser, User
from django.contrib.sessions.models import Session
from django.core.exceptions import ImproperlyConfigured, PermissionDenied
from django.utils import timezone

import djmease
from djmease.identities import Identity, Unauthenticated, nobody, of_session, of_user, reread, session_hash
from tests.support import LiveServer
from tests.test_checks import found
from tests.test_groups import logged_in
from tests.test_hostile import handshake, request

StartServer = Callable[[], LiveServer]
Log = Callable[[], list[str]]
SESSION = "djmease.authenticators.session"
text = "text"


def named(name: str) -> str:
    return f"{__name__}.{name}"


def by_header(request: Any) -> User | None:
    """The README's kind of authenticator: it may use the ORM."""
    assert threading.current_thread().name == "djmease-worker"
    return User.objects.filter(username=request.headers.get("X-Name", "")).first()


def by_nobody(request: Any) -> None: ...
def stranger(request: Any) -> AnonymousUser:
    return AnonymousUser()


def robot(request: Any) -> Identity:
    return Identity(user=SimpleNamespace(pk=7, is_authenticated=True), expires_at=time.time() + 60)


def forbids(request: Any) -> None:
    raise PermissionDenied("not from this phone")


def forbids_without_a_word(request: Any) -> None:
    raise PermissionDenied


class UntellableDeniedError(PermissionDenied):
    def __str__(self) -> str:
        raise KeyError("detail")


def forbids_untellably(request: Any) -> None:
    raise UntellableDeniedError


def wants_a_login(request: Any) -> None:
    raise Unauthenticated("the token has expired")


def breaks(request: Any) -> None:
    raise RuntimeError("broken on purpose")


def mistaken(request: Any) -> str:
    return "ada, secret"


async def asynchronous(request: Any) -> None: ...
def takes_two(request: Any, more: Any) -> None: ...


@pytest.fixture
def who() -> None:
    @djmease.receiver
    def answer(client: Any) -> None:
        client.send([str(client.user), client.user_key, client.session is not None and client.session.session_key])


def asked(server: LiveServer, **options: Any) -> str:
    page = server.connect(**options)
    page.send("who?")
    return str(page.recv(5))


# Order and answers


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("who")
def test_they_are_asked_in_order_until_one_knows(start_server: StartServer, settings: Any) -> None:
    settings.MEASE_AUTHENTICATORS = [named("by_nobody"), SESSION, named("by_header"), named("breaks")]
    ada, bob = User.objects.create_user("ada"), User.objects.create_user("bob")
    cookie = logged_in(ada, settings)
    key = cookie["Cookie"].partition("=")[2]
    server = start_server()
    assert asked(server, additional_headers=cookie | {"X-Name": "bob"}) == f'["ada","{ada.pk}","{key}"]'
    assert asked(server, additional_headers={"X-Name": "bob"}) == f'["bob","{bob.pk}",null]'
    with pytest.raises(Exception, match="503"):
        server.connect()


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("who")
def test_a_session_that_is_nobodys_stays_where_no_other_knows(start_server: StartServer, settings: Any) -> None:
    settings.MEASE_AUTHENTICATORS = [SESSION, named("stranger"), named("by_header")]
    ada = User.objects.create_user("ada")
    session = import_module(settings.SESSION_ENGINE).SessionStore()
    session.save()
    cookie = {"Cookie": f"{settings.SESSION_COOKIE_NAME}={session.session_key}"}
    server = start_server()
    assert asked(server, additional_headers=cookie) == f'["AnonymousUser",null,"{session.session_key}"]'
    assert asked(server, additional_headers=cookie | {"X-Name": "ada"}) == f'["ada","{ada.pk}",null]'
    assert asked(server) == '["AnonymousUser",null,null]'


def test_where_nobody_is_asked_everybody_is_anonymous(start_server: StartServer, settings: Any) -> None:
    settings.MEASE_AUTHENTICATORS = []
    server = start_server()
    assert b" 101 " in request(server, *handshake(Cookie="sessionid=x"))[0]
    assert server.server._dispatch.workers._threads == 0


def test_a_stranger_needs_no_thread_and_no_database(start_server: StartServer) -> None:
    server = start_server()
    assert b" 101 " in request(server, *handshake(Cookie="other=1", Sec_WebSocket_Protocol="chat"))[0]
    assert server.server._dispatch.workers._threads == 0


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("forbids", 403, b"not from this phone"),
        ("forbids_without_a_word", 403, b"not allowed"),
        ("forbids_untellably", 403, b"its text raised KeyError"),
        ("wants_a_login", 401, b"the token has expired"),
        ("breaks", 503, b"try again later"),
        ("mistaken", 503, b"try again later"),
    ],
)
def test_what_they_raise_is_an_answer(
    start_server: StartServer, settings: Any, log_of: Log, name: str, code: int, words: bytes
) -> None:
    settings.MEASE_AUTHENTICATORS = [named(name)]
    status, body, head = request(start_server(), *handshake())
    assert b" %d " % code in status and words in body and b"broken on purpose" not in body
    assert ("www-authenticate: mease" in head.lower()) is (code == 401)
    assert len([line for line in log_of() if "from 127.0.0.1" in line]) == 1
    assert not any("secret" in line for line in log_of())


def test_an_identity_is_taken_as_it_is(start_server: StartServer, settings: Any) -> None:
    settings.MEASE_AUTHENTICATORS = [named("robot")]
    settings.MEASE_LOGIN_REQUIRED = True
    server = start_server()
    server.connect()
    (client,) = server.server.clients.snapshot()
    assert client.user_key == "7" and client.identity.expires_at is not None


# Who has to log in


@pytest.mark.django_db(transaction=True)
def test_a_login_can_be_required(start_server: StartServer, settings: Any, log_of: Log) -> None:
    settings.MEASE_LOGIN_REQUIRED = True
    server = start_server()
    for lines in (handshake(), handshake(Cookie=f"sessionid={32 * 'x'}")):
        status, body, head = request(server, *lines)
        assert b" 401 " in status and b"logged in" in body and "www-authenticate: mease" in head.lower()
    server.connect(additional_headers=logged_in(User.objects.create_user("ada"), settings))
    assert b" 403 " in request(server, *handshake(Origin="https://evil.example"))[0]
    assert any("nobody is logged in" in line for line in log_of())


# Reading again


@pytest.fixture
def ada(db: None) -> User:
    return User.objects.create_user("ada", password="old")


def session_of(user: User, settings: Any) -> Identity:
    return of_session(logged_in(user, settings)["Cookie"].partition("=")[2])


def test_what_is_known_of_a_session(ada: User, settings: Any) -> None:
    identity = session_of(ada, settings)
    assert identity.user == ada and identity.auth_hash is None
    assert identity.session_hash == session_hash(identity.session.session_key)
    assert identity.expires_at is not None
    assert abs(identity.expires_at - time.time() - settings.SESSION_COOKIE_AGE) < 60
    assert identity.session.session_key not in repr(identity) and identity.session_hash not in repr(identity)
    unknown = of_session(32 * "x")
    assert (unknown.key, unknown.expires_at, unknown.session_hash) == (None, None, None)


def test_who_is_as_before_stays_and_is_read_anew(ada: User, settings: Any) -> None:
    User.objects.update(first_name="Ada")
    for identity in (session_of(ada, settings), of_user(ada)):
        again = reread(replace(identity, read_at=0.0))
        assert again.user == ada and again.user.first_name == "Ada" and again.read_at > 0.0
        assert (again.session_hash, again.auth_hash) == (identity.session_hash, identity.auth_hash)


def logs_out(identity: Identity) -> None:
    identity.session.delete()


def expires(identity: Identity) -> None:
    identity.session.model.objects.update(expire_date=timezone.now() - timedelta(seconds=1))


def changes_password(identity: Identity) -> None:
    user = User.objects.get()
    user.set_password("new")
    user.save()


def is_deactivated(identity: Identity) -> None:
    User.objects.update(is_active=False)


def is_deleted(identity: Identity) -> None:
    User.objects.all().delete()


@pytest.mark.parametrize("change", [logs_out, expires, changes_password, is_deactivated, is_deleted])
@pytest.mark.parametrize("has_session", [True, False])
def test_who_is_not_logged_in_any_more_is_nobody(
    ada: User, settings: Any, has_session: bool, change: Callable[[Identity], None]
) -> None:
    if not has_session and change in (logs_out, expires):
        return
    identity = session_of(ada, settings) if has_session else of_user(ada)
    change(identity)
    again = reread(identity)
    assert (again.key, again.auth_hash, again.user.is_authenticated) == (None, None, False)


def test_a_session_under_an_older_secret_key_is_read_and_stays_as_it_is(ada: User, settings: Any) -> None:
    """Django would give it another key, which no handshake can hand to the browser."""
    settings.SESSION_ENGINE = "django.contrib.sessions.backends.db"
    identity = session_of(ada, settings)
    rows = list(Session.objects.values())
    settings.SECRET_KEY, settings.SECRET_KEY_FALLBACKS = "the new key", [settings.SECRET_KEY]
    again = reread(identity)
    assert (again.user, again.session.session_key) == (ada, identity.session.session_key)
    settings.SECRET_KEY_FALLBACKS = []
    assert reread(identity).key is None
    assert list(Session.objects.values()) == rows


def test_who_has_no_session_is_nobody_when_the_time_is_over(ada: User) -> None:
    assert reread(replace(of_user(ada), expires_at=time.time() + 60)).key == str(ada.pk)
    assert reread(replace(of_user(ada), expires_at=time.time() - 1)).key is None


def test_strangers_and_users_of_no_model_stay_what_they_are() -> None:
    """This test may not use a database."""
    for identity in (nobody(), robot(None)):
        again = reread(replace(identity, read_at=0.0))
        assert again == replace(identity, read_at=again.read_at) and again.read_at > 0.0


# Checks


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (SESSION, ["djmease.E001", f"MEASE_AUTHENTICATORS is '{SESSION}'", "a list"]),
        ([7], ["djmease.E001", "MEASE_AUTHENTICATORS[0] is 7", "a dotted path"]),
        ([SESSION, "djmease.authenticators.tiket"], ["djmease.E002", "MEASE_AUTHENTICATORS[1]", "tiket", "ticket?"]),
        ([named("text")], ["djmease.E005", "MEASE_AUTHENTICATORS[0]", "'text', which cannot be called"]),
        ([named("takes_two")], ["djmease.E006", "takes_two cannot be called", "one argument"]),
        ([named("asynchronous")], ["djmease.E011", "asynchronous is an async def", "def"]),
    ],
)
def test_what_is_wrong_is_found_by_the_checks_and_stops_the_server(
    start_server: StartServer, settings: Any, value: Any, words: list[str]
) -> None:
    settings.MEASE_AUTHENTICATORS = value
    (line,) = found()
    assert all(word in line for word in words), line
    with pytest.raises(ImproperlyConfigured, match="MEASE_AUTHENTICATORS"):
        start_server()


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("MEASE_TRUSTED_PROXIES", "127.0.0.1", ["djmease.E008", "MEASE_TRUSTED_PROXIES is '127.0.0.1'", "a list"]),
        ("MEASE_TRUSTED_PROXIES", ["unix", "nginx"], ["E008", "MEASE_TRUSTED_PROXIES[1] is 'nginx'", "10.0.0.0/8"]),
        ("MEASE_TRUSTED_PROXIES", [7], ["djmease.E008", "MEASE_TRUSTED_PROXIES[0] is 7"]),
        ("MEASE_ALLOWED_ORIGINS", ["*", "a"], ["djmease.E008", "MEASE_ALLOWED_ORIGINS[1] is 'a'", "'*' for any"]),
    ],
)
def test_each_entry_of_a_list_is_checked(settings: Any, name: str, value: Any, words: list[str]) -> None:
    setattr(settings, name, value)
    (line,) = found()
    assert all(word in line for word in words), line


def test_good_lists_are_no_fault(settings: Any) -> None:
    settings.MEASE_TRUSTED_PROXIES = ["127.0.0.1", "::1", "10.0.0.0/8", "unix"]
    settings.MEASE_ALLOWED_ORIGINS = ["*"]
    settings.MEASE_URL = "/ws/"
    settings.MEASE_AUTHENTICATORS = [named("by_header")]
    settings.MEASE_REDIS_URL = "redis://localhost"
    assert found() == []
    (warning,) = found(deploy=True)
    assert "djmease.W006" in warning and "any site" in warning


def test_a_login_that_is_required_needs_djangos_users(settings: Any) -> None:
    settings.MEASE_LOGIN_REQUIRED = True
    assert found() == []
    settings.INSTALLED_APPS = ["djmease"]
    assert any("djmease.E012" in line and "django.contrib.auth" in line for line in found())
