"""Keeps the roll of the groups that have one: tells Redis whom this server has in them, and takes the dead off it."""

from __future__ import annotations

import asyncio
import functools
import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from djmease import roll
from djmease.messages import Message
from djmease.names import Names
from djmease.registry import matches
from djmease.roll import Script
from djmease.server.client import Client
from djmease.server.link import Access, Backoff, Link, Trouble
from djmease.server.subscriptions import Channels

logger = logging.getLogger("djmease.server")

BEAT_INTERVAL = 2.0
"""Seconds after which this server says again that it lives, and looks who does not."""
AUDIT_INTERVAL = 60.0
"""Seconds after which Redis is asked what it knows of this server: what was sent on a connection that was given up may
have arrived late."""
ANSWER_TIMEOUT = 5.0
"""Seconds for connecting, authenticating, and the answer to one script."""
MAX_BATCH = 200
"""Changes that are told at once."""
WHATEVER_ITS_AGE = -1e9
"""For ``roll.REAP``: also who lives."""

Place = tuple[str, str]
"""A group and the key of a person in it."""


@dataclass(slots=True, kw_only=True)
class Here:
    """A person in a group, as this server has it."""

    described: str
    since: float = field(default_factory=time.time)
    connections: int = 0


GONE = Here(described="", since=0.0)


class Members:
    """Counts the connections of each person in the groups with presence. Any thread may say who has come or gone."""

    def __init__(self, loop: asyncio.AbstractEventLoop, patterns: Sequence[str]) -> None:
        self._loop = loop
        self._thread = threading.get_ident()
        # Bounded, because names come from outside and are endless.
        self.covers = functools.lru_cache(maxsize=1024)(functools.partial(_matches_any, tuple(patterns)))
        self._lock = threading.Lock()
        self._here: dict[Place, Here] = {}
        self._changed: dict[Place, None] = {}
        """What is still to be told; the one that has been longest comes first."""

    @property
    def trouble(self) -> str | None:
        """Why Redis could not be told."""
        return None

    def joined(self, client: Client, group: str) -> None:
        """Count a client in a group, if that has presence."""
        if not self.covers(group):
            return
        place = _place(client, group)
        with self._lock:
            here = self._here.get(place)
            if here is None:
                here = self._here[place] = Here(described=_described(client))
            here.connections += 1
            self._changed[place] = None
        self._on_loop(self._ring)

    def left(self, client: Client, group: str) -> None:
        """Count a client that ``joined`` no more."""
        if not self.covers(group):
            return
        place = _place(client, group)
        with self._lock:
            here = self._here.get(place)
            if here is None:
                return
            here.connections -= 1
            if not here.connections:
                del self._here[place]
            self._changed[place] = None
        self._on_loop(self._ring)

    def _on_loop(self, function: Callable[[], None]) -> None:
        if threading.get_ident() == self._thread:
            function()
        else:
            with suppress(RuntimeError):  # The loop has closed, and the clients have gone with it.
                self._loop.call_soon_threadsafe(function)

    def _ring(self) -> None:
        raise NotImplementedError

    async def run(self) -> None:
        """Tell what changes until cancelled."""

    async def leave(self) -> None:
        """Take this server off the roll: it ends."""

    def roll(self, group: str) -> list[bytes]:
        """Return the entries of a group as Redis would hold them, where it does not; any thread may ask."""
        return []


class LocalPresence(Members):
    """Tells nobody but the clients of this process, which hears no Redis."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, *, patterns: Sequence[str], publish: Callable[[Message], None]
    ) -> None:
        super().__init__(loop, patterns)
        self._publish = publish
        self._told: dict[Place, Here] = {}

    def roll(self, group: str) -> list[bytes]:
        with self._lock:
            return [
                roll.entry_of(here.connections, here.since, here.described)
                for (each, _), here in self._here.items()
                if each == group
            ]

    def _ring(self) -> None:
        # Behind what called: it may hold the lock of the clients, whom the message is for.
        self._loop.call_soon(self._tell)

    def _tell(self) -> None:
        with self._lock:
            changed = {place: self._here.get(place) for place in self._changed}
            self._changed.clear()
        for place, here in changed.items():
            before = self._told.pop(place, None)
            if here is not None:
                self._told[place] = here
            if (here is None) != (before is None):
                self._publish_event(place[0], "leave" if here is None else "join", here or before or GONE)

    def _publish_event(self, group: str, event: str, here: Here) -> None:
        self._publish(roll.message_of(group, event, here.since, here.described))


class Presence(Members):
    """Tells Redis who is here, until cancelled.

    Redis is told what is, and only of what it does not know: with each new connection, and when it had taken this
    server for dead, it is asked what it knows.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        access: Access,
        names: Names,
        patterns: Sequence[str],
        server_id: str,
        channels: Channels,
        interval: float = BEAT_INTERVAL,
        dead_after: float = roll.DEAD_AFTER,
    ) -> None:
        super().__init__(loop, patterns)
        self._link = Link(access, timeout=ANSWER_TIMEOUT)
        self._server_id = server_id
        self._prefixes = (names.presence_prefix, names.group_prefix)
        self._channels = channels
        self._trouble = Trouble(
            access,
            logger,
            "this server cannot tell who is in its groups: %s",
            well="this server tells again who is in its groups",
        )
        self._interval = interval
        self._dead_after = dead_after
        self._told: dict[Place, int] = {}
        """The connections that Redis knows of."""
        self._known: set[Place] = set()
        """Who was told to a Redis that has lost it since: that they are here is nothing new."""
        self._epoch: object = None
        """The life of Redis that was told."""
        self._beat_at = 0.0
        self._was_dead = False
        """Whether Redis had taken this server off the roll, and has not been asked what it knows since."""
        self._audited_at = 0.0
        self._bell = asyncio.Event()

    @property
    def trouble(self) -> str | None:
        return self._trouble.reason

    def _ring(self) -> None:
        self._bell.set()

    async def run(self) -> None:
        # A Redis that is away is waited for.
        backoff = Backoff()
        try:
            while True:
                try:
                    await self._wait()
                    await self._go_on()
                except Exception as error:
                    await self._link.drop()
                    self._trouble.note(error)
                    await asyncio.sleep(backoff.next())
                else:
                    self._trouble.note(None)
                    backoff.reset()
        finally:
            await self._link.drop()

    async def leave(self) -> None:
        with suppress(Exception):
            await self._load_scripts()
            while not await self._reap_some(self._server_id, WHATEVER_ITS_AGE):
                pass
        await self._link.drop()

    async def _wait(self) -> None:
        """Return when something has changed, or it is time for a beat."""
        if self._link.is_connected:
            with suppress(TimeoutError):
                async with asyncio.timeout_at(self._beat_at):
                    await self._bell.wait()
        self._bell.clear()

    async def _go_on(self) -> None:
        if not self._link.is_connected:
            await self._load_scripts()
            await self._beat(is_new=True)
        elif self._loop.time() >= self._beat_at:
            await self._beat()
        while places := self._take():
            await self._until_heard(places)
            if not await self._tell(places) or self._loop.time() >= self._beat_at:
                await self._beat()

    async def _load_scripts(self) -> None:
        await self._link.execute([("SCRIPT LOAD", script.text) for script in roll.SCRIPTS])

    async def _run(self, script: Script, *arguments: Any) -> Any:
        command = ("EVALSHA", script.sha, 0, *self._prefixes, roll.new_seed(), *arguments)
        return (await self._link.execute([command]))[0]

    async def _beat(self, is_new: bool = False) -> None:
        """Say that this server lives, compare with what Redis knows of it where that is not sure, and reap the dead."""
        epoch, dead = await self._say_alive()
        if is_new or self._was_dead or self._loop.time() - self._audited_at > AUDIT_INTERVAL:
            await self._audit(epoch)
            self._was_dead = False
            self._audited_at = self._loop.time()
        for server_id in dead:
            logger.info("the server %s has not been heard of, and is taken off the roll", server_id.decode())
            while not await self._reap_some(server_id, self._dead_after):
                if self._loop.time() >= self._beat_at:
                    await self._say_alive()

    async def _say_alive(self) -> tuple[object, list[bytes]]:
        """Return the name of this life of Redis, and the servers that seem dead."""
        epoch, was_dead, *dead = await self._run(roll.BEAT, self._server_id, self._dead_after)
        self._beat_at = self._loop.time() + self._interval
        self._was_dead |= bool(was_dead)
        return epoch, dead

    async def _audit(self, epoch: object) -> None:
        """Ask what Redis knows of this server, and look at all of it again."""
        found = iter(await self._run(roll.AUDIT, self._server_id))
        triples = zip(found, found, found, strict=True)
        told = {(group.decode(), person.decode()): int(count) for group, person, count in triples}
        with self._lock:
            if epoch != self._epoch:
                self._epoch = epoch
                # Who has left meanwhile is new when coming back.
                self._known.update(place for place in self._told if place in self._here)
            self._told = told
            self._changed = dict.fromkeys([*self._here, *told])

    async def _reap_some(self, server_id: bytes | str, dead_after: float) -> bool:
        """Take some of a dead server's persons off the roll, and return whether that was all."""
        return bool(await self._run(roll.REAP, server_id, dead_after, roll.REAPED_AT_ONCE))

    def _take(self) -> list[tuple[Place, Here]]:
        """Return some of what Redis does not know."""
        taken: list[tuple[Place, Here]] = []
        with self._lock:
            while self._changed and len(taken) < MAX_BATCH:
                place = next(iter(self._changed))
                del self._changed[place]
                here = self._here.get(place, GONE)
                if here.connections != self._told.get(place, 0):
                    taken.append((place, replace(here)))
                else:
                    self._known.discard(place)
        return taken

    async def _until_heard(self, places: Iterable[tuple[Place, Here]]) -> None:
        """Wait until this server hears the groups where something has changed; it goes on living meanwhile."""
        waiting = asyncio.create_task(self._hear(places))
        try:
            while not (await asyncio.wait([waiting], timeout=max(0.0, self._beat_at - self._loop.time())))[0]:
                await self._beat()
            waiting.result()
        finally:
            waiting.cancel()

    async def _hear(self, places: Iterable[tuple[Place, Here]]) -> None:
        """Return when this server hears the groups, also those into which somebody new has come, who shall hear it."""
        await self._channels.until_connected()
        groups = {place[0] for place, here in places if here.connections and place not in self._told}
        await asyncio.gather(*(self._channels.expect(self._channels.of_group(group)) for group in groups))

    async def _tell(self, places: Sequence[tuple[Place, Here]]) -> bool:
        """Tell Redis what is, and return whether it took it from this server."""
        arguments = [
            argument
            for place, here in places
            for argument in (
                *place,
                here.connections,
                f"{here.since:.3f}",
                here.described,
                int(place in self._known),
            )
        ]
        if not await self._run(roll.TELL, self._server_id, *arguments):
            return False
        for place, here in places:
            self._known.discard(place)
            if here.connections:
                self._told[place] = here.connections
            else:
                self._told.pop(place, None)
        return True


def make_presence(
    loop: asyncio.AbstractEventLoop,
    *,
    access: Access | None,
    patterns: Sequence[str],
    publish: Callable[[Message], None],
    **about_redis: Any,
) -> Members | None:
    """Make what the settings want: nothing without patterns, and without ``access`` what needs no Redis."""
    if not patterns:
        return None
    if access is None:
        return LocalPresence(loop, patterns=patterns, publish=publish)
    return Presence(loop, access=access, patterns=patterns, **about_redis)


def _matches_any(patterns: tuple[str, ...], group: str) -> bool:
    return any(matches(pattern, group) for pattern in patterns)


def _place(client: Client, group: str) -> Place:
    return group, roll.person_key(client.heard_as, client.id)


def _described(client: Client) -> str:
    name = client.identity.name
    return roll.describe(name=name, user_key=client.heard_as, client_id=client.id, info=client.presence_json)
