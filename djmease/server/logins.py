"""Logins that end: orders to close connections, and users and sessions that are read again."""

from __future__ import annotations

import asyncio
import functools
import heapq
import logging
import math
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Any

from djmease.identities import Identity
from djmease.rereading import Outcome, reread_all
from djmease.server.background import Background
from djmease.server.client import IDENTIFY_TIMEOUT, Client
from djmease.server.clients import Clients
from djmease.server.complaints import Complaints, error_repr
from djmease.server.limits import Limits

logger = logging.getLogger("djmease.server")

ENDED = (4401, "the login has ended")
"""With what clients are closed: no code of a registry, but 401 in the range that is left to applications."""
DISCONNECTED = (4401, "the site has disconnected you")
BATCH = 100
"""Logins that one hop to a thread reads."""
MEMORY = 120.0
"""Seconds for which an ended session is remembered: longer than a handshake takes and a ticket is good."""
MAX_REMEMBERED = 10_000
"""Ended sessions that are remembered, at most, and users that were to be read again."""
MIN_WAIT = 0.05
"""Seconds until the next reading, at least."""
ORDER_MEMORY = IDENTIFY_TIMEOUT + 5
"""Seconds for which it is remembered that a user was to be read again: longer than a handshake takes that read it."""

InThread = Callable[[Callable[[], Any]], Awaitable[Any]]


class Logins:
    """Ends connections whose login has ended: when it is told to, when it expires, and when that shows by itself.

    Everybody who is somebody is read again within ``interval`` seconds, at times that chance has, so that clients that
    came together do not ask the database together.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        limits: Limits[Client],
        clients: Clients,
        in_thread: InThread,
        interval: float,
    ) -> None:
        self._loop = loop
        self._limits = limits
        self._clients = clients
        self._in_thread = in_thread
        self._interval = interval
        self._due: list[tuple[float, str]] = []
        self._next: dict[str, float] = {}
        """By a client's id, which of what is due for it is the first; what else is due for it is passed over."""
        self._asked: set[str] = set()
        """Users that are to be read again now."""
        self._is_reading_asked = False
        self._tasks = Background(logger)
        self._ended_sessions = _Remembered(loop, MEMORY)
        """By their hashes."""
        self._asked_lately = _Remembered(loop, ORDER_MEMORY)
        """Users by their keys."""
        self._unread = Complaints(logger)
        self.ended = 0
        """Connections that were closed because of this."""

    @property
    def orders(self) -> dict[str, Callable[[dict[str, Any]], None]]:
        """What other processes may ask for, by its name."""
        return {"disconnect": self.disconnect, "end_session": self.end_session, "recheck": self.recheck}

    def start(self) -> None:
        self._tasks.keep("reading logins again", self._go_on)

    async def stop(self) -> None:
        await self._tasks.stop()

    def add(self, client: Client) -> None:
        """Begin to read the login of a client again from time to time, if it has one."""
        if client.identity.session_hash in self._ended_sessions:
            # Its session was read, or its ticket issued, before the logout that this server has heard of since.
            self._end(client)
            return
        self._schedule(client)
        key = client.user_key
        if key is not None and key in self._asked_lately:
            # The order may have come between its user being read and now.
            self._read_now([key])

    def _schedule(self, client: Client) -> None:
        if self._limits.user_key_of(client) is None:
            return
        due = self._loop.time() + self._wait(client.identity)
        if due < self._next.get(client.id, math.inf):
            self._next[client.id] = due
            heapq.heappush(self._due, (due, client.id))

    def _wait(self, identity: Identity) -> float:
        wait = self._interval * random.uniform(0.5, 1)
        if identity.expires_at is not None:
            wait = min(wait, identity.expires_at - time.time() + MIN_WAIT)
        return max(MIN_WAIT, wait)

    # Orders

    def disconnect(self, order: dict[str, Any]) -> None:
        """Close the connections of users, and those with these ids."""
        named = (self._limits.clients.get(client_id) for client_id in _names(order, "clients"))
        for client in (*self._of_users(order), *named):
            if client is not None:
                self._end(client, DISCONNECTED)

    def end_session(self, order: dict[str, Any]) -> None:
        """Close the connections of a session, which is named by its hash."""
        session = order.get("session")
        if not isinstance(session, str):
            return
        self._ended_sessions.add(session)
        for client in tuple(self._limits.clients.values()):
            if client.identity.session_hash == session:
                self._end(client)

    def recheck(self, order: dict[str, Any]) -> None:
        """Read users again now."""
        keys = _names(order, "users")
        for key in keys:
            self._asked_lately.add(key)
        self._read_now(keys)

    def _read_now(self, keys: Iterable[str]) -> None:
        """Read users again, together with those that are asked for meanwhile, and each once for all who ask."""
        self._asked.update(key for key in keys if self._limits.of_user(key))
        if self._asked and not self._is_reading_asked:
            self._is_reading_asked = True
            self._tasks.run("reading logins now", self._read_asked())

    async def _read_asked(self) -> None:
        try:
            while self._asked:
                keys, self._asked = self._asked, set()
                await self._check([client for key in keys for client in self._limits.of_user(key)])
        finally:
            self._is_reading_asked = False

    def _of_users(self, order: dict[str, Any]) -> list[Client]:
        return [client for key in _names(order, "users") for client in self._limits.of_user(key)]

    def _end(self, client: Client, why: tuple[int, str] = ENDED) -> None:
        self.ended += 1
        client.close(*why)

    # Reading again

    async def _go_on(self) -> None:
        while True:
            await asyncio.sleep(min(1.0, self._interval / 4))
            await self._check(list(self._take_due()))

    def _take_due(self) -> Iterator[Client]:
        now = self._loop.time()
        while self._due and self._due[0][0] <= now:
            due, client_id = heapq.heappop(self._due)
            if self._next.get(client_id) != due:
                continue
            del self._next[client_id]
            client = self._limits.clients.get(client_id)
            if client is not None:
                yield client

    async def _check(self, clients: Sequence[Client]) -> None:
        for start in range(0, len(clients), BATCH):
            batch = clients[start : start + BATCH]
            found = await self._found([client.identity for client in batch])
            for client, identity in zip(batch, found, strict=True):
                try:
                    self._take(client, identity)
                except Exception as error:
                    self._take(client, error)  # It is said, and the others have their turn.

    async def _found(self, identities: list[Identity]) -> list[Outcome]:
        try:
            found: list[Outcome] = await self._in_thread(functools.partial(reread_all, identities))
        except Exception as error:
            return [error] * len(identities)
        return found

    def _take(self, client: Client, identity: Outcome) -> None:
        if client.id not in self._limits.clients:
            return
        if isinstance(identity, Exception):
            told = error_repr(identity)
            self._unread.say("the login of client %s could not be read again: %s", client.id, told, about=client)
        else:
            self._clients.reidentify(client, identity)
            # A receiver's rule may have read it before, and found that the login has ended.
            if client.user_key != self._limits.user_key_of(client):
                self._end(client)
                return
        self._schedule(client)


class _Remembered:
    """Names, each for so many seconds; where there are too many, the oldest are forgotten before their time."""

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        self._loop = loop
        self._seconds = seconds
        self._until: dict[str | None, float] = {}
        """In the order in which they are forgotten."""

    def __contains__(self, name: str | None) -> bool:
        return self._until.get(name, 0.0) > self._loop.time()

    def __iter__(self) -> Iterator[str | None]:
        return iter(self._until)

    def add(self, name: str) -> None:
        now, until = self._loop.time(), self._until
        while until and (len(until) >= MAX_REMEMBERED or next(iter(until.values())) <= now):
            del until[next(iter(until))]
        until.pop(name, None)
        until[name] = now + self._seconds


def _names(order: dict[str, Any], field: str) -> list[str]:
    names = order.get(field)
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
