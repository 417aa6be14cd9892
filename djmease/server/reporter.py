"""Tells Redis of this server: a report at an interval, and answers to whoever asked, on a connection of its own."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import time
from collections import deque
from contextlib import suppress
from typing import Any, Protocol

from djmease.names import Names
from djmease.server.link import Access, Command, Link, Trouble

logger = logging.getLogger("djmease.server")

ANSWER_TIMEOUT = 5.0
"""Seconds for connecting, authenticating, and what one writing to Redis takes."""
EXPIRY = 3
"""Intervals after which the report of a server that is gone is gone too."""
FORGOTTEN_AFTER = 3600.0
"""Seconds after which a server that reports no more is no longer named, and after which nothing is left of any."""
REPLY_EXPIRY = 30
"""Seconds for which an answer waits to be read."""
MAX_ANSWERS = 1000
"""Answers that may wait for Redis; the oldest go."""
RETRY_PAUSE = 5.0
"""Seconds between two attempts, at most, where there is no interval."""


class Observer(Protocol):
    """What ``server/observer.py`` tells."""

    @property
    def server_id(self) -> str: ...

    def described(self) -> bytes: ...

    def report(self) -> dict[str, Any]: ...

    def sample(self) -> None: ...


class Reporter:
    """Writes reports and answers to Redis until cancelled, and takes its report back then.

    Redis may lose a report, and be another one when it comes back: what never changes is written again when the answer
    shows that it is not there.
    """

    def __init__(
        self,
        *,
        access: Access,
        names: Names,
        observer: Observer,
        interval: float | None,
    ) -> None:
        self._link = Link(access, timeout=ANSWER_TIMEOUT)
        self._observer = observer
        self._interval = interval
        """Seconds between two reports; ``None`` is none at all."""
        self._names = names
        self._key = names.server_key(observer.server_id)
        self._answers: deque[tuple[str, dict[str, Any]]] = deque(maxlen=MAX_ANSWERS)
        self._bell = asyncio.Event()
        self._due_at = 0.0
        self._trouble = Trouble(
            access, logger, "this server cannot report what it does, and the status page misses it: %s"
        )

    def answer(self, token: object, what: dict[str, Any]) -> None:
        """Tell whoever waits for this token; nobody does where it is none."""
        if isinstance(token, str) and token.isalnum() and len(token) <= 64:
            self._answers.append((token, {**what, "server": self._observer.server_id}))
            self._bell.set()

    async def run(self) -> None:
        """Report and answer until cancelled."""
        try:
            while True:
                await self._wait()
                try:
                    await self._write_or_connect_anew()
                except Exception as error:
                    self._trouble.note(error)
                    self._due_at = time.monotonic() + (self._interval or RETRY_PAUSE) * random.uniform(0.5, 1.0)
                else:
                    self._trouble.note(None)
        finally:
            await self._link.drop()

    async def leave(self) -> None:
        """Take the report back: this server ends."""
        with suppress(Exception):
            if self._interval is not None:
                servers_key = self._names.servers_key
                await self._link.execute([("DEL", self._key), ("ZREM", servers_key, self._observer.server_id)])
        await self._link.drop()

    async def _wait(self) -> None:
        """Return when there is an answer, or it is time for a report."""
        left = None if self._interval is None else max(0.0, self._due_at - time.monotonic())
        # After a failure nothing is tried before its time.
        if self._trouble.reason is not None:
            await asyncio.sleep(RETRY_PAUSE if left is None else left)
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(left):
                await self._bell.wait()

    async def _write_or_connect_anew(self) -> None:
        if self._link.is_connected:
            try:
                return await self._write()
            except Exception:
                # It may have been closed since it was last used, which is nothing to speak of.
                self._due_at = 0.0
        await self._write()

    async def _write(self) -> None:
        self._bell.clear()
        waiting = len(self._answers)
        answers = [self._answers[index] for index in range(waiting)]
        commands = [command for token, what in answers for command in self._answer_commands(token, what)]
        is_due = self._interval is not None and time.monotonic() >= self._due_at
        report = self._report_commands() if is_due else []
        replies = await self._link.execute([*commands, *report])
        for _ in range(min(waiting, len(self._answers))):
            self._answers.popleft()
        if report and replies[len(commands)]:
            # The hash was not there, and what the counts are about is to be said again.
            await self._link.execute([("HSET", self._key, "callbacks", self._observer.described())])

    def _answer_commands(self, token: str, what: dict[str, Any]) -> list[Command]:
        key = self._names.reply_key(token)
        return [("RPUSH", key, json.dumps(what)), ("EXPIRE", key, REPLY_EXPIRY)]

    def _report_commands(self) -> list[Command]:
        assert self._interval is not None
        self._due_at = time.monotonic() + self._interval
        self._observer.sample()
        now, servers_key = time.time(), self._names.servers_key
        return [
            ("HSET", self._key, "report", json.dumps(self._observer.report())),
            ("PEXPIRE", self._key, round(EXPIRY * self._interval * 1000)),
            ("ZADD", servers_key, now, self._observer.server_id),
            ("ZREMRANGEBYSCORE", servers_key, "-inf", now - FORGOTTEN_AFTER),
            ("EXPIRE", servers_key, round(FORGOTTEN_AFTER)),
        ]
