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


class Proxies:
    """The proxies that are believed: addresses, networks and ``unix``.

    ``trusts_host`` is as Django's ``USE_X_FORWARDED_HOST``.
    """

    def __init__(self, trusted: Sequence[str], *, trusts_host: bool) -> None:
        self._networks = [ip_network(entry, strict=False) for entry in trusted if entry != UNIX]
        self._trusts_unix = UNIX in trusted
        self._trusts_host = trusts_host
        self._has_told = False

    def sender(self, peer: str, scheme: str, headers: Mapping[str, str]) -> Sender:
        """Return whom a handshake comes from, given the peer of its connection and the scheme of that."""
        if not self._trusts_peer(peer):
            if "X-Forwarded-For" in headers:
                self._tell(peer)
            return Sender(address=peer, scheme=scheme)
        host = _last(headers.get("X-Forwarded-Host", "")) if self._trusts_host else ""
        return Sender(
            address=self._client(headers.get("X-Forwarded-For", "")) or peer,
            scheme=_SCHEMES.get(_last(headers.get("X-Forwarded-Proto", "")).lower(), scheme),
            host=host or None,
        )

    def _trusts_peer(self, peer: str) -> bool:
        if peer == UNIX_PEER:
            return self._trusts_unix
        address = _address(peer)
        return address is not None and self._trusts(address)

    def _trusts(self, address: Address) -> bool:
        return any(address in network for network in self._networks)

    def _client(self, forwarded: str) -> str | None:
        """Return the last address that is no proxy's: what stands before it anybody may have written."""
        address = None
        for entry in reversed(forwarded.split(",")):
            address = _address(entry)
            if address is None:
                return None
            if not self._trusts(address):
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
