"""Logins that are read again many at a time: a query for their sessions, and one for their users.

All that is found out here is that somebody is still logged in. Whoever does not plainly pass what Django asks is read
alone by ``reread``, which decides; so no login ends, and none is kept, by other rules than when it is read alone.
"""

from __future__ import annotations

import importlib
import inspect
import time
from collections.abc import Hashable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from django.apps import apps
from django.conf import settings
from django.contrib import auth
from django.db.models import QuerySet
from django.utils import timezone
from django.utils.crypto import constant_time_compare

from djmease.identities import Identity, auth_hash, is_of_the_model, of_loaded_session, open_session, reread

Outcome = Identity | Exception
"""Whose a connection is by now, or why that could not be read."""


def reread_all(identities: Sequence[Identity]) -> list[Outcome]:
    """Return what ``reread`` returns for each, or the exception that it raises; it blocks.

    What several connections share, a session, is read once.
    """
    subjects = {_subject(identity): identity for identity in identities}
    known = _still_there(subjects)
    for subject, identity in subjects.items():
        if subject not in known:
            known[subject] = _reread(identity)
    return [known[_subject(identity)] for identity in identities]


def _subject(identity: Identity) -> Hashable:
    """Return what stands for all that is read together: a session, or else this identity alone."""
    return _session_key(identity) or id(identity)


def _session_key(identity: Identity) -> str | None:
    return getattr(identity.session, "session_key", None)


def _reread(identity: Identity) -> Outcome:
    try:
        return reread(identity)
    except Exception as error:
        return error


@dataclass(frozen=True, slots=True, kw_only=True)
class _Claim:
    """Who somebody was logged in as, and what Django asks of that before it believes it again."""

    identity: Identity
    session: Any
    """What was read anew, ``None`` where there is none."""
    user_key: Any
    backend: Any

    def confirmed(self, user: Any) -> Identity | None:
        """Return what it is by now if this, which was read anew, is the user; ``None`` where ``reread`` shall tell."""
        if not user or not self.backend.user_can_authenticate(user):
            return None
        if self.session is not None:
            is_confirmed = _verifies(user, self.session.get(auth.HASH_SESSION_KEY))
            return of_loaded_session(self.session, user) if is_confirmed else None
        if self.identity.auth_hash not in (None, auth_hash(user)):
            return None
        return replace(self.identity, user=user, read_at=time.monotonic())


def _still_there(subjects: Mapping[Hashable, Identity]) -> dict[Hashable, Outcome]:
    """Return what is known of those who are plainly logged in still, and what was raised where a session was read."""
    if not apps.is_installed("django.contrib.auth"):
        return {}
    found: dict[Hashable, Outcome] = {}
    claims: dict[Hashable, _Claim] = {}
    # Whatever is raised when many are read at once: each that is read alone tells whom it concerns.
    with suppress(Exception):
        sessions = _sessions(filter(None, map(_session_key, subjects.values())))
        for subject, identity in subjects.items():
            try:
                claim = _claim(identity, sessions)
            except Exception as error:
                found[subject] = error
            else:
                if claim is not None:
                    claims[subject] = claim
        users = _users(claim.user_key for claim in claims.values())
        for subject, claim in claims.items():
            with suppress(Exception):
                confirmed = claim.confirmed(users.get(claim.user_key))
                if confirmed is not None:
                    found[subject] = confirmed
    return found


def _claim(identity: Identity, sessions: Mapping[str, Any] | None) -> _Claim | None:
    """Return whom it says to be, ``None`` for nobody and for those whom only ``reread`` can read.

    Raises what reading its session raises, where sessions have to be read one by one.
    """
    session_key = _session_key(identity)
    if session_key is not None:
        session = open_session(session_key) if sessions is None else sessions.get(session_key)
        return _claim_of_session(identity, session) if session is not None else None
    is_over = identity.expires_at is not None and identity.expires_at <= time.time()
    if is_over or identity.key is None or not is_of_the_model(identity.user):
        return None
    # The first backend that knows a user decides; where that is not the first of all, they are asked one by one.
    backend = auth.get_backends()[0]
    if not _gets_users_by_key(backend):
        return None
    return _Claim(identity=identity, session=None, user_key=identity.user.pk, backend=backend)


def _claim_of_session(identity: Identity, session: Any) -> _Claim | None:
    path = session.get(auth.BACKEND_SESSION_KEY)
    if path not in settings.AUTHENTICATION_BACKENDS or auth.SESSION_KEY not in session or session.session_key is None:
        return None
    backend = auth.load_backend(path)
    if not _gets_users_by_key(backend):
        return None
    key = auth.get_user_model()._meta.pk.to_python(session[auth.SESSION_KEY])
    return _Claim(identity=identity, session=session, user_key=key, backend=backend)


def _gets_users_by_key(backend: Any) -> bool:
    """Tell whether a backend reads users as Django's own does, which many that only log in differently inherit."""
    stock = importlib.import_module("django.contrib.auth.backends").ModelBackend
    return getattr(backend.get_user, "__func__", None) is stock.get_user


def _verifies(user: Any, hash_in_session: Any) -> bool:
    """Tell whether a session's hash is of the user's password of now, under this secret key or an older one."""
    if not hasattr(user, "get_session_auth_hash"):
        return True
    if not hash_in_session:
        return False
    return constant_time_compare(hash_in_session, user.get_session_auth_hash()) or any(
        constant_time_compare(hash_in_session, older) for older in user.get_session_auth_fallback_hash()
    )


def _sessions(keys: Iterable[str]) -> dict[str, Any] | None:
    """Return those that are there by their keys, read by one query; ``None`` where their engine is not the one for it.

    Sessions of a cache are read one by one, as what a cache answers for many need not be what it answers for one.
    """
    names = set(keys)
    if not names:
        return {}
    stock = importlib.import_module("django.contrib.sessions.backends.db").SessionStore
    if importlib.import_module(settings.SESSION_ENGINE).SessionStore is not stock:
        return None
    rows = stock.get_model_class().objects.filter(session_key__in=names, expire_date__gt=timezone.now())
    return {row.session_key: _loaded(row) for row in rows}


def _loaded(row: Any) -> Any:
    session = open_session(row.session_key)
    # This is where a session keeps what it has loaded, and where it looks before it does.
    session._session_cache = session.decode(row.session_data)
    return session


def _users(keys: Iterable[Any]) -> dict[Any, Any]:
    """Return users by their keys, read by one query, if that finds whom one that asks for each would find."""
    names = set(keys)
    manager = auth.get_user_model()._default_manager
    if not names or not _is_stock(manager, "get") or not _is_stock(manager, "filter"):
        return {}
    return {user.pk: user for user in manager.filter(pk__in=names)}


def _is_stock(manager: Any, name: str) -> bool:
    """Tell whether a manager's method is the one that every queryset of Django's has."""
    of_manager, of_queryset = getattr(type(manager), name), getattr(type(manager.all()), name)
    return inspect.unwrap(of_manager) is of_queryset is getattr(QuerySet, name)
