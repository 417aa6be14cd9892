"""How much: connections in all, of one user and from one address, and messages a second of one client."""

from __future__ import annotations

import ipaddress
import logging
import math
from collections import Counter
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from djmease.server.complaints import Complaints

logger = logging.getLogger("djmease.server")


class Counted(Protocol):
    """Who is counted."""

    @property
    def id(self) -> str: ...

    @property
    def user_key(self) -> str | None: ...

    @property
    def address(self) -> str: ...


Client = TypeVar("Client", bound=Counted)


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why a handshake is refused: the status of the answer and its text."""

    status: int
    reason: str


class Limits(Generic[Client]):
    """Counts who is connected, and says who may not be; on the loop only. ``None`` is no limit."""

    def __init__(
        self,
        *,
        connections: int | None,
        per_user: int | None,
        per_address: int | None,
        message_rate: float | None,
        message_burst: int,
    ) -> None:
        self._connections = math.inf if connections is None else connections
        self._per_user = math.inf if per_user is None else per_user
        self.per_address = math.inf if per_address is None else per_address
        self.message_cost = 0.0 if message_rate is None else 1 / message_rate
        """Seconds of a client's time that a message takes (a leaky bucket as a meter, ITU-T I.371)."""
        self.message_allowance = math.inf if message_rate is None else (message_burst + 0.5) / message_rate
        """Seconds by which a client may be ahead of its time."""
        self.clients: dict[str, Client] = {}
        """Who is connected, by id, also those whose openers run, and whose closing handshake does."""
        self._users: dict[str, dict[str, Client]] = {}
        self._addresses: Counter[str] = Counter()
        self._counted_as: dict[str, tuple[str | None, str | None]] = {}
        self._complaints = Complaints(logger)
        self.refused: Counter[str] = Counter()
        """How often each limit was met (``connections``, ``user``, ``address``, ``messages``), and how many handshakes
        were refused by who they are (``unauthenticated``) and where they come from (``forbidden``)."""

    def of_user(self, key: str) -> tuple[Client, ...]:
        """Return who is connected as this user."""
        return tuple(self._users.get(key, {}).values())

    def user_key_of(self, client: Client) -> str | None:
        """Return as whose a client, which has entered, is counted: whose it was when it came."""
        return self._counted_as[client.id][0]

    def refusal(self, address: str, user_key: str | None) -> Refusal | None:
        """Return why one more from this address, of this user if it is known yet, is too many; that is counted."""
        counted = counted_as(address)
        if len(self.clients) >= self._connections:
            reason = "this server has as many connections as MEASE_MAX_CONNECTIONS"
            return self._refuse("connections", address, 503, reason)
        if counted is not None and self._addresses[counted] >= self.per_address:
            reason = f"{counted} has as many connections as MEASE_MAX_CONNECTIONS_PER_ADDRESS"
            cure = "if it is a proxy, name it in MEASE_TRUSTED_PROXIES"
            return self._refuse("address", address, 429, f"{reason}; {cure}")
        if user_key is not None and len(self._users.get(user_key, ())) >= self._per_user:
            reason = "this user has as many connections as MEASE_MAX_CONNECTIONS_PER_USER"
            return self._refuse("user", f"{address}, of the user {user_key},", 429, reason)
        return None

    def _refuse(self, kind: str, who: str, status: int, reason: str) -> Refusal:
        self.refused[kind] += 1
        self._complaints.say("a handshake from %s is refused with %d: %s", who, status, reason, kind=kind)
        return Refusal(status=status, reason=reason)

    def enter(self, client: Client) -> None:
        """Count a client, as who it is now."""
        key, address = client.user_key, counted_as(client.address)
        self.clients[client.id] = client
        self._counted_as[client.id] = (key, address)
        if key is not None:
            self._users.setdefault(key, {})[client.id] = client
        if address is not None:
            self._addresses[address] += 1

    def leave(self, client: Client) -> None:
        """Count a client no more, whoever it has become since; one that went during its handshake never was."""
        if self.clients.pop(client.id, None) is None:
            return
        key, address = self._counted_as.pop(client.id)
        if key is not None:
            of_user = self._users[key]
            del of_user[client.id]
            if not of_user:
                del self._users[key]
        if address is not None:
            self._addresses[address] -= 1
            if not self._addresses[address]:
                del self._addresses[address]

    def complain_of_messages(self, client: Client) -> None:
        """Note that a client sends more than MEASE_MAX_MESSAGE_RATE."""
        self.refused["messages"] += 1
        told = "client %s sends more than MEASE_MAX_MESSAGE_RATE; it is closed with 4429"
        self._complaints.say(told, client.id, about=client, kind="messages")


def counted_as(address: str) -> str | None:
    """Return as what connections from an address are counted, or ``None`` where a proxy of this machine stands.

    Of IPv6 it is the network of 64 bits: one host has all of it (RFC 6177).
    """
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return None
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is None:
            return None if found.is_loopback else str(ipaddress.ip_network((int(found) >> 64 << 64, 64)))
        found = found.ipv4_mapped
    return None if found.is_loopback or found.is_unspecified else str(found)
