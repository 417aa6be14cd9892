"""The one reader of Redis: subscribed, supervised, and back again whatever happens to Redis."""

from __future__ import annotations

import asyncio
import logging
import random
import re
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from typing import Any

from redis.asyncio import Connection
from redis.exceptions import RedisError

from djmease.messages import Message, decode
from djmease.server.complaints import Complaints

logger = logging.getLogger("djmease.listener")

CONNECT_TIMEOUT = 2.0
"""Seconds for connecting, authenticating and subscribing."""
IDLE_INTERVAL = 5.0
"""Seconds of silence after which Redis is pinged, and again that long until it is taken for dead."""
MAX_BACKOFF = 1.0
"""Seconds between two attempts to come back, at most."""
RECENT = 1000
"""How many ids are remembered, to drop a message that a publisher has sent twice."""


class Listener:
    """Hears every publication whose channel begins with ``prefix`` and hands it on as a ``Message``, on the loop."""

    def __init__(
        self,
        *,
        connect: Callable[[], Connection],
        prefix: str,
        on_message: Callable[[Message], None],
        revive: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._make_connection = connect
        self._prefix = prefix.encode()
        self._on_message = on_message
        self._revive = revive
        """Called before each attempt to come back: starts an embedded Valkey that has died."""
        self._connection: Connection | None = None
        self._heard_at = 0.0
        self._recent: set[str] = set()
        self._recent_order: deque[str] = deque()
        self._complaints = Complaints(logger, logging.ERROR)
        self.refused = 0
        """Payloads that could not be read."""
        self.reconnects = 0

    async def start(self) -> None:
        """Connect and subscribe. Raises redis-py's ``RedisError``, ``OSError`` or ``TimeoutError`` where that fails."""
        await self._subscribe()

    async def run(self) -> None:
        """Read until cancelled; a Redis that goes away is waited for."""
        try:
            while True:
                try:
                    await self._read()
                except (RedisError, OSError, TimeoutError) as error:
                    await self._come_back(error)
        finally:
            await self._drop()

    async def _subscribe(self) -> None:
        self._connection = connection = self._make_connection()
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                await connection.connect()
                await connection.send_command("PSUBSCRIBE", _escaped(self._prefix) + b"*")
                await connection.read_response(disable_decoding=True)
        except BaseException:
            await self._drop()
            raise
        self._heard_at = time.monotonic()

    async def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.disconnect(nowait=True)

    async def _read(self) -> None:
        """Read replies as they come; those that have come already are taken without a turn of the loop in between."""
        connection = self._connection
        assert connection is not None
        watch = asyncio.create_task(self._watch(connection))
        try:
            while True:
                reply = await connection.read_response(disable_decoding=True)
                self._heard_at = time.monotonic()
                self._take(reply)
                for reply in _replies_that_have_come(connection):
                    self._take(reply)
        finally:
            watch.cancel()

    async def _watch(self, connection: Connection) -> None:
        """Ping a silent Redis, and give up one that does not answer: a cut network says nothing by itself."""
        while True:
            await asyncio.sleep(IDLE_INTERVAL)
            silence = time.monotonic() - self._heard_at
            if silence > 2 * IDLE_INTERVAL:
                await connection.disconnect(nowait=True)
            elif silence > IDLE_INTERVAL / 2:
                # Where this fails, the reader hears of it too.
                with suppress(RedisError, OSError):
                    await connection.send_command("PING")

    def _take(self, reply: Any) -> None:
        if isinstance(reply, RedisError):
            raise reply
        if reply[0] == b"pmessage":
            self._hear(reply[2], reply[3])

    def _hear(self, channel: bytes, payload: bytes) -> None:
        routing = channel[len(self._prefix) :].decode(errors="backslashreplace")
        try:
            message = decode(routing, payload)
        except ValueError as error:
            self.refused += 1
            self._complaints.say("a payload of %d bytes on %r is refused: %s", len(payload), channel, error)
            return
        if not self._is_new(message.id):
            return
        try:
            self._on_message(message)
        except Exception:
            logger.exception("message %s on %s could not be handed on", message.id, message.routing)

    def _is_new(self, message_id: str) -> bool:
        if message_id in self._recent:
            return False
        self._recent.add(message_id)
        self._recent_order.append(message_id)
        if len(self._recent_order) > RECENT:
            self._recent.discard(self._recent_order.popleft())
        return True

    async def _come_back(self, error: BaseException) -> None:
        gone_at = time.monotonic()
        logger.error("Redis is gone (%s); messages published meanwhile are lost; trying to come back", error)
        await self._drop()
        backoff = 0.05
        while True:
            # Jitter keeps the servers of a cluster from coming back in the same moment.
            await asyncio.sleep(backoff * random.uniform(0.5, 1.0))
            backoff = min(MAX_BACKOFF, backoff * 2)
            try:
                if self._revive is not None:
                    await self._revive()
                await self._subscribe()
            except Exception as failure:
                logger.debug("Redis is still gone: %s", failure)
            else:
                break
        self.reconnects += 1
        logger.warning("Redis is back after %.1f s", time.monotonic() - gone_at)


def _replies_that_have_come(connection: Connection) -> Iterator[Any]:
    """Yield what hiredis has already parsed: asking redis-py for each reply would cost more than all else with it."""
    gets = getattr(getattr(connection._parser, "_reader", None), "gets", None)
    # A subscriber is told lists and errors; anything else is redis-py's mark for "not enough data".
    while gets is not None and isinstance(reply := gets(False), (list, RedisError)):
        yield reply


def _escaped(prefix: bytes) -> bytes:
    """Return a prefix in which PSUBSCRIBE finds no pattern (https://redis.io/docs/latest/commands/psubscribe/)."""
    return re.sub(rb"([*?\[\]\\])", rb"\\\1", prefix)
