"""Tickets: good once, for a minute, for one user of one site; and never in a log."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
from django.contrib.auth.models import AnonymousUser, User
from django.core import signing
from django.test import Client as Browser
from django.test import RequestFactory
from django.urls import path
from redis import Redis

import djmease
from djmease import tickets, views
from djmease.connections import publisher_pool
from djmease.identities import Unauthenticated, reread, session_hash
from djmease.tickets import redeem
from tests.support import LiveServer
from tests.test_groups import logged_in
from tests.test_hostile import handshake, request

StartServer = Callable[[], LiveServer]
Log = Callable[[], list[str]]

urlpatterns = [path("ws-ticket/", views.ticket)]


@pytest.fixture
def ada(transactional_db: None) -> User:
    return User.objects.create_user("ada", password="old")


@pytest.fixture
def who() -> None:
    @djmease.receiver
    def answer(client: Any) -> None:
        client.send(str(client.user))


@pytest.fixture(autouse=True)
def no_ticket_is_logged(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Remembers every ticket of a test, and looks for it in all that was logged, of any logger and level."""
    caplog.set_level("DEBUG")
    issued: list[str] = []
    sign = signing.TimestampSigner.sign_object

    def remember(self: Any, *arguments: Any, **options: Any) -> str:
        issued.append(sign(self, *arguments, **options))
        return issued[-1]

    monkeypatch.setattr(signing.TimestampSigner, "sign_object", remember)
    yield
    logged = caplog.text + "".join(str(record.exc_info or "") for record in caplog.records)
    for ticket in issued:
        assert not any(part in logged for part in ticket.split(".") if len(part) > 8)


def answer_to(server: LiveServer, ticket: str, *, as_subprotocol: bool = False) -> tuple[int, str]:
    """Return the status and the body of the answer to a handshake with a ticket."""
    lines = handshake(Sec_WebSocket_Protocol=f"mease.ticket, mease.ticket.{ticket}" if as_subprotocol else None)
    if not as_subprotocol:
        lines[0] = f"GET /?ticket={ticket} HTTP/1.1"
    status, body, _ = request(server, *lines)
    return int(status.split()[1]), body.decode("latin-1")


# Good ones


@pytest.mark.usefixtures("who")
def test_a_ticket_says_whose_a_connection_is(start_server: StartServer, settings: Any, ada: User) -> None:
    settings.MEASE_LOGIN_REQUIRED = True
    server = start_server()
    page = server.connect(f"?ticket={djmease.issue_ticket(ada)}")
    page.send("who?")
    assert page.recv(5) == "ada"
    assert page.subprotocol is None


@pytest.mark.usefixtures("who")
def test_a_ticket_may_come_as_a_subprotocol_and_is_never_sent_back(start_server: StartServer, ada: User) -> None:
    server = start_server()
    page = server.connect(subprotocols=["mease.ticket", f"mease.ticket.{djmease.issue_ticket(ada)}"])
    page.send("who?")
    assert (page.recv(5), page.subprotocol) == ("ada", "mease.ticket")
    page = server.connect(subprotocols=[f"mease.ticket.{djmease.issue_ticket(ada)}"])
    assert page.subprotocol is None


def test_a_ticket_is_legal_in_a_query_and_in_a_header(ada: User) -> None:
    assert re.fullmatch(r"[A-Za-z0-9._-]{50,700}", djmease.issue_ticket(ada, session=session_of(ada)))


def session_of(user: User) -> Any:
    browser = Browser()
    browser.force_login(user)
    return browser.session


def test_what_a_ticket_knows(redis: str, ada: User) -> None:
    session = session_of(ada)
    identity = redeem(djmease.issue_ticket(ada, session=session))
    assert identity.user == ada and identity.session.session_key is None
    assert identity.session_hash == session_hash(session.session_key)
    assert identity.auth_hash == ada.get_session_auth_hash()
    assert identity.expires_at is not None and identity.expires_at > time.time()
    assert reread(identity).user == ada
    without = redeem(djmease.issue_ticket(ada))
    assert (without.session_hash, without.expires_at) == (None, None)


def test_a_ticket_holds_no_secret(ada: User) -> None:
    session = session_of(ada)
    content = djmease.issue_ticket(ada, session=session).partition(".")[0]
    readable = signing.b64_decode(content.encode()).decode()
    for secret in (session.session_key, ada.password, ada.get_session_auth_hash()):
        assert secret not in readable


@pytest.mark.parametrize("user", [None, AnonymousUser(), User(username="new"), User(pk=7, username="new")])
def test_there_is_no_ticket_for_nobody(user: Any) -> None:
    with pytest.raises(ValueError, match="a user that is saved"):
        djmease.issue_ticket(user)


# Bad ones


@pytest.mark.parametrize("as_subprotocol", [False, True])
def test_a_stolen_ticket_is_good_for_nothing_once_it_was_used_on_any_server(
    start_server: StartServer, ada: User, log_of: Log, as_subprotocol: bool
) -> None:
    one, two = start_server(), start_server()
    ticket = djmease.issue_ticket(ada)
    assert answer_to(one, ticket, as_subprotocol=as_subprotocol)[0] == 101
    for server in (one, two):
        status, body = answer_to(server, ticket, as_subprotocol=as_subprotocol)
        assert (status, body) == (401, "the ticket is not valid (used before)\n")
    assert any("the ticket is not valid (used before)" in line for line in log_of())


def test_of_many_that_come_at_once_with_a_ticket_one_is_let_in(start_server: StartServer, ada: User) -> None:
    servers = [start_server(), start_server()]
    ticket = djmease.issue_ticket(ada)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda index: answer_to(servers[index % 2], ticket)[0], range(16)))
    assert sorted(answers) == [101] + 15 * [401]


def test_a_use_is_remembered_for_longer_than_a_ticket_is_valid(redis: str, ada: User, settings: Any) -> None:
    redeem(djmease.issue_ticket(ada))
    client = Redis(connection_pool=publisher_pool())
    (key,) = client.keys(f"{settings.MEASE_KEY_PREFIX}.ticket.*")
    assert tickets.TICKET_AGE < client.ttl(key) <= 120


def issued_at(seconds: float, ada: User, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return a ticket of another time."""
    with monkeypatch.context() as patched:
        then = SimpleNamespace(time=lambda: time.time() + seconds)
        patched.setattr(signing, "time", then)
        patched.setattr(tickets, "time", then)
        return djmease.issue_ticket(ada)


@pytest.mark.parametrize(
    ("age", "reason"), [(-58, None), (-62, "expired"), (-86400, "expired"), (50, None), (90, "issued in the future")]
)
def test_a_ticket_is_valid_for_a_minute(
    redis: str, ada: User, monkeypatch: pytest.MonkeyPatch, age: float, reason: str | None
) -> None:
    ticket = issued_at(age, ada, monkeypatch)
    if reason is None:
        assert redeem(ticket).user == ada
        return
    with pytest.raises(Unauthenticated, match=reason) as caught:
        redeem(ticket)
    assert caught.value.__cause__ is None and ticket.split(".")[0] not in str(caught.value)


def test_an_expired_ticket_is_refused_and_says_so(
    start_server: StartServer, ada: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start_server()
    assert answer_to(server, issued_at(-61, ada, monkeypatch)) == (401, "the ticket is not valid (expired)\n")


def of_another_site(ada: User, settings: Any) -> str:
    key, settings.SECRET_KEY = settings.SECRET_KEY, "another site's"
    ticket = djmease.issue_ticket(ada)
    settings.SECRET_KEY = key
    return ticket


def of_another_signer(ada: User, settings: Any) -> str:
    return signing.TimestampSigner(salt="another", sep=".").sign_object({"user": str(ada.pk)})


def changed(ada: User, settings: Any) -> str:
    content, _, signature = djmease.issue_ticket(ada).partition(".")
    forged = json.loads(signing.b64_decode(content.encode())) | {"user": "1000"}
    return f"{signing.b64_encode(json.dumps(forged).encode()).decode()}.{signature}"


def cut(ada: User, settings: Any) -> str:
    return djmease.issue_ticket(ada)[:-1]


@pytest.mark.parametrize(
    "make",
    [
        of_another_site,
        of_another_signer,
        changed,
        cut,
        *(lambda ada, settings, text=text: text for text in (".", "..", "x", "%FF.a.b", "a" * 5000)),
    ],
)
def test_what_this_site_has_not_signed_is_refused(
    start_server: StartServer, ada: User, settings: Any, make: Callable[[User, Any], str]
) -> None:
    server = start_server()
    status, body = answer_to(server, make(ada, settings))
    assert (status, body) == (401, "the ticket is not valid (not signed by this site, or damaged)\n")


def test_a_ticket_of_who_was_deactivated_deleted_or_has_another_password_is_refused(redis: str, ada: User) -> None:
    made = [djmease.issue_ticket(ada) for _ in range(3)]
    ada.set_password("new")
    ada.save()
    with pytest.raises(Unauthenticated, match="another password"):
        redeem(made[0])
    User.objects.update(is_active=False)
    with pytest.raises(Unauthenticated, match="may not log in"):
        redeem(made[1])
    User.objects.all().delete()
    with pytest.raises(Unauthenticated, match="may not log in"):
        redeem(made[2])


def test_a_ticket_ends_with_its_session(redis: str, ada: User) -> None:
    session = session_of(ada)
    session.set_expiry(-1)
    with pytest.raises(Unauthenticated, match="its session has expired"):
        redeem(djmease.issue_ticket(ada, session=session))


def test_where_redis_cannot_record_the_use_nobody_is_let_in(
    start_server: StartServer, settings: Any, ada: User, log_of: Log
) -> None:
    server = start_server()
    ticket = djmease.issue_ticket(ada)
    right = settings.MEASE_REDIS_URL
    settings.MEASE_REDIS_URL = "redis://127.0.0.1:1"
    assert answer_to(server, ticket)[0] == 503
    settings.MEASE_REDIS_URL = right
    assert any("could not be read" in line for line in log_of())
    assert answer_to(server, ticket)[0] == 101


@pytest.mark.usefixtures("who")
def test_who_is_logged_in_by_a_cookie_needs_no_ticket(start_server: StartServer, settings: Any, ada: User) -> None:
    page = start_server().connect("?ticket=forged", additional_headers=logged_in(ada, settings))
    page.send("who?")
    assert page.recv(5) == "ada"


# The view


@pytest.fixture
def browser(settings: Any) -> Browser:
    settings.ROOT_URLCONF = __name__
    settings.MIDDLEWARE = [
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.middleware.csrf.CsrfViewMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
    ]
    return Browser()


def test_the_view_gives_a_ticket_to_who_is_logged_in(redis: str, browser: Browser, ada: User) -> None:
    browser.force_login(ada)
    response = browser.post("/ws-ticket/")
    assert response.status_code == 200 and response["Cache-Control"] == "no-store"
    assert response.json().keys() == {"ticket", "expires_in"} and response.json()["expires_in"] == 60
    identity = redeem(response.json()["ticket"])
    assert identity.user == ada and identity.session_hash == session_hash(browser.session.session_key)


def test_the_view_gives_strangers_401_and_a_get_405(browser: Browser, ada: User) -> None:
    response = browser.post("/ws-ticket/")
    assert (response.status_code, response["Cache-Control"]) == (401, "no-store")
    assert response.json() == {"error": "You are not logged in."}
    browser.force_login(ada)
    assert browser.get("/ws-ticket/").status_code == 405


def test_the_view_is_protected_against_forged_requests(settings: Any, browser: Browser, ada: User) -> None:
    strict = Browser(enforce_csrf_checks=True)
    strict.force_login(ada)
    assert strict.post("/ws-ticket/").status_code == 403


def test_the_view_works_without_sessions_and_without_users(redis: str, ada: User) -> None:
    request = RequestFactory().post("/ws-ticket/")
    assert views.ticket(request).status_code == 401
    request.user = ada
    assert redeem(json.loads(views.ticket(request).content)["ticket"]).session_hash is None
