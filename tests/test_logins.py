"""Logins that end, and their connections with them, on every server and nobody else's."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.contrib.auth import logout
from django.contrib.auth.models import User
from django.contrib.sessions.backends.db import SessionStore
from django.contrib.sessions.models import Session
from django.core.exceptions import SynchronousOnlyOperation
from django.db import connections as databases
from django.db import models
from django.db.models.signals import post_delete, post_save
from django.test import Client as Browser
from django.test.utils import CaptureQueriesContext, isolate_apps
from django.utils.functional import SimpleLazyObject
from redis import Redis
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

import djmease
from djmease import authenticators
from djmease.connections import control_channel, publisher_pool
from djmease.publishing import control_wires
from djmease.rereading import reread_all
from djmease.revocation import watch_logins
from djmease.server import dispatch, logins
from tests.support import DEADLINE, LiveServer, eventually

StartServer = Callable[[], LiveServer]
Log = Callable[[], list[str]]


@pytest.fixture
def ada(transactional_db: None) -> User:
    return User.objects.create_user("ada", password="old")


@pytest.fixture
def bob(transactional_db: None) -> User:
    return User.objects.create_user("bob", password="old")


@pytest.fixture
def orders() -> Iterator[list[Any]]:
    """The orders that would be sent to servers."""
    orders: list[Any] = []
    control_wires.append(orders.append)
    yield orders
    control_wires.remove(orders.append)


def browser_of(user: User) -> Browser:
    browser = Browser()
    browser.force_login(user)
    return browser


def cookie_of(browser: Browser) -> dict[str, str]:
    return {"Cookie": f"sessionid={browser.cookies['sessionid'].value}"}


def page(server: LiveServer, browser: Browser) -> Any:
    return server.connect(additional_headers=cookie_of(browser))


def publish_order(order: str) -> None:
    Redis(connection_pool=publisher_pool()).publish(control_channel(), order)


def assert_ended(connection: Any, reason: str = "the login has ended") -> None:
    with pytest.raises(ConnectionClosed) as caught:
        connection.recv(DEADLINE)
    assert caught.value.rcvd is not None
    assert (caught.value.rcvd.code, caught.value.rcvd.reason) == (4401, reason)


def assert_open(*connections: Any) -> None:
    for connection in connections:
        assert connection.ping().wait(DEADLINE)


def test_a_logout_ends_the_connections_of_its_session_on_all_servers_and_no_other(
    start_server: StartServer, ada: User, bob: User
) -> None:
    east, west = start_server(), start_server()
    here, elsewhere = browser_of(ada), browser_of(ada)
    gone = [page(east, here), page(west, here)]
    staying = [page(east, elsewhere), page(west, browser_of(bob)), east.connect()]
    request = SimpleNamespace(session=SessionStore(here.cookies["sessionid"].value), user=ada)
    logout(request)
    for connection in gone:
        assert_ended(connection)
    assert_open(*staying)


def test_a_ticket_does_not_outlive_the_session_under_which_it_was_issued(start_server: StartServer, ada: User) -> None:
    server, browser = start_server(), browser_of(ada)
    session = SessionStore(browser.cookies["sessionid"].value)
    ticket = djmease.issue_ticket(ada, session=session)
    connection = page(server, browser)
    logout(SimpleNamespace(session=session, user=ada))
    assert_ended(connection)
    with connect(f"{server.url}?ticket={ticket}") as late:
        assert_ended(late)


def test_ended_sessions_are_remembered_within_a_bound(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logins, "MAX_REMEMBERED", 3)
    server = start_server().server
    for number in range(10):
        server._logins.end_session({"session": str(number)})
    assert list(server._logins._ended_sessions) == ["7", "8", "9"]


def test_a_changed_password_ends_what_was_logged_in_with_the_old_one(start_server: StartServer, ada: User) -> None:
    connection = page(start_server(), browser_of(ada))
    ada.set_password("new")
    ada.save()
    assert_ended(connection)


def test_a_user_that_is_deactivated_or_deleted_is_gone_at_once(start_server: StartServer, ada: User, bob: User) -> None:
    server = start_server()
    of_ada, of_bob, stranger = page(server, browser_of(ada)), page(server, browser_of(bob)), server.connect()
    ada.is_active = False
    ada.save()
    assert_ended(of_ada)
    bob.delete()
    assert_ended(of_bob)
    assert_open(stranger)


def test_a_user_that_is_saved_for_another_reason_stays(start_server: StartServer, ada: User) -> None:
    server = start_server()
    connection = page(server, browser_of(ada))
    ada.first_name = "Ada"
    ada.save()
    (client,) = server.server._limits.clients.values()
    eventually(lambda: client.user.first_name == "Ada")
    assert_open(connection)


def test_what_gives_no_signal_is_found_by_reading_again(start_server: StartServer, settings: Any, ada: User) -> None:
    settings.MEASE_RECHECK_INTERVAL = 0.2
    server = start_server()
    updated, stranger = page(server, browser_of(ada)), server.connect()
    (client,) = server.server._limits.of_user(str(ada.pk))
    # What is due for it more than once is read once.
    server.call(lambda: [server.server._logins._schedule(client) for _ in range(100)])
    User.objects.filter(pk=ada.pk).update(is_active=False)
    assert_ended(updated)
    assert_open(stranger)


def test_a_session_that_is_deleted_ends_and_another_one_of_the_user_does_not(
    start_server: StartServer, settings: Any, ada: User
) -> None:
    settings.MEASE_RECHECK_INTERVAL = 0.2
    server, first, second = start_server(), browser_of(ada), browser_of(ada)
    gone, staying = page(server, first), page(server, second)
    Session.objects.filter(session_key=first.cookies["sessionid"].value).delete()
    assert_ended(gone)
    assert_open(staying)


def test_a_hundred_clients_of_a_hundred_users_are_read_again_with_a_handful_of_queries(
    start_server: StartServer, settings: Any, transactional_db: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.MEASE_RECHECK_INTERVAL = 3600
    server = start_server()
    users = [User.objects.create(username=f"user-{number}", password="old") for number in range(100)]
    pages = [page(server, browser_of(user)) for user in users]
    queries: list[int] = []

    def counted(identities: Any) -> Any:
        with CaptureQueriesContext(databases["default"]) as captured:
            found = reread_all(identities)
        queries.append(len(captured))
        return found

    monkeypatch.setattr(logins, "reread_all", counted)
    publish_order(json.dumps({"order": "recheck", "users": [str(user.pk) for user in users]}))
    eventually(lambda: queries)
    assert queries == [2]
    assert_open(pages[0], pages[-1])
    User.objects.filter(pk=users[7].pk).update(is_active=False)
    publish_order(json.dumps({"order": "recheck", "users": [str(user.pk) for user in users]}))
    assert_ended(pages[7])
    assert_open(*pages[:7], *pages[8:])


def test_orders_for_a_user_that_come_together_are_read_together_and_leave_nothing_behind(
    start_server: StartServer, settings: Any, ada: User, bob: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A site may save its users with each request."""
    settings.MEASE_RECHECK_INTERVAL = 3600
    server = start_server()
    pages = [page(server, browser_of(ada)), page(server, browser_of(bob))]
    reads: list[int] = []
    may_go_on = threading.Event()

    def slow(identities: Any) -> Any:
        reads.append(len(identities))
        may_go_on.wait(DEADLINE)
        return reread_all(identities)

    monkeypatch.setattr(logins, "reread_all", slow)
    found = server.server._logins

    def ask(*users: User) -> None:
        server.call(lambda: found.recheck({"users": [*(str(user.pk) for user in users), "nobody"]}))

    ask(ada)
    eventually(lambda: reads == [1])
    for _ in range(50):
        ask(ada)
        ask(ada, bob)
    may_go_on.set()
    eventually(lambda: reads == [1, 2] and not server.call(lambda: found._is_reading_asked))
    assert found._asked == set()
    (client, _) = server.server._limits.clients.values()
    server.call(lambda: [found._schedule(client) for _ in range(1000)])
    # Only what is due before all else, by chance, is noted beside it.
    assert len(found._next) == 2 and len(found._due) < 50
    assert_open(*pages)


seen = threading.Event()
may_enter = threading.Event()


def reads_and_waits(request: Any) -> Any:
    identity = authenticators.session(request)
    seen.set()
    may_enter.wait(DEADLINE)
    return identity


def test_a_user_that_is_deactivated_during_its_handshake_does_not_get_by(
    start_server: StartServer, settings: Any, ada: User
) -> None:
    settings.MEASE_RECHECK_INTERVAL = 3600
    settings.MEASE_AUTHENTICATORS = [f"{__name__}.reads_and_waits"]
    server, browser = start_server(), browser_of(ada)
    seen.clear()
    may_enter.clear()
    with ThreadPoolExecutor() as pool:
        # Not by ``page``, which waits until the client is seen among the others: this one may be gone before.
        coming = pool.submit(connect, server.url, additional_headers=cookie_of(browser))
        assert seen.wait(DEADLINE)
        ada.is_active = False
        ada.save()
        eventually(lambda: server.call(lambda: str(ada.pk) in server.server._logins._asked_lately))
        may_enter.set()
        with coming.result(DEADLINE) as connection:
            assert_ended(connection)


def test_what_fails_as_a_whole_is_tried_again(
    start_server: StartServer, settings: Any, ada: User, monkeypatch: pytest.MonkeyPatch, log_of: Log
) -> None:
    settings.MEASE_RECHECK_INTERVAL = 0.2
    server = start_server()
    failures = iter([RuntimeError("no thread"), RuntimeError("no database")])

    def fails_twice(identities: Any) -> Any:
        for failure in failures:
            raise failure
        return reread_all(identities)

    monkeypatch.setattr(logins, "reread_all", fails_twice)
    connection = page(server, browser_of(ada))
    eventually(lambda: any("could not be read again" in line for line in log_of()))
    User.objects.filter(pk=ada.pk).update(is_active=False)
    assert_ended(connection)
    assert next(failures, None) is None


def test_a_login_that_a_receivers_rule_found_ended_ends_too(
    start_server: StartServer, settings: Any, ada: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    @djmease.receiver(type="say", login_required=True)
    def say(client: Any) -> None: ...

    settings.MEASE_RECHECK_INTERVAL = 2
    monkeypatch.setattr(dispatch, "MAX_IDENTITY_AGE", 0.0)
    server = start_server()
    connection = page(server, browser_of(ada))
    User.objects.filter(pk=ada.pk).update(is_active=False)
    connection.send('{"type": "say"}')
    assert json.loads(connection.recv(DEADLINE))["type"] == "mease.refused"
    assert_ended(connection)


def test_a_known_expiry_ends_it_without_waiting_for_the_interval(start_server: StartServer, ada: User) -> None:
    browser = browser_of(ada)
    session = SessionStore(browser.cookies["sessionid"].value)
    session.set_expiry(2)
    session.save()
    began = time.monotonic()
    connection = page(start_server(), browser)
    assert_ended(connection)
    assert time.monotonic() - began < 15


def test_a_database_that_cannot_be_read_ends_nobody_and_is_said(
    start_server: StartServer, settings: Any, ada: User, monkeypatch: pytest.MonkeyPatch, log_of: Log
) -> None:
    server = start_server()
    connection = page(server, browser_of(ada))
    settings.SESSION_ENGINE = "no.such.engine"
    (client,) = server.server._limits.clients.values()
    order = json.dumps({"order": "recheck", "users": [client.user_key]})
    publish_order(order)
    eventually(lambda: any("could not be read again" in line for line in log_of()))
    assert_open(connection)


def test_disconnect_ends_a_user_or_a_client_by_hand(start_server: StartServer, ada: User, bob: User) -> None:
    east, west = start_server(), start_server()
    of_ada = [page(east, browser_of(ada)), page(west, browser_of(ada))]
    of_bob, stranger = page(west, browser_of(bob)), east.connect()
    djmease.disconnect(user=ada)
    for connection in of_ada:
        assert_ended(connection, "the site has disconnected you")
    assert_open(of_bob, stranger)
    eventually(lambda: len(east.server._limits.clients) == 1)
    djmease.disconnect(client_id=next(iter(east.server._limits.clients)))
    assert_ended(stranger, "the site has disconnected you")
    djmease.disconnect(user=bob.pk)
    assert_ended(of_bob, "the site has disconnected you")


@pytest.mark.parametrize("arguments", [{}, {"user": 1, "client_id": "x"}])
def test_disconnect_wants_to_know_whom(redis: str, arguments: Any) -> None:
    with pytest.raises(ValueError, match="a user or a client_id"):
        djmease.disconnect(**arguments)


@pytest.mark.parametrize("client_id", [7, b"x", ["x"]])
def test_disconnect_refuses_what_is_no_id(redis: str, client_id: Any) -> None:
    with pytest.raises(TypeError, match="client_id is a client's id, a str, and not"):
        djmease.disconnect(client_id=client_id)
    with pytest.raises(TypeError, match="client_id"):
        asyncio.run(djmease.adisconnect(client_id=client_id))


async def _on_a_loop() -> None:
    djmease.disconnect(user=1)


def test_disconnect_is_not_for_an_event_loop(redis: str) -> None:
    with pytest.raises(SynchronousOnlyOperation, match="adisconnect"):
        asyncio.run(_on_a_loop())


@pytest.mark.parametrize("is_proxy", [True, False])
def test_a_user_that_is_saved_or_deleted_through_another_model_is_read_again(
    ada: User, orders: list[Any], is_proxy: bool
) -> None:
    with customers(is_proxy) as model:
        customer = model(**({"pk": ada.pk} if is_proxy else {"number": 7000, "user_ptr": ada}))
        customer.__dict__.update(username=ada.username, is_active=False)
        for _ in range(2):  # The first of them may create what was no customer yet.
            customer.save()
        assert orders[-1] == {"order": "recheck", "users": [str(ada.pk)]}
        orders.clear()
        customer.delete()
        assert {"order": "recheck", "users": [str(ada.pk)]} in orders
    assert not User.objects.filter(pk=ada.pk).exists()


@contextmanager
def customers(is_proxy: bool) -> Iterator[Any]:
    """Give a model of users that is not the user model."""
    with isolate_apps("django.contrib.auth"):
        if is_proxy:

            class Customer(User):
                class Meta:
                    app_label = "auth"
                    proxy = True

        else:

            class Customer(User):  # type: ignore[no-redef]
                number = models.IntegerField(primary_key=True)
                user_ptr = models.OneToOneField(User, models.CASCADE, parent_link=True)

                class Meta:
                    app_label = "auth"

    watch_logins()
    with ExitStack() as after:
        for signal in (post_save, post_delete):
            after.callback(signal.disconnect, sender=Customer, dispatch_uid="djmease.revocation")
        if not is_proxy:
            with databases["default"].schema_editor() as editor:
                editor.create_model(Customer)
            after.callback(drop, Customer)
        yield Customer


def drop(model: Any) -> None:
    with databases["default"].schema_editor() as editor:
        editor.delete_model(model)


def test_other_models_are_deleted_in_djangos_fast_way() -> None:
    assert not post_delete.has_listeners(Session) and not post_save.has_listeners(Session)


@pytest.mark.django_db
def test_adisconnect_reads_a_lazy_user_where_djangos_asynchronous_code_does(orders: list[Any]) -> None:
    user = User.objects.create(username="ada")
    # In this thread, which has the test's transaction.
    async_to_sync(djmease.adisconnect)(user=SimpleLazyObject(lambda: User.objects.get(username="ada")))
    assert orders == [{"order": "disconnect", "users": [str(user.pk)]}]


def test_disconnect_raises_where_redis_is_away(settings: Any) -> None:
    settings.MEASE_REDIS_URL = "redis://:secret@127.0.0.1:1/0"
    with pytest.raises(djmease.PublishError) as caught:
        djmease.disconnect(user=1)
    assert "secret" not in str(caught.value)


def test_a_site_without_redis_saves_and_deletes_users_without_a_word(ada: User, log_of: Log) -> None:
    ada.save()
    ada.delete()
    assert log_of() == []


@pytest.mark.parametrize(
    "order",
    [
        {"order": "disconnect"},
        {"order": "disconnect", "users": 7, "clients": [None]},
        {"order": "end_session", "session": None},
        {"order": "end_session"},
        {"order": "recheck", "users": [["x"]]},
        {"order": ["x"]},
    ],
)
def test_an_order_that_names_nobody_ends_nobody(start_server: StartServer, ada: User, order: Any) -> None:
    server = start_server()
    connection, stranger = page(server, browser_of(ada)), server.connect()
    publish_order(json.dumps(order))
    djmease.disconnect(client_id="nobody")
    assert_open(connection, stranger)
