"""Logins that end: orders to close connections, and users and sessions that are read again."""

from __future__ import annotations

import asyncio
import functools
import heapq
import logging
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Any

from djmease.identities import Identity, reread
from djmease.server.client import Client
from djmease.server.clients import Clients
from djmease.server.complaints import Complaints
from djmease.server.limits import Limits

logger = logging.getLogger("djmease.server")

ENDED = (4401, "the login has ended")
"""With what clients are closed: no code of a registry, but 401 in the range that is left to applications."""
BATCH = 100
"""Logins that one hop to a thread reads."""
MEMORY = 120.0
"""Seconds for which an ended session is remembered: longer than a handshake takes and a ticket is good."""
MAX_REMEMBERED = 10_000
"""Ended sessions that are remembered, at most."""
MIN_WAIT = 0.05
"""Seconds until the next reading, at least."""

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
        self._tasks: set[asyncio.Task[None]] = set()
        self._ended_sessions: dict[str, float] = {}
        """By hash, with when each may be forgotten, in that order."""
        self._unread = Complaints(logger)
        self.ended = 0
        """Connections that were closed because of this."""

    @property
    def orders(self) -> dict[str, Callable[[dict[str, Any]], None]]:
        """What other processes may ask for, by its name."""
        return {"disconnect": self.disconnect, "end_session": self.end_session, "recheck": self.recheck}

    def start(self) -> None:
        self._run(self._go_on())

    def stop(self) -> None:
        for task in tuple(self._tasks):
            task.cancel()

    def add(self, client: Client) -> None:
        """Read a client's login again from time to time, if it has one."""
        if client.identity.session_hash in self._ended_sessions:
            # Its session was read, or its ticket issued, before the logout that this server has heard of since.
            self._end(client)
            return
        if client.user_key is not None:
            heapq.heappush(self._due, (self._loop.time() + self._wait(client.identity), client.id))

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
                self._end(client)

    def end_session(self, order: dict[str, Any]) -> None:
        """Close the connections of a session, which is named by its hash."""
        session = order.get("session")
        if not isinstance(session, str):
            return
        self._remember(session)
        for client in tuple(self._limits.clients.values()):
            if client.identity.session_hash == session:
                self._end(client)

    def _remember(self, session: str) -> None:
        now = self._loop.time()
        remembered = self._ended_sessions
        while remembered and (len(remembered) >= MAX_REMEMBERED or next(iter(remembered.values())) <= now):
            del remembered[next(iter(remembered))]
        remembered.pop(session, None)
        remembered[session] = now + MEMORY

    def recheck(self, order: dict[str, Any]) -> None:
        """Read users again now."""
        self._run(self._check(self._of_users(order)))

    def _of_users(self, order: dict[str, Any]) -> list[Client]:
        return [client for key in _names(order, "users") for client in self._limits.of_user(key)]

    def _end(self, client: Client) -> None:
        self.ended += 1
        client.close(*ENDED)

    # Reading again

    def _run(self, work: Any) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _go_on(self) -> None:
        while True:
            await asyncio.sleep(min(1.0, self._interval / 4))
            await self._check(list(self._take_due()))

    def _take_due(self) -> Iterator[Client]:
        now = self._loop.time()
        while self._due and self._due[0][0] <= now:
            client = self._limits.clients.get(heapq.heappop(self._due)[1])
            if client is not None:
                yield client

    async def _check(self, clients: Sequence[Client]) -> None:
        for start in range(0, len(clients), BATCH):
            batch = clients[start : start + BATCH]
            found = await self._in_thread(functools.partial(_reread_all, [client.identity for client in batch]))
            for client, identity in zip(batch, found, strict=True):
                self._take(client, identity)

    def _take(self, client: Client, identity: Identity | Exception) -> None:
        if client.id not in self._limits.clients:
            return
        if isinstance(identity, Exception):
            self._unread.say("the login of client %s could not be read again: %r", client.id, identity, about=client)
        else:
            before = client.user_key
            self._clients.reidentify(client, identity)
            if client.user_key != before:
                self._end(client)
                return
        self.add(client)


def _names(order: dict[str, Any], field: str) -> list[str]:
    names = order.get(field)
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def _reread_all(identities: Iterable[Identity]) -> list[Identity | Exception]:
    """Read each again, those of one session once; it blocks."""
    known: dict[str, Identity | Exception] = {}
    found = []
    for identity in identities:
        name = identity.session_hash
        if name is None or identity.session is None:
            found.append(_reread(identity))
        else:
            if name not in known:
                known[name] = _reread(identity)
            found.append(known[name])
    return found


def _reread(identity: Identity) -> Identity | Exception:
    try:
        return reread(identity)
    except Exception as error:
        return error
