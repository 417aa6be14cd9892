"""Which handshakes are let in, and whose they are: the Host, the Origin, and Django's session.

Browsers let any page open a WebSocket to any site and send that site's cookies with it (RFC 6455, section 10.2), so the
server has to ask where the page came from.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

from django.apps import apps
from django.conf import settings
from django.contrib import auth
from django.http.request import split_domain_port, validate_host
from django.utils.http import is_same_domain
from tornado.httputil import HTTPServerRequest

LOCAL_HOSTS = (".localhost", "127.0.0.1", "[::1]")
"""What Django allows where ``DEBUG`` is on and ``ALLOWED_HOSTS`` is empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """Decides about handshakes by the settings it was made with."""

    allowed_hosts: Sequence[str]
    """As Django's ``ALLOWED_HOSTS``."""
    allowed_origins: Sequence[str]
    """``scheme://host[:port]``, the host may begin with ``*.``, as in Django's ``CSRF_TRUSTED_ORIGINS``."""

    def refusal(self, request: HTTPServerRequest) -> str | None:
        """Return why a handshake is refused and which setting would allow it, or ``None`` to let it in."""
        host = request.headers.get("Host", "")
        domain, _ = split_domain_port(host.lower())
        if not domain or not validate_host(domain, list(self.allowed_hosts)):
            return f"the Host {host!r} is not allowed: add it to ALLOWED_HOSTS"
        origin = request.headers.get("Origin")
        if origin is None and request.headers.get("Sec-Fetch-Site") in ("cross-site", "same-site"):
            return "a browser says that the page is another site's, and no Origin says which"
        if origin is None or self._allows(origin, domain):
            # Browsers always send an Origin; what sends none is not a page that somebody was lured to.
            return None
        return (
            f"the Origin {origin!r} is not allowed for the Host {host!r}: add it to MEASE_ALLOWED_ORIGINS "
            "or to CSRF_TRUSTED_ORIGINS"
        )

    def _allows(self, origin: str, domain: str) -> bool:
        try:
            parts = urlsplit(origin.lower())
            hostname, netloc = parts.hostname, parts.netloc
        except ValueError:
            return False
        if not hostname or parts.scheme not in ("http", "https"):
            # "null" is what a sandboxed frame sends; extensions and apps name themselves by schemes of their own.
            return origin in self.allowed_origins
        return hostname == domain.strip("[]") or any(
            _is_listed(parts.scheme, netloc, allowed) for allowed in self.allowed_origins
        )


def _is_listed(scheme: str, netloc: str, allowed: str) -> bool:
    parts = urlsplit(allowed.lower())
    # Django's form of a wildcard, "*.example.com", is ".example.com" to is_same_domain.
    return parts.scheme == scheme and is_same_domain(netloc, parts.netloc.removeprefix("*"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Whose a connection is, as it was read at one time."""

    user: Any = None
    session: Any = None
    read_at: float = field(default_factory=time.monotonic)

    @property
    def key(self) -> str | None:
        """The user's primary key as text, ``None`` for nobody."""
        key = getattr(self.user, "pk", None)
        return None if key is None else str(key)


NOBODY = Identity(read_at=0.0)


def session_key_of(request: HTTPServerRequest) -> str | None:
    """Return what the handshake's cookies say of Django's session, ``None`` where the site has no sessions."""
    if not apps.is_installed("django.contrib.sessions"):
        return None
    morsel = request.cookies.get(settings.SESSION_COOKIE_NAME)
    return morsel.value if morsel else None


def identify(session_key: str | None) -> Identity:
    """Read a session and its user with Django's own engine and backends; it blocks."""
    session = _session(session_key)
    return Identity(session=session, user=_user(session))


def _session(session_key: str | None) -> Any:
    if not apps.is_installed("django.contrib.sessions"):
        return None
    return importlib.import_module(settings.SESSION_ENGINE).SessionStore(session_key)


def _user(session: Any) -> Any:
    if not apps.is_installed("django.contrib.auth"):
        return None
    if session is None or session.session_key is None:
        return _anonymous()
    # get_user reads nothing of a request but its session, and checks the hash of the password in it.
    return auth.get_user(SimpleNamespace(session=session))  # type: ignore[arg-type]


def _anonymous() -> Any:
    return importlib.import_module("django.contrib.auth.models").AnonymousUser()
