"""Tickets: how a page whose cookies do not reach the server says whose it is, once and within a minute.

A ticket is signed by the site and holds nothing secret. It consists of letters, digits, ``-``, ``_`` and ``.``, so it
may stand in a query string and, as ``mease.ticket.<ticket>``, among the subprotocols that a page offers.
"""

from __future__ import annotations

import secrets
import time
from typing import Any

from django.contrib import auth
from django.core.signing import BadSignature, SignatureExpired, TimestampSigner
from django.utils.crypto import constant_time_compare, salted_hmac
from redis import Redis

from djmease.connections import names, publisher_pool
from djmease.identities import Identity, Unauthenticated, auth_hash, load_user, nobody, session_hash

TICKET_AGE = 60
"""Seconds for which a ticket is valid."""
USE_MEMORY = 120
"""Seconds for which a use is remembered: a ticket whose issuer's clock is ahead lives longer."""


def issue_ticket(user: Any, *, session: Any = None) -> str:
    """Return a ticket with which a page of ``user`` can connect, once, within ``TICKET_AGE`` seconds.

    With the ``session`` of the request it ends with it: at its expiry at the latest. Raises ``ValueError`` for a user
    that is anonymous or not saved.
    """
    if getattr(user, "pk", None) is None or user._state.adding:
        raise ValueError(f"a ticket is for a user that is saved, not for {user!r}")
    session_key = session.session_key if session is not None else None
    ticket = {
        "id": secrets.token_urlsafe(16),
        "at": time.time(),
        "user": user._meta.pk.value_to_string(user),
        "auth": _digest(auth_hash(user)),
        "session": session_hash(session_key) if session_key else None,
        "expires": session.get_expiry_date().timestamp() if session_key else None,
    }
    return _signer().sign_object(ticket)


def redeem(ticket: str) -> Identity:
    """Return whose a ticket is; it blocks, and the ticket is used up.

    Raises ``Unauthenticated`` with the reason, without the ticket, and what redis-py raises where Redis cannot record
    the use.
    """
    content = _content(ticket)
    key = names().ticket_key(content["id"])
    if not Redis(connection_pool=publisher_pool()).set(key, 1, nx=True, ex=USE_MEMORY):
        raise _invalid("used before")
    if content["expires"] is not None and content["expires"] <= time.time():
        raise _invalid("its session has expired")
    user = load_user(auth.get_user_model()._meta.pk.to_python(content["user"]))
    if user is None:
        raise _invalid("its user may not log in any more")
    if not constant_time_compare(_digest(auth_hash(user)), content["auth"]):
        raise _invalid("its user has another password by now")
    return Identity(
        user=user,
        session=nobody().session,
        expires_at=content["expires"],
        session_hash=content["session"],
        auth_hash=auth_hash(user),
    )


def _content(ticket: str) -> Any:
    # What is raised names no cause: Django's errors hold what was signed.
    try:
        content = _signer().unsign_object(ticket, max_age=TICKET_AGE)
    except SignatureExpired:
        raise _invalid("expired") from None
    except BadSignature:
        raise _invalid("not signed by this site, or damaged") from None
    if content["at"] > time.time() + USE_MEMORY - TICKET_AGE:
        raise _invalid("issued in the future: the clocks of two machines differ")
    return content


def _signer() -> TimestampSigner:
    # Of the separators that Django takes, this one may stand in a subprotocol; its own colon may not (RFC 2616, token).
    return TimestampSigner(salt="djmease.ticket", sep=".")


def _digest(text: str | None) -> str:
    return salted_hmac("djmease.ticket", text or "", algorithm="sha256").hexdigest()


def _invalid(reason: str) -> Unauthenticated:
    return Unauthenticated(f"the ticket is not valid ({reason})")
