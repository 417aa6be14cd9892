"""What waits to be written: one frame per message, collected from any thread, one ``send`` per client and tick."""

from __future__ import annotations

import asyncio
import functools
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from django.utils.functional import Promise

from djmease.messages import to_json
from djmease.server.protocol import BINARY, PING, TEXT, WebSocketProtocol, build_frame

logger = logging.getLogger("djmease.server")

GRACE = 1.0
"""Seconds without progress after which a client counts as one that does not read: ticks are less than a round trip."""
HARD_LIMIT = 4
"""How many times the limit may wait even for a client that goes on reading."""


def frame_of(message: Any, binary: bool = False) -> bytes:
    """Return the frame of a message: ``str`` is text, ``bytes`` is binary, anything else is text with its JSON.

    Raises ``TypeError`` or ``ValueError`` for what JSON cannot hold.
    """
    if isinstance(message, Promise):
        message = str(message)  # A translation is made where it is written.
    if isinstance(message, str):
        return build_frame(BINARY if binary else TEXT, message.encode())
    if isinstance(message, (bytes, bytearray, memoryview)):
        return build_frame(BINARY, bytes(message))
    return build_frame(BINARY if binary else TEXT, to_json(message).encode())


class Outbox:
    """The one way out to all clients. ``limit`` is the unsent bytes that may wait for a client that does not read."""

    def __init__(self, loop: asyncio.AbstractEventLoop, *, limit: int) -> None:
        self._loop = loop
        self._thread = threading.get_ident()
        self._limit = limit
        self._dirty: list[WebSocketProtocol] = []
        self._collected: deque[tuple[WebSocketProtocol, bytes] | Callable[[], object]] = deque()
        self._is_awake = False
        self.last: tuple[Any, bool, bytes] = (object(), False, b"")
        """The message that was framed last, whether as binary, and its frame."""
        self.slow = 0
        """How many clients were cut off because they did not read."""

    def frame(self, message: Any, binary: bool = False) -> bytes:
        """Return the message's frame; the same ``str`` or ``bytes`` written again is framed once."""
        last = self.last
        if last[0] is message and last[1] is binary:
            return last[2]
        frame = frame_of(message, binary)
        if type(message) in (str, bytes):
            # Nothing else is sure to be what it was: a dict may have changed in between.
            self.last = (message, binary, frame)
        return frame

    def write(self, connection: WebSocketProtocol, frame: bytes) -> None:
        """Send a frame behind what already waits for this connection, from any thread."""
        if threading.get_ident() == self._thread:
            if not connection.closing:
                self.enqueue(connection, frame)
            return
        self._collected.append((connection, frame))
        if not self._is_awake:
            self._wake()

    def write_all(self, connections: Iterable[WebSocketProtocol], frame: bytes) -> None:
        """Send one frame to many connections, from any thread."""
        if threading.get_ident() == self._thread:
            for connection in connections:
                if not connection.closing:
                    self.enqueue(connection, frame)
            return
        self._collected.extend((connection, frame) for connection in connections)
        self._wake()

    def enqueue(self, connection: WebSocketProtocol, frame: bytes) -> None:
        """Let a frame wait for the flush at the end of this tick; on the loop only."""
        if not connection.waiting:
            if not self._dirty:
                self._loop.call_soon(self._flush)
            self._dirty.append(connection)
        connection.waiting.append(frame)

    def run_on_loop(self, function: Any, *arguments: Any) -> None:
        """Call ``function`` on the loop, in the order of what this thread writes; at once if this is the loop."""
        if threading.get_ident() == self._thread:
            function(*arguments)
        else:
            self._collected.append(functools.partial(function, *arguments))
            self._wake()

    def ping(self, connection: WebSocketProtocol) -> None:
        """Ask a client for a sign of life."""
        if not connection.closing:
            self.enqueue(connection, build_frame(PING, b""))

    def _wake(self) -> None:
        # The flag is read behind the append and cleared before the drain reads, so that no append goes unseen.
        if not self._is_awake and not self._loop.is_closed():
            self._is_awake = True
            with suppress(RuntimeError):  # The loop has closed in this moment, and the clients have gone with it.
                self._loop.call_soon_threadsafe(self._drain)

    def _drain(self) -> None:
        """Take what threads have written so far: a prefix of known length, since they go on appending."""
        self._is_awake = False
        take = self._collected.popleft
        for _ in range(len(self._collected)):
            entry = take()
            if entry.__class__ is not tuple:
                self._call(entry)  # type: ignore[arg-type]
                continue
            connection, frame = entry
            waiting = connection.waiting
            if waiting:
                # The most common case by far in a burst; what waits already is in the queue of the flush.
                if not connection.closing:
                    waiting.append(frame)
            elif not connection.closing:
                self.enqueue(connection, frame)

    def _call(self, function: Callable[[], object]) -> None:
        try:
            function()
        except Exception:
            logger.exception("what a thread asked of the loop failed")

    def _flush(self) -> None:
        dirty, self._dirty = self._dirty, []
        for connection in dirty:
            waiting, connection.waiting = connection.waiting, []
            data = waiting[0] if len(waiting) == 1 else b"".join(waiting)
            if connection.backlog and not connection.closing and self._is_slow(connection):
                self._cut_off(connection)
            else:
                connection.transmit(data)

    def _is_slow(self, connection: WebSocketProtocol) -> bool:
        """Tell whether too much is left from earlier flushes, and the client has read nothing of it for a while."""
        if len(connection.backlog) <= self._limit:
            return False
        connection.push()
        is_stuck = self._loop.time() - connection.progressed_at > GRACE
        return len(connection.backlog) > self._limit * (1 if is_stuck else HARD_LIMIT)

    def _cut_off(self, connection: WebSocketProtocol) -> None:
        self.slow += 1
        logger.warning(
            "client %s does not read: %d bytes wait for it, over MEASE_MAX_CLIENT_BUFFER; it is closed with 1013",
            getattr(connection.handler, "id", "?"),
            len(connection.backlog),
        )
        connection.cut_off(1013, "you do not read what is sent")
