"""The channels of groups and users that this server hears: subscribed for the first who needs one, and some seconds
longer than for the last."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from djmease.names import Names
from djmease.server.complaints import Complaints

logger = logging.getLogger("djmease.listener")

LINGER = 10.0
"""Seconds for which a channel is heard that nobody needs any more: pages are loaded one after another."""
WAIT_TIMEOUT = 2.0
"""Seconds that a join waits for Redis to confirm it."""
Waiter = asyncio.Future[None] | threading.Event


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What Redis has to be told, in this order."""

    unsubscribe: list[str]
    subscribe: list[str]


class Channels(Protocol):
    """What those who need channels ask for."""

    def of_group(self, group: str) -> str: ...

    def of_user(self, key: str) -> str: ...

    def hold(self, channel: str) -> None: ...

    def release(self, channel: str) -> None: ...

    def wait(self, channel: str) -> None: ...

    async def wait_on_loop(self, channel: str) -> None: ...

    async def expect(self, channel: str) -> None: ...

    async def until_connected(self) -> None: ...


class Subscriptions:
    """Counts who needs which channel, and knows which of them Redis has confirmed. Any thread may use it.

    The listener comes for the changes, in batches, and tells what is confirmed; while it is not connected there is
    nothing to wait for, and it subscribes to all that is held when it comes back.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, *, names: Names, linger: float = LINGER) -> None:
        self._loop = loop
        self._names = names
        self._thread = threading.get_ident()
        self._linger = linger
        self._lock = threading.Lock()
        self._held: Counter[str] = Counter()
        self._idle: dict[str, float] = {}
        """Channels that nobody holds, and since when; the one that has been longest comes first."""
        self._confirmed: set[str] = set()
        self._pending: Counter[str] = Counter()
        """Channels for which Redis was asked, and how often it has not answered yet."""
        self._new: dict[str, None] = {}
        """Channels for which it is still to be asked."""
        self._waiting: dict[str, list[Waiter]] = {}
        self._is_connected = False
        self._connected = asyncio.Event()
        """The same, for those on the loop who wait for it."""
        self._bell = asyncio.Event()
        self._late = Complaints(logger)

    # From any thread

    def of_group(self, group: str) -> str:
        """Return the channel of a group."""
        return self._names.group_channel(group)

    def of_user(self, key: str) -> str:
        """Return the channel of a user, by its primary key as text."""
        return self._names.user_channel(key)

    def hold(self, channel: str) -> None:
        """Hear a channel, until ``release`` is called as often."""
        with self._lock:
            self._held[channel] += 1
            self._idle.pop(channel, None)
            if self._held[channel] > 1 or channel in self._confirmed or self._pending[channel] or channel in self._new:
                return
            self._new[channel] = None
        self._run_on_loop(self._bell.set)

    def release(self, channel: str) -> None:
        """Need a channel no more."""
        with self._lock:
            self._held[channel] -= 1
            if self._held[channel] > 0:
                return
            del self._held[channel]
            if channel not in self._new:
                self._idle[channel] = time.monotonic()
                return
            # Redis has not been asked for it, and will not be: whoever waits would wait for nothing.
            del self._new[channel]
            waiting = self._waiting.pop(channel, [])
        self._run_on_loop(_tell, waiting)

    def wait(self, channel: str) -> None:
        """Return when Redis has confirmed a channel that is held, or cannot be asked now; at once on the loop."""
        if channel in self._confirmed or threading.get_ident() == self._thread:
            return
        done = threading.Event()
        if self._wait_with(channel, done) and not done.wait(WAIT_TIMEOUT):
            self._wait_no_more(channel, done)
            self._complain(channel)

    async def wait_on_loop(self, channel: str) -> None:
        """Return when Redis has confirmed a channel that is held, or cannot be asked now."""
        done = self._loop.create_future()
        if self._wait_with(channel, done):
            try:
                async with asyncio.timeout(WAIT_TIMEOUT):
                    await done
            except TimeoutError:
                self._complain(channel)
            finally:
                self._wait_no_more(channel, done)

    async def expect(self, channel: str) -> None:
        """Return when Redis has confirmed a channel, and go on hearing it for a while."""
        self.hold(channel)
        try:
            await self.wait_on_loop(channel)
        finally:
            self.release(channel)

    async def until_connected(self) -> None:
        """Return when what is held is heard, or that takes too long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(WAIT_TIMEOUT):
                await self._connected.wait()

    def _wait_with(self, channel: str, done: Waiter) -> bool:
        with self._lock:
            if channel in self._confirmed or not self._is_connected:
                return False
            self._waiting.setdefault(channel, []).append(done)
            return True

    def _wait_no_more(self, channel: str, done: Waiter) -> None:
        with self._lock:
            waiting = self._waiting.get(channel, [])
            if done in waiting:
                waiting.remove(done)
                if not waiting:
                    del self._waiting[channel]

    def _complain(self, channel: str) -> None:
        self._late.say(
            "Redis has not confirmed the channel %s in %s s; what is published on it may be missed",
            channel,
            WAIT_TIMEOUT,
        )

    def _run_on_loop(self, function: Callable[..., None], *arguments: Any) -> None:
        if threading.get_ident() == self._thread:
            function(*arguments)
        else:
            with suppress(RuntimeError):  # The loop has closed, and the clients have gone with it.
                self._loop.call_soon_threadsafe(function, *arguments)

    # What the listener calls, on the loop

    def channels(self) -> list[str]:
        """Begin anew with a connection that is subscribed to nothing; return the channels that it should be."""
        with self._lock:
            self._forget()
            wanted = list(self._held)
            self._pending = Counter(wanted)
            return wanted

    def more_channels(self) -> list[str]:
        """Return what has come to the channels since they were returned last, while the connection is subscribed."""
        with self._lock:
            return self._take_new()

    def _take_new(self) -> list[str]:
        new = list(self._new)
        self._new.clear()
        self._pending.update(new)
        return new

    def connected(self) -> None:
        """Say that the connection is subscribed to all that ``channels`` and ``more_channels`` returned."""
        with self._lock:
            self._is_connected = True
        self._connected.set()
        self._bell.set()  # For those who came meanwhile.

    def disconnected(self) -> None:
        """Say that nothing is heard any more; nobody waits for it."""
        with self._lock:
            self._is_connected = False
            self._connected.clear()
            self._forget()
            waiting = [done for each in self._waiting.values() for done in each]
            self._waiting.clear()
        _tell(waiting)

    def _forget(self) -> None:
        self._confirmed.clear()
        self._pending.clear()
        self._new.clear()
        self._idle.clear()

    def confirmed(self, channel: str) -> None:
        """Say that Redis has confirmed a subscription."""
        with self._lock:
            self._pending[channel] -= 1
            if self._pending[channel] > 0:
                return  # It was subscribed, unsubscribed and subscribed again meanwhile.
            del self._pending[channel]
            self._confirmed.add(channel)
            waiting = self._waiting.pop(channel, [])
        _tell(waiting)

    async def changes(self) -> Changes:
        """Wait until Redis has to be told something, and return all of it."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._linger / 4):
                    await self._bell.wait()
            self._bell.clear()
            changes = self._take()
            if changes.subscribe or changes.unsubscribe:
                return changes

    def _take(self) -> Changes:
        with self._lock:
            if not self._is_connected:
                return Changes(unsubscribe=[], subscribe=[])
            subscribe = self._take_new()
            # One that has not been confirmed yet has to wait for that.
            unsubscribe = [channel for channel in self._expired() if not self._pending[channel]]
            for channel in unsubscribe:
                del self._idle[channel]
                self._confirmed.discard(channel)
            return Changes(unsubscribe=unsubscribe, subscribe=subscribe)

    def _expired(self) -> Iterable[str]:
        oldest = time.monotonic() - self._linger
        for channel, since in self._idle.items():
            if since > oldest:
                return
            yield channel


def _tell(waiting: Iterable[Waiter]) -> None:
    for done in waiting:
        if isinstance(done, threading.Event):
            done.set()
        elif not done.done():
            done.set_result(None)
