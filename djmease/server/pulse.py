"""This server's heartbeat, on a connection of its own, by which the listener tells silence from deafness."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from contextlib import suppress

from redis.asyncio import Connection
from redis.exceptions import AuthenticationError, AuthorizationError, ResponseError

from djmease.server.link import Link

logger = logging.getLogger("djmease.listener")

ANSWER_TIMEOUT = 2.0
"""Seconds for connecting, authenticating, and the answer to one heartbeat."""
MAX_BACKOFF = 1.0
"""Seconds between two attempts after one that failed, at most."""
REFUSALS = (AuthenticationError, AuthorizationError, ResponseError)
"""What a Redis says that lives, and does not let us."""


class Pulse:
    """Publishes one payload at an interval until cancelled, and makes its connection anew where that fails."""

    def __init__(
        self,
        *,
        connect: Callable[[], Connection],
        channel: str,
        payload: bytes,
        interval: float,
        explain: Callable[[BaseException], str],
    ) -> None:
        self._link = Link(connect, timeout=ANSWER_TIMEOUT)
        self._channel = channel
        self._payload = payload
        self._interval = interval
        self._explain = explain
        self._hurry = asyncio.Event()
        self.refusal: str | None = None
        """Why Redis, which answers, does not take the heartbeat: then its absence says nothing of the listener."""

    async def beat(self) -> None:
        """Publish once. Raises redis-py's ``RedisError``, ``OSError`` or ``TimeoutError`` where that fails."""
        await self._link.execute([("PUBLISH", self._channel, self._payload)])
        self.refusal = None

    async def run(self) -> None:
        """Publish at the interval until cancelled; after a failure sooner, with a new connection."""
        pause, backoff = self._interval, 0.05
        try:
            while True:
                await self._wait(pause)
                try:
                    await self.beat()
                except Exception as error:
                    self._note(error)
                    pause = min(self._interval, backoff * random.uniform(0.5, 1.0))
                    backoff = min(MAX_BACKOFF, backoff * 2)
                else:
                    pause, backoff = self._interval, 0.05
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

    def _note(self, error: Exception) -> None:
        """Say a refusal once; where Redis is away the listener says so."""
        reason = self._explain(error)
        before, self.refusal = self.refusal, reason if isinstance(error, REFUSALS) else None
        if self.refusal is not None and before is None:
            logger.error("Redis does not take this server's heartbeat: %s", reason)
        else:
            logger.debug("the heartbeat could not be published: %s", reason)
