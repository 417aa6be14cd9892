"""A connection to Redis for one purpose, made when it is needed, and anew after it has failed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from redis.asyncio import Connection

Command = tuple[Any, ...]


class Link:
    """Sends commands and returns what Redis says to them; whatever fails ends the connection."""

    def __init__(self, connect: Callable[[], Connection], *, timeout: float) -> None:
        self._make_connection = connect
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
