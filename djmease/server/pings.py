"""Which clients are still there: one timer for all pings and their deadlines."""

from __future__ import annotations

import asyncio
import logging
from collections import deque

from djmease.server.complaints import fields_of
from djmease.server.outbox import Outbox
from djmease.server.protocol import WebSocketProtocol

logger = logging.getLogger("djmease.server")


class Pings:
    """Ping every connection each ``interval`` seconds, and give up those that are silent for ``timeout`` after it.

    Both queues, of when to ping and of who was pinged when, are in order, since all wait equally long: a turn costs
    only what is due.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, outbox: Outbox, *, interval: float, timeout: float) -> None:
        self._loop = loop
        self._outbox = outbox
        self._interval = interval
        self._timeout = timeout
        self._step = min(1.0, interval / 4, timeout / 4)
        self._to_ping: deque[tuple[float, WebSocketProtocol]] = deque()
        self._to_answer: deque[tuple[float, WebSocketProtocol, int | None]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._judge_from = 0.0
        self.timed_out = 0

    def start(self) -> None:
        self._due = self._loop.time() + self._step
        self._timer = self._loop.call_at(self._due, self._turn)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def add(self, connection: WebSocketProtocol) -> None:
        """Watch a connection until it closes."""
        self._to_ping.append((self._loop.time() + self._interval, connection))

    def _turn(self) -> None:
        now = self._loop.time()
        if now - self._due > self._timeout / 2:
            # The loop itself was away: nobody could be asked or heard, and everybody gets the whole time again.
            self._judge_from = now + self._timeout
        self.start()
        self._outbox.hand_on()  # What was written before a ping goes before it, and is judged with it.
        while now >= self._judge_from and self._to_answer and self._to_answer[0][0] <= now - self._timeout:
            self._judge(*self._to_answer.popleft())
        while self._to_ping and self._to_ping[0][0] <= now:
            self._ping(self._to_ping.popleft()[1], now)

    def _ping(self, connection: WebSocketProtocol, now: float) -> None:
        if connection.closing:
            return
        # A ping that waits behind much that the client has still to read cannot be answered before that is read.
        delivered = connection.delivered() if connection.undelivered() else None
        self._outbox.ping(connection)
        self._to_ping.append((now + self._interval, connection))
        self._to_answer.append((now, connection, delivered))

    def _judge(self, pinged_at: float, connection: WebSocketProtocol, delivered: int | None) -> None:
        if connection.closing or not connection.is_reading:
            return  # Nothing is heard of a client that is not read, which is no fault of its own.
        if connection.heard_at >= pinged_at or (delivered is not None and connection.delivered() > delivered):
            return
        self.timed_out += 1
        logger.info(
            "client %s has not answered a ping for %s s: it is given up",
            getattr(connection.handler, "id", "?"),
            self._timeout,
            extra=fields_of(connection.handler),
        )
        connection.abort()
