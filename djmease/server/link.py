"""What all have in common who talk to Redis: a connection, when to try again, and what to say of it."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Connection

Command = tuple[Any, ...]
FIRST_BACKOFF = 0.05
MAX_BACKOFF = 1.0
"""Seconds between two attempts, at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """How a server gets to its Redis."""

    connect: Callable[[], Connection]
    """Makes a connection, which is not connected yet."""
    explain: Callable[[BaseException], str] = str
    """Says what is wrong with Redis, and the cure."""
    revive: Callable[[], Awaitable[None]] | None = None
    """Starts an embedded Valkey that has died."""


class Link:
    """A connection for one purpose, made when it is needed, and anew after it has failed."""

    def __init__(self, access: Access, *, timeout: float) -> None:
        self._make_connection = access.connect
        self._timeout = timeout
        """Seconds for connecting, authenticating, and the answers to what is sent at once."""
        self._connection: Connection | None = None

    @property
    def is_connected(self) -> bool:
        return self._connection is not None

    async def execute(self, commands: Sequence[Command]) -> list[Any]:
        """Send commands in one go, and return what Redis says to each.

        Raises the first refusal among the answers, and redis-py's ``RedisError``, ``OSError`` or ``TimeoutError``.
        """
        if not commands:
            return []
        if self._connection is None:
            self._connection = self._make_connection()
        connection = self._connection
        try:
            async with asyncio.timeout(self._timeout):
                await connection.connect()
                await connection.send_packed_command(connection.pack_commands(commands))
                return [await connection.read_response(disable_decoding=True) for _ in commands]
        except BaseException:
            await self.drop()
            raise

    async def drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.disconnect(nowait=True)


class Backoff:
    """How many seconds to wait before the next attempt: twice as many after each."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin with little again: an attempt went well."""
        self._seconds = FIRST_BACKOFF

    def next(self) -> float:
        # Jitter keeps the servers of a cluster from coming back in the same moment.
        seconds = self._seconds * random.uniform(0.5, 1.0)
        self._seconds = min(MAX_BACKOFF, self._seconds * 2)
        return seconds


class Trouble:
    """Says once what is wrong with Redis, until something else is, and perhaps that it is well again."""

    def __init__(
        self,
        access: Access,
        logger: logging.Logger,
        text: str,
        *,
        level: int = logging.WARNING,
        well: str | None = None,
        reason: str | None = None,
    ) -> None:
        self._explain = access.explain
        self._logger = logger
        self._text = text
        """With ``%s`` for the reason."""
        self._level = level
        self._well = well
        self.reason = reason
        """``None`` where all is well."""

    @property
    def text(self) -> str:
        return self._text % self.reason

    def note(self, error: Exception | None) -> None:
        """Take what an attempt has failed with; ``None`` is nothing."""
        before, self.reason = self.reason, None if error is None else self._explain(error)
        if self.reason is not None:
            self._logger.log(logging.DEBUG if self.reason == before else self._level, self._text, self.reason)
        elif before is not None and self._well is not None:
            self._logger.warning(self._well)
