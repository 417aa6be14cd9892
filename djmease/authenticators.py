"""Who says whose a handshake is: what ``MEASE_AUTHENTICATORS`` may name.

An authenticator is a function that takes Tornado's ``HTTPServerRequest`` and runs in a thread, so it may block and use
the ORM. It returns a user, an ``Identity``, or ``None`` where it does not know; what it raises as Django's
``PermissionDenied`` refuses the handshake with 403 and that text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from django.apps import apps
from django.conf import settings

from djmease.identities import TICKET_SUBPROTOCOL, Identity, of_session
from djmease.tickets import redeem

TICKET_ARGUMENT = "ticket"
"""The query argument that may hold a ticket."""
TICKET_PREFIX = f"{TICKET_SUBPROTOCOL}."
"""What stands before a ticket among the subprotocols that a page offers."""

Authenticator = Callable[[Any], Any]


def session(request: Any) -> Identity | None:
    """Read Django's session by its cookie, and its user."""
    session_key = _session_key(request)
    return of_session(session_key) if session_key is not None else None


def ticket(request: Any) -> Identity | None:
    """Redeem the ticket in the query argument ``ticket`` or in the subprotocol ``mease.ticket.<ticket>``."""
    text = _ticket(request)
    return redeem(text) if text is not None else None


def concern(authenticators: Sequence[Authenticator], request: Any) -> bool:
    """Tell, without blocking, whether any of the authenticators may have something to read for a handshake."""
    return any(_finds(authenticator, request) for authenticator in authenticators)


def _finds(authenticator: Authenticator, request: Any) -> bool:
    look = _LOOKS.get(authenticator)
    return look is None or look(request) is not None


def _session_key(request: Any) -> str | None:
    if not apps.is_installed("django.contrib.sessions"):
        return None
    morsel = request.cookies.get(settings.SESSION_COOKIE_NAME)
    return morsel.value if morsel else None


def _ticket(request: Any) -> str | None:
    if not apps.is_installed("django.contrib.auth"):
        return None
    for offered in request.headers.get("Sec-WebSocket-Protocol", "").split(","):
        if offered.strip().startswith(TICKET_PREFIX):
            return str(offered.strip().removeprefix(TICKET_PREFIX))
    for value in request.query_arguments.get(TICKET_ARGUMENT, ()):
        return str(value.decode("latin-1"))
    return None


_LOOKS: dict[Authenticator, Callable[[Any], str | None]] = {session: _session_key, ticket: _ticket}
"""What our own look for before they block."""
