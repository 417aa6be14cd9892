"""Which handshakes are let in: the Host and the Origin of the request.

Browsers let any page open a WebSocket to any site and send that site's cookies with it (RFC 6455, section 10.2), so the
server has to ask where the page came from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

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
