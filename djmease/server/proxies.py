"""Whom a handshake comes from where a proxy stands before the server: which forwarded headers are believed."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

logger = logging.getLogger("djmease.server")

UNIX = "unix"
"""How the settings call who connects by a Unix socket."""
UNIX_PEER = "0.0.0.0"
"""How Tornado calls them; no other peer has this address."""

Address = IPv4Address | IPv6Address


@dataclass(frozen=True, slots=True, kw_only=True)
class Sender:
    """Whom a handshake comes from."""

    address: str
    scheme: str
    host: str | None = None
    """The host that a proxy says was asked for; ``None`` where the Host header says it."""


class Peers:
    """Who connects from certain addresses and networks, or, where ``unix`` is among them, by a Unix socket."""

    def __init__(self, entries: Sequence[str]) -> None:
        self._networks = [ip_network(entry, strict=False) for entry in entries if entry != UNIX]
        self._has_unix = UNIX in entries

    def __contains__(self, peer: str) -> bool:
        if peer == UNIX_PEER:
            return self._has_unix
        address = _address(peer)
        return address is not None and self.has(address)

    def has(self, address: Address) -> bool:
        return any(address in network for network in self._networks)


class Proxies:
    """The proxies that are believed: addresses, networks and ``unix``.

    ``trusts_host`` is as Django's ``USE_X_FORWARDED_HOST``.
    """

    def __init__(self, trusted: Sequence[str], *, trusts_host: bool) -> None:
        self._trusted = Peers(trusted)
        self._trusts_host = trusts_host
        self._has_told = False

    def trusts(self, peer: str) -> bool:
        """Tell whether a peer is a proxy that is believed."""
        return peer in self._trusted

    def sender(self, peer: str, scheme: str, headers: Mapping[str, str]) -> Sender:
        """Return whom a handshake comes from, given the peer of its connection and the scheme of that."""
        if peer not in self._trusted:
            if "X-Forwarded-For" in headers:
                self._tell(peer)
            return Sender(address=peer, scheme=scheme)
        host = _last(headers.get("X-Forwarded-Host", "")) if self._trusts_host else ""
        return Sender(
            address=self._client(headers.get("X-Forwarded-For", "")) or peer,
            scheme=_SCHEMES.get(_last(headers.get("X-Forwarded-Proto", "")).lower(), scheme),
            host=host or None,
        )

    def caller(self, peer: str, headers: Mapping[str, str]) -> str | None:
        """Return whose a request is that only some may make; ``None`` where it was passed on, and nobody says for whom.

        Unlike ``sender`` it takes no proxy for the one who asks: neither one that is not believed, nor one that is and
        does not say.
        """
        if not is_forwarded(headers):
            return peer
        address = self._client(headers.get("X-Forwarded-For", "")) if peer in self._trusted else None
        return None if address == UNIX_PEER else address

    def _client(self, forwarded: str) -> str | None:
        """Return the last address that is no proxy's: what stands before it anybody may have written."""
        address = None
        for entry in reversed(forwarded.split(",")):
            address = _address(entry)
            if address is None:
                return None
            if not self._trusted.has(address):
                break
        return str(address)

    def _tell(self, peer: str) -> None:
        if self._has_told:
            return
        self._has_told = True
        name = UNIX if peer == UNIX_PEER else peer
        logger.warning(
            "the X-Forwarded-For of a handshake from %s is not believed: if a proxy of yours is there, add %r to "
            "MEASE_TRUSTED_PROXIES (this is said once)",
            name,
            name,
        )


FORWARDED = (
    "Forwarded",
    "Via",
    "X-Forwarded-For",
    "X-Forwarded-Host",
    "X-Forwarded-Port",
    "X-Forwarded-Proto",
    "X-Forwarded-Server",
    "X-Real-Ip",
    "X-Client-Ip",
    "X-Original-Forwarded-For",
    "X-Cluster-Client-Ip",
    "X-Envoy-External-Address",
    "True-Client-Ip",
    "Cf-Connecting-Ip",
)
"""Headers by which a proxy, a balancer or a CDN shows that it has passed a request on (RFC 7239; RFC 9110, 7.6.3)."""


def is_forwarded(headers: Mapping[str, str]) -> bool:
    """Tell whether a header shows that a proxy has passed a request on."""
    return any(name in headers for name in FORWARDED)


_SCHEMES = {"http": "http", "https": "https", "ws": "http", "wss": "https"}


def _last(value: str) -> str:
    return value.rpartition(",")[2].strip()


def _address(text: str) -> Address | None:
    """Return the address in an entry of X-Forwarded-For, which may have a port, and an IPv6 one brackets."""
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    with suppress(ValueError):
        address = ip_address(text)
        return getattr(address, "ipv4_mapped", None) or address
    return None
