"""Whose a connection is: ``Identity``, how one is read with Django, and how it is read again."""

from __future__ import annotations

import importlib
import logging
import time
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

from django.apps import apps
from django.conf import settings
from django.contrib import auth
from django.core.exceptions import PermissionDenied
from django.utils.crypto import salted_hmac

logger = logging.getLogger("djmease.server")


class Unauthenticated(PermissionDenied):
    """A handshake is refused with 401, and this text, because nobody knows whose it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Whose a connection is, as it was read at one time."""

    user: Any = None
    session: Any = None
    read_at: float = field(default_factory=time.monotonic)
    expires_at: float | None = None
    """In seconds of ``time.time()``, when it is nobody's any more unless it is read again; ``None`` is never."""
    session_hash: str | None = field(default=None, repr=False)
    """``session_hash`` of the session it depends on, whose key does not travel."""
    auth_hash: str | None = field(default=None, repr=False)
    """Of a user without a session: Django's hash, which changes with the password."""
    name: str | None = field(init=False, default=None)
    """The user's name, which may take a query: it is read here, and not on the loop."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", name_of(self.user))

    @property
    def key(self) -> str | None:
        """The user's primary key as text, ``None`` for nobody."""
        key = getattr(self.user, "pk", None)
        return None if key is None else str(key)


def name_of(user: Any) -> str | None:
    """Return a user's name as text that can be encoded, ``None`` for nobody; where it cannot be read, the key."""
    key = getattr(user, "pk", None)
    if key is None:
        return None
    try:
        name = str(getattr(user, "get_username", user.__str__)())
    except Exception:
        logger.exception("the name of the user %s could not be read", key)
        name = str(key)
    return name.encode(errors="replace").decode()


NOBODY = Identity(read_at=0.0)
TURNED_AWAY = 4403
"""With what a client is closed whom an opener does not let in."""
TICKET_SUBPROTOCOL = "mease.ticket"
"""What is agreed on with a page that offers it beside the ``mease.ticket.<ticket>`` that it hands over."""


def nobody() -> Identity:
    """Return what a stranger has: ``AnonymousUser`` and an empty session, each ``None`` where the site has no such."""
    return Identity(user=_anonymous(), session=open_session(None))


def of_user(user: Any) -> Identity:
    """Return the identity of a user that comes without a session."""
    return Identity(user=user, session=open_session(None), auth_hash=auth_hash(user))


def of_session(session_key: str | None) -> Identity:
    """Read a session and its user with Django's own engine and backends; it blocks, and writes nothing."""
    session = open_session(session_key)
    reader = _Reader(session)
    user = _user(reader)
    if reader.is_refused:
        return nobody()
    return Identity(user=user, session=session) if session_key is None else of_loaded_session(session, user)


def of_loaded_session(session: Any, user: Any) -> Identity:
    """Return the identity of a session that has been read, and of its user."""
    if session is None or session.session_key is None:  # There is none with this key, as showed when it was read.
        return Identity(user=user, session=session)
    # Django knows of some engines only how long a session lasts from now; until then it is read again anyway.
    expires_at = session.get_expiry_date().timestamp()
    return Identity(user=user, session=session, expires_at=expires_at, session_hash=session_hash(session.session_key))


def open_session(session_key: str | None) -> Any:
    """Return the site's session with this key, not read yet; ``None`` where the site has no sessions."""
    if not apps.is_installed("django.contrib.sessions"):
        return None
    return importlib.import_module(settings.SESSION_ENGINE).SessionStore(session_key)


def reread(identity: Identity) -> Identity:
    """Return whose a connection is by now; it blocks.

    Who has logged out, is not active, has another password or is gone is ``AnonymousUser``. A user that is not of the
    site's model, and has no session, stays until it expires.
    """
    session_key = getattr(identity.session, "session_key", None)
    if session_key is not None:
        return of_session(session_key)
    if identity.expires_at is not None and identity.expires_at <= time.time():
        return nobody()
    if identity.key is None or not is_of_the_model(identity.user):
        return replace(identity, read_at=time.monotonic())
    user = load_user(identity.user.pk)
    if user is None or identity.auth_hash not in (None, auth_hash(user)):
        return nobody()
    return replace(identity, user=user, read_at=time.monotonic())


def load_user(key: Any) -> Any:
    """Return the user with a primary key if one of the site's authentication backends lets it in, else ``None``."""
    for backend in auth.get_backends():
        user = backend.get_user(key)
        if user is not None:
            return user
    return None


def auth_hash(user: Any) -> str | None:
    """Return Django's hash that changes with the user's password, ``None`` of a user that has none."""
    make = getattr(user, "get_session_auth_hash", None)
    return make() if make is not None else None


def session_hash(session_key: str) -> str:
    """Return what names a session where its key, with which one could log in, must not go."""
    return salted_hmac("djmease.session", session_key, algorithm="sha256").hexdigest()


def is_authenticated(user: Any) -> bool:
    """Tell whether this is somebody; ``None`` is nobody."""
    return bool(getattr(user, "is_authenticated", False))


def is_of_the_model(user: Any) -> bool:
    """Tell whether a user is of the site's own model, and can be read again by its key."""
    return apps.is_installed("django.contrib.auth") and isinstance(user, auth.get_user_model())


class _Reader:
    """A session as Django reads a user from it, without what Django writes.

    Under a new ``SECRET_KEY`` it would give the session another key, and the browser, which a handshake hands no
    cookie, would have lost its login. A session with the wrong hash it would delete, which the site does as well.
    """

    def __init__(self, session: Any) -> None:
        self._session = session
        self.is_refused = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def __getitem__(self, name: str) -> Any:
        return self._session[name]

    def __setitem__(self, name: str, value: Any) -> None: ...

    def cycle_key(self) -> None: ...

    def flush(self) -> None:
        self.is_refused = True


def _user(reader: _Reader) -> Any:
    if getattr(reader, "session_key", None) is None or not apps.is_installed("django.contrib.auth"):
        return _anonymous()
    # get_user reads nothing of a request but its session, and checks the hash of the password in it.
    return auth.get_user(SimpleNamespace(session=reader))  # type: ignore[arg-type]


def _anonymous() -> Any:
    if not apps.is_installed("django.contrib.auth"):
        return None
    return importlib.import_module("django.contrib.auth.models").AnonymousUser()
