"""This server's heartbeat, on a connection of its own, by which the listener tells silence from deafness."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

from redis.exceptions import AuthenticationError, AuthorizationError, ResponseError

from djmease.server.link import Access, Backoff, Link, Trouble

logger = logging.getLogger("djmease.listener")

ANSWER_TIMEOUT = 2.0
"""Seconds for connecting, authenticating, and the answer to one heartbeat."""
REFUSALS = (AuthenticationError, AuthorizationError, ResponseError)
"""What a Redis says that lives, and does not let us."""


class Pulse:
    """Publishes one payload at an interval until cancelled, and makes its connection anew where that fails."""

    def __init__(
        self,
        *,
        access: Access,
        channel: str,
        payload: bytes,
        interval: float,
    ) -> None:
        self._link = Link(access, timeout=ANSWER_TIMEOUT)
        self._channel = channel
        self._payload = payload
        self._interval = interval
        self._explain = access.explain
        self._hurry = asyncio.Event()
        # Where Redis is away the listener says so.
        self._refused = Trouble(access, logger, "Redis does not take this server's heartbeat: %s", level=logging.ERROR)

    @property
    def refusal(self) -> str | None:
        """Why Redis, which answers, does not take the heartbeat: then its absence says nothing of the listener."""
        return None if self._refused.reason is None else self._refused.text

    async def beat(self) -> None:
        """Publish once. Raises redis-py's ``RedisError``, ``OSError`` or ``TimeoutError`` where that fails."""
        await self._link.execute([("PUBLISH", self._channel, self._payload)])
        self._refused.note(None)

    async def run(self) -> None:
        """Publish at the interval until cancelled; after a failure sooner, with a new connection."""
        pause, backoff = self._interval, Backoff()
        try:
            while True:
                await self._wait(pause)
                try:
                    await self.beat()
                except Exception as error:
                    logger.debug("the heartbeat could not be published: %s", self._explain(error))
                    self._refused.note(error if isinstance(error, REFUSALS) else None)
                    pause = min(self._interval, backoff.next())
                else:
                    pause = self._interval
                    backoff.reset()
        finally:
            await self.drop()

    def hurry(self) -> None:
        """Let the next heartbeat go out now."""
        self._hurry.set()

    async def drop(self) -> None:
        await self._link.drop()

    async def _wait(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._hurry.wait()
        self._hurry.clear()
