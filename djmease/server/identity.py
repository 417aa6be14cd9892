"""Which handshakes are let in, and whose they are: the Host, the Origin, and who is asked.

Browsers let any page open a WebSocket to any site and send that site's cookies with it (RFC 6455, section 10.2), so the
server has to ask where the page came from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from django.http.request import split_domain_port, validate_host
from django.utils.http import is_same_domain
from tornado.httputil import HTTPServerRequest

from djmease.identities import Identity, Unauthenticated, is_authenticated, nobody, of_user
from djmease.registry import path_of

LOCAL_HOSTS = (".localhost", "127.0.0.1", "[::1]")
"""What Django allows where ``DEBUG`` is on and ``ALLOWED_HOSTS`` is empty."""
ANY_ORIGIN = "*"
"""Among allowed origins: all of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """Decides about handshakes by the settings it was made with."""

    allowed_hosts: Sequence[str]
    """As Django's ``ALLOWED_HOSTS``."""
    allowed_origins: Sequence[str]
    """``scheme://host[:port]``, the host may begin with ``*.``, as in ``CSRF_TRUSTED_ORIGINS``; ``*`` is any."""
    requires_origin: bool = False

    def refusal(self, request: HTTPServerRequest, forwarded_host: str | None = None) -> str | None:
        """Return why a handshake is refused and which setting would allow it, or ``None`` to let it in."""
        host = forwarded_host or request.headers.get("Host", "")
        origin = request.headers.get("Origin")
        domain, _ = split_domain_port(host.lower())
        is_known = bool(domain) and validate_host(domain, list(self.allowed_hosts))
        if is_known and self._lets_in(origin, domain, request.headers.get("Sec-Fetch-Site", "")):
            return None
        if origin is not None and _is_of_the_machine(host) and _is_of_a_site(origin):
            return (
                f"the page is of {origin!r} and the Host is {host!r}, as where a proxy does not hand the Host on; "
                "nginx needs the line: proxy_set_header Host $http_host; (without a proxy, a page of another site "
                "may connect if its Origin is in MEASE_ALLOWED_ORIGINS or CSRF_TRUSTED_ORIGINS, and the Host "
                "in ALLOWED_HOSTS)"
            )
        if not is_known:
            return f"the Host {host!r} is not allowed: add it to ALLOWED_HOSTS"
        if origin is None and self.requires_origin:
            return "no Origin says whose page this is, and MEASE_REQUIRE_ORIGIN asks for one"
        if origin is None:
            return "a browser says that the page is another site's, and no Origin says which"
        return (
            f"the Origin {origin!r} is not allowed for the Host {host!r}: add it to MEASE_ALLOWED_ORIGINS "
            "or to CSRF_TRUSTED_ORIGINS"
        )

    def _lets_in(self, origin: str | None, domain: str, fetch_site: str) -> bool:
        if origin is None:
            # Browsers always send an Origin; what sends none is not a page that somebody was lured to.
            is_foreign = fetch_site in ("cross-site", "same-site") and ANY_ORIGIN not in self.allowed_origins
            return not self.requires_origin and not is_foreign
        return ANY_ORIGIN in self.allowed_origins or self._allows(origin, domain)

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


def _is_of_the_machine(host: str) -> bool:
    """Tell whether a Host is what a proxy calls its upstream: the loopback, or a name of its configuration."""
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
    return name in ("127.0.0.1", "[::1]") or (bool(name) and "." not in name and ":" not in name)


def _is_of_a_site(origin: str) -> bool:
    try:
        parts = urlsplit(origin)
        name = parts.hostname or ""
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and "." in name and name != "127.0.0.1"


def _is_listed(scheme: str, netloc: str, allowed: str) -> bool:
    parts = urlsplit(allowed.lower())
    # Django's form of a wildcard, "*.example.com", is ".example.com" to is_same_domain.
    return parts.scheme == scheme and is_same_domain(netloc, parts.netloc.removeprefix("*"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Authentication:
    """Asks the authenticators whose a handshake is, in order, until one knows."""

    authenticators: Sequence[Callable[[Any], Any]]
    concerns: Callable[[HTTPServerRequest], bool]
    """Tells without blocking whether there is anything to read; where there is not, nothing of ``identify`` blocks."""
    login_required: bool

    def identify(self, request: HTTPServerRequest) -> Identity:
        """Return whose a handshake is; it blocks.

        Raises Django's ``PermissionDenied`` where it is refused, and whatever the authenticators raise.
        """
        identity = self._found(request) or nobody()
        if self.login_required and not is_authenticated(identity.user):
            raise Unauthenticated("nobody is logged in here, and only who is logged in may connect")
        return identity

    def _found(self, request: HTTPServerRequest) -> Identity | None:
        strangers: Identity | None = None
        for authenticate in self.authenticators:
            identity = _identity(authenticate, authenticate(request))
            if identity is not None and is_authenticated(identity.user):
                return identity
            # A session may be nobody's yet: it stays, unless one that is asked later knows who it is.
            strangers = strangers or identity
        return strangers


def _identity(authenticate: Callable[[Any], Any], found: Any) -> Identity | None:
    if found is None or isinstance(found, Identity):
        return found
    if not hasattr(found, "is_authenticated"):
        raise TypeError(f"{path_of(authenticate)} returned a {type(found).__name__}, which is no user")
    return of_user(found)
