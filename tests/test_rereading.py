"""Logins read again many at a time: with few queries, and with what reading each alone would tell."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pytest
from django.conf import settings as django_settings
from django.contrib import auth
from django.contrib.auth.backends import ModelBackend
from django.contrib.auth.models import User
from django.contrib.sessions.backends.db import SessionStore as DatabaseSession
from django.db import connection
from django.db.models import Manager, QuerySet
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from djmease import rereading
from djmease.identities import Identity, nobody, of_session, of_user, reread, session_hash
from djmease.rereading import reread_all

STOCK = "django.contrib.auth.backends.ModelBackend"
OTHER_KEY = "another secret key"


# What a site may have instead of Django's own


class ByEmail(ModelBackend):
    """One that only logs in differently."""

    def authenticate(self, *_: Any, **__: Any) -> None: ...


class Picky(ModelBackend):
    def user_can_authenticate(self, user: Any) -> bool:
        return super().user_can_authenticate(user) and user.last_name != "banned"


class Stranger(ModelBackend):
    """One that finds users by itself, and some not at all."""

    def get_user(self, user_id: Any) -> Any:
        user = super().get_user(user_id)
        return user if user is None or user.last_name != "banned" else None


class Instead(ModelBackend):
    """One whose instances have a method of their own."""

    def __init__(self) -> None:
        self.get_user = lambda user_id: None


class SessionStore(DatabaseSession):
    """A session engine of the site: this module is one."""

    def load(self) -> Any:
        loaded = super().load()
        return {} if loaded.get("is_void") else loaded


class HidingQuerySet(QuerySet[User]):
    def get(self, *args: Any, **kwargs: Any) -> User:
        return super().exclude(last_name="banned").get(*args, **kwargs)


BACKENDS = {name: f"{__name__}.{name}" for name in ("ByEmail", "Picky", "Stranger", "Instead")} | {"stock": STOCK}


# Who is logged in, and what may have become of it


@pytest.fixture
def people(db: None) -> Callable[[], User]:
    def new() -> User:
        user = User(username=f"user-{time.perf_counter_ns()}", password="old")
        user.save()
        return user

    return new


def session_of(user: User, backend: str = STOCK, **more: Any) -> Identity:
    session = import_module(django_settings.SESSION_ENGINE).SessionStore()
    session.update({auth.SESSION_KEY: str(user.pk), auth.BACKEND_SESSION_KEY: backend})
    session.update({auth.HASH_SESSION_KEY: user.get_session_auth_hash(), "cart": [user.pk], **more})
    session.save()
    return of_session(session.session_key)


def changed(identity: Identity, **values: Any) -> None:
    """Change the session where it is kept, as another process does."""
    session = import_module(type(identity.session).__module__).SessionStore(identity.session.session_key)
    session.update(values)
    session.save()


def nothing(user: User, identity: Identity) -> None: ...


def cart(user: User, identity: Identity) -> None:
    changed(identity, cart=["new"])


def expiry(user: User, identity: Identity) -> None:
    changed(identity, _session_expiry=500)


def logged_out(user: User, identity: Identity) -> None:
    identity.session.delete()


def expired(user: User, identity: Identity) -> None:
    DatabaseSession.get_model_class().objects.filter(session_key=identity.session.session_key).update(
        expire_date=timezone.now() - timedelta(seconds=1)
    )


def corrupted(user: User, identity: Identity) -> None:
    DatabaseSession.get_model_class().objects.filter(session_key=identity.session.session_key).update(
        session_data="no session"
    )


def password(user: User, identity: Identity) -> None:
    User.objects.filter(pk=user.pk).update(password="new")


def older_secret(user: User, identity: Identity) -> None:
    changed(identity, **{auth.HASH_SESSION_KEY: user._get_session_auth_hash(secret="the key before")})


def other_secret(user: User, identity: Identity) -> None:
    changed(identity, **{auth.HASH_SESSION_KEY: user._get_session_auth_hash(secret="somebody's")})


def no_hash(user: User, identity: Identity) -> None:
    changed(identity, **{auth.HASH_SESSION_KEY: ""})


def inactive(user: User, identity: Identity) -> None:
    User.objects.filter(pk=user.pk).update(is_active=False)


def banned(user: User, identity: Identity) -> None:
    User.objects.filter(pk=user.pk).update(last_name="banned")


def deleted(user: User, identity: Identity) -> None:
    User.objects.filter(pk=user.pk).delete()


def renamed(user: User, identity: Identity) -> None:
    User.objects.filter(pk=user.pk).update(first_name="Ada")


def other_backend(user: User, identity: Identity) -> None:
    changed(identity, **{auth.BACKEND_SESSION_KEY: "no.such.Backend"})


def void(user: User, identity: Identity) -> None:
    changed(identity, is_void=True)


def broken_key(user: User, identity: Identity) -> None:
    changed(identity, **{auth.SESSION_KEY: "seven"})


def no_key(user: User, identity: Identity) -> None:
    changed(identity, **{auth.SESSION_KEY: None})


def somebody_else(user: User, identity: Identity) -> None:
    other, _ = User.objects.get_or_create(username="other", password="other")
    values = {auth.SESSION_KEY: str(other.pk), auth.HASH_SESSION_KEY: other.get_session_auth_hash()}
    changed(identity, **values)


OF_USERS = [nothing, password, inactive, banned, deleted, renamed]
OF_SESSIONS = [
    *(cart, expiry, logged_out, expired, corrupted, older_secret, other_secret, no_hash),
    *(other_backend, void, broken_key, no_key, somebody_else),
]
KINDS = [
    *(("session", change) for change in [*OF_USERS, *OF_SESSIONS]),
    *(("no session", change) for change in OF_USERS),
    ("over", nothing),
    ("nobody", nothing),
    ("robot", nothing),
]


def identity_of(kind: str, user: User, backend: str) -> Identity:
    if kind == "nobody":
        return nobody()
    if kind == "robot":
        return Identity(user=SimpleNamespace(pk=user.pk, is_authenticated=True))
    if kind == "session":
        return session_of(user, backend)
    return replace(of_user(user), expires_at=time.time() + (60 if kind == "no session" else -1))


def facts(outcome: Any) -> Any:
    """Return all that one can tell an outcome by."""
    if isinstance(outcome, Exception):
        return type(outcome), str(outcome)
    session, key = outcome.session, getattr(outcome.session, "session_key", None)
    return (
        type(outcome.user),
        outcome.key,
        getattr(outcome.user, "first_name", None),
        type(session),
        key,
        dict(session.items()) if key else {},
        outcome.session_hash,
        outcome.auth_hash,
        outcome.expires_at,
    )


def same(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    """Tell whether the facts are the same; of some sessions Django knows only how long they last from now."""
    times = [fact for fact in (one[-1], other[-1]) if isinstance(fact, float)]
    return one[:-1] == other[:-1] and (abs(times[0] - times[1]) < 20 if len(times) == 2 else one[-1] == other[-1])


def alone(identity: Identity) -> Any:
    try:
        return facts(reread(identity))
    except Exception as error:
        return facts(error)


ENGINES = [
    *(f"django.contrib.sessions.backends.{name}" for name in ("db", "cached_db", "cache", "signed_cookies")),
    __name__,
]
OF_DATABASE = (expired, corrupted)


@pytest.mark.parametrize("engine", ENGINES)
@hypothesis_settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_many_are_told_what_each_would_be_told_alone(
    people: Callable[[], User], settings: Any, engine: str, data: st.DataObject
) -> None:
    settings.SESSION_ENGINE = engine
    settings.SECRET_KEY_FALLBACKS = ["the key before"]
    settings.AUTHENTICATION_BACKENDS = data.draw(
        st.lists(st.sampled_from([*BACKENDS.values()]), min_size=1, unique=True)
    )
    identities = []
    for kind, change in data.draw(st.lists(st.sampled_from(KINDS), max_size=12)):
        if kind == "session" and "signed" in engine and change in OF_SESSIONS:
            continue  # Such a session is in its key, and nothing changes it.
        if change in OF_DATABASE and engine.endswith("cache"):
            continue
        user = people()
        identity = identity_of(kind, user, data.draw(st.sampled_from(settings.AUTHENTICATION_BACKENDS)))
        change(user, identity)
        identities += [identity] * data.draw(st.integers(1, 2))
    wanted = [alone(identity) for identity in identities]
    for outcome, told_alone in zip(reread_all(identities), wanted, strict=True):
        assert same(facts(outcome), told_alone)


# How many queries


def queries(identities: list[Identity]) -> int:
    with CaptureQueriesContext(connection) as captured:
        outcomes = reread_all(identities)
    for identity, outcome in zip(identities, outcomes, strict=True):
        assert isinstance(outcome, Identity) and outcome.user == identity.user
        assert outcome.user is not identity.user and outcome.read_at > identity.read_at
    return len(captured)


@pytest.mark.parametrize("backend", ["stock", "ByEmail", "Picky"])
def test_a_hundred_sessions_of_a_hundred_users_take_two_queries(
    people: Callable[[], User], settings: Any, backend: str
) -> None:
    settings.AUTHENTICATION_BACKENDS = [BACKENDS[backend]]
    assert queries([session_of(people(), BACKENDS[backend]) for _ in range(100)]) == 2


def test_a_hundred_users_without_a_session_take_one_query(people: Callable[[], User]) -> None:
    assert queries([of_user(people()) for _ in range(100)]) == 1


def test_sessions_of_another_engine_still_have_their_users_read_by_one_query(
    people: Callable[[], User], settings: Any
) -> None:
    settings.SESSION_ENGINE = "django.contrib.sessions.backends.cached_db"
    assert queries([session_of(people()) for _ in range(100)]) == 1
    settings.SESSION_ENGINE = __name__
    assert queries([session_of(people()) for _ in range(10)]) == 10 + 1


@pytest.mark.parametrize("backend", ["Stranger", "Instead"])
def test_a_backend_that_finds_users_by_itself_is_asked(people: Callable[[], User], settings: Any, backend: str) -> None:
    identities = [session_of(people(), STOCK) for _ in range(3)]
    settings.AUTHENTICATION_BACKENDS = [BACKENDS[backend]]
    for identity in identities:
        changed(identity, **{auth.BACKEND_SESSION_KEY: BACKENDS[backend]})
        banned(identity.user, identity)
    assert [outcome.key for outcome in reread_all(identities) if isinstance(outcome, Identity)] == [None] * 3


def test_a_manager_that_finds_one_user_in_its_own_way_is_asked(
    people: Callable[[], User], monkeypatch: pytest.MonkeyPatch
) -> None:
    identities = [session_of(people()), of_user(people())]
    for identity in identities:
        banned(identity.user, identity)
    for manager in (Manager.from_queryset(HidingQuerySet)(), type("Own", (Manager,), {"get": HidingQuerySet.get})()):
        manager.model = User
        with monkeypatch.context() as patch:
            patch.setattr(rereading.auth, "get_user_model", lambda manager=manager: _model(manager))
            assert rereading._users([identities[0].user.pk]) == {}


def _model(manager: Any) -> Any:
    return SimpleNamespace(_default_manager=manager)


def test_a_query_for_many_that_fails_leaves_each_to_itself(
    people: Callable[[], User], monkeypatch: pytest.MonkeyPatch
) -> None:
    identities = [session_of(people()) for _ in range(3)]
    inactive(identities[1].user, identities[1])

    def fail(_: Any) -> None:
        raise OverflowError("a key of the batch is no number of the database")

    monkeypatch.setattr(rereading, "_users", fail)
    assert [outcome.key for outcome in reread_all(identities) if isinstance(outcome, Identity)] == [
        identities[0].key,
        None,
        identities[2].key,
    ]


def test_a_ticket_and_the_session_under_which_it_was_issued_are_read_each_for_itself(
    people: Callable[[], User],
) -> None:
    """A ticket may be of another user, as where a member of the staff looks at a page with a customer's eyes."""
    session = session_of(people())
    ticket = replace(of_user(people()), session_hash=session_hash(session.session.session_key))
    for identities in ([session, ticket], [ticket, session]):
        outcomes = reread_all(identities)
        assert [facts(outcome)[1] for outcome in outcomes] == [identity.key for identity in identities]
    assert isinstance(outcomes[1], Identity) and outcomes[1].session.session_key == session.session.session_key


def test_where_a_site_has_no_users_nobody_is_looked_for(settings: Any) -> None:
    """This test may not use a database."""
    settings.INSTALLED_APPS = ["djmease"]
    assert [outcome.key for outcome in reread_all([nobody()]) if isinstance(outcome, Identity)] == [None]
