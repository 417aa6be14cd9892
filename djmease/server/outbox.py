"""What waits to be written: one frame per message, collected from any thread, one ``send`` per client and tick."""

from __future__ import annotations

import asyncio
import functools
import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from django.utils.functional import Promise

from djmease.messages import to_json
from djmease.server.complaints import fields_of
from djmease.server.forms import Forms, forms_of
from djmease.server.protocol import BINARY, DEFLATED, HEADED, PING, TEXT, WebSocketProtocol, build_frame
from djmease.server.tallies import AUTHOR, Author

logger = logging.getLogger("djmease.server")

GRACE = 1.0
"""Seconds without progress after which a client counts as one that does not read: ticks are less than a round trip."""
HARD_LIMIT = 4
"""How many times the limit may wait even for a client that goes on reading."""
MAX_COLLECTED = 8 * 1024 * 1024
"""Bytes of frames that may be collected: then threads wait for the loop, and on the loop they are sent at once."""


def frame_of(message: Any, binary: bool = False) -> bytes:
    """Return the frame of a message: ``str`` is text, ``bytes`` is binary, anything else is text with its JSON.

    Raises ``TypeError`` or ``ValueError`` for what JSON cannot hold.
    """
    if isinstance(message, str):
        return build_frame(BINARY if binary else TEXT, message.encode())
    if isinstance(message, (bytes, bytearray, memoryview)):
        return build_frame(BINARY, bytes(message))
    if isinstance(message, Promise):
        return frame_of(str(message), binary)  # A translation is made where it is written.
    return build_frame(BINARY if binary else TEXT, to_json(message).encode())


class Run:
    """One frame, and the connections that it was written to one after another.

    The run that is open is added to without a lock, which is safe since a list's ``append`` is one step, and since
    whoever has added looks behind it whether the run is still open. Where it is not, the connection may have come too
    late to be handed on, and is rescued.
    """

    __slots__ = ("author", "connections", "forms", "frame", "seen_to", "taken")

    def __init__(
        self,
        frame: bytes,
        connections: list[WebSocketProtocol],
        forms: Forms | None = None,
        author: Author | None = None,
    ) -> None:
        self.frame = frame
        self.author = author
        """Who wrote it, and is told how often it was handed on."""
        self.connections = connections
        self.forms = forms
        """The frame by what a connection takes; ``None`` where it is the same for all."""
        self.taken = -1
        """How many of the connections were there when the loop took the run; -1 before it does."""
        self.seen_to = 0
        """How many were there when one that came too late was rescued; before that, as many as were taken."""


class _FormsOfBurst(dict[int, bytes]):
    """The forms of several frames as one, each made where somebody takes it."""

    def __init__(self, runs: list[Run]) -> None:
        self._runs = runs

    def __missing__(self, takes: int) -> bytes:
        data = self[takes] = b"".join([run.frame if run.forms is None else run.forms[takes] for run in self._runs])
        return data


def _joined(runs: list[Run]) -> tuple[bytes, Forms | _FormsOfBurst | None]:
    """Return the frames of these runs as one, and the forms of that if it has any."""
    if len(runs) == 1:
        return runs[0].frame, runs[0].forms
    if any(run.forms is not None for run in runs):
        return b"", _FormsOfBurst(runs)
    return b"".join([run.frame for run in runs]), None


_NO_RUN = Run(b"", [])
_NO_FORMS = (b"", None, None)
Step = Callable[[], object]
"""Something that a thread asks of the loop."""


class Outbox:
    """The one way out to all clients. ``limit`` is the unsent bytes that may wait for a client that does not read.

    What is written, from the loop or from any thread, is collected; once in a tick of the loop it is handed to the
    connections, and each of them sends what waits for it by one call.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, *, limit: int) -> None:
        self._loop = loop
        self._thread = threading.get_ident()
        self._limit = limit
        self._lock = threading.Lock()
        self._has_room = threading.Condition(self._lock)
        self._collected: list[Run | Step] = []
        self._collected_size = 0
        self.run = _NO_RUN
        """The run that ends what is collected; more may be written to it."""
        self.framed: tuple[Any, bool, bytes] = (object(), False, b"")
        """The message that was framed last, whether as binary, and its frame."""
        self._formed: tuple[bytes, bytes | None, Forms | None] = _NO_FORMS
        """The frame that was given its forms last, the header before it, and its forms."""
        self.deflating = 0
        """How many connections take compressed frames."""
        self.heading = 0
        """How many connections take headers."""
        self.quiet_threads: set[int] = set()
        """Those whose writing does not wake the loop, which comes for it by itself."""
        self._is_awake = False
        self._is_handing_on = False
        self._dirty: list[WebSocketProtocol] = []
        self.slow = 0
        """How many clients were cut off because they did not read."""
        self.behind: set[WebSocketProtocol] = set()
        """Who has a backlog."""
        self.written = 0
        """Messages handed on, one for each client."""
        self.written_bytes = 0
        """Of their frames, before compression."""

    # From any thread

    def frame(self, message: Any, binary: bool = False) -> bytes:
        """Return the message's frame; the same ``str`` or ``bytes`` written again is framed once."""
        known, known_binary, frame = self.framed
        if known is message and known_binary is binary:
            return frame
        frame = frame_of(message, binary)
        if type(message) in (str, bytes):
            # Nothing else is sure to be what it was: a dict may have changed in between.
            self.framed = (message, binary, frame)
        return frame

    def write_message(self, connection: WebSocketProtocol, message: Any, binary: bool = False) -> None:
        """Send a message behind what already waits for this connection.

        Raises ``TypeError`` or ``ValueError`` for what JSON cannot hold.
        """
        frame = self.frame(message, binary)
        author = AUTHOR.get()
        forms = self._forms(frame, author) if self.deflating or self.heading else None
        self._collect(Run(frame, [connection], forms, author))

    def count_form(self, form: int, difference: int) -> None:
        """Count connections that take compressed frames, or headers; on the loop only."""
        self.deflating += difference * bool(form & DEFLATED)
        self.heading += difference * bool(form & HEADED)
        # What was made for those who were there before may lack a form.
        self._formed = _NO_FORMS
        self.end_run()

    def end_run(self) -> None:
        """Let nothing more be written to the run that is open; whoever is just about to is rescued where it must be."""
        self.run = _NO_RUN

    def rescue(self, run: Run) -> None:
        """See to what was added to a run that is open no more: if it came too late, it is collected again."""
        with self._lock:
            if run.taken < 0:
                return
            late = run.connections[run.seen_to :]
            if not late:
                return  # Another thread has rescued it together with its own.
            run.seen_to += len(late)
            self._append(Run(run.frame, late, run.forms, run.author))
        self._wake_unless_quiet()

    def write(self, connection: WebSocketProtocol, frame: bytes) -> None:
        """Send a frame behind what already waits for this connection."""
        self._collect(Run(frame, [connection]))

    def write_all(self, connections: list[WebSocketProtocol], frame: bytes) -> None:
        """Send one frame behind what already waits for each of these connections."""
        author = AUTHOR.get()
        forms = self._forms(frame, author) if self.deflating or self.heading else None
        self._collect(Run(frame, connections, forms, author))

    def _forms(self, frame: bytes, author: Author | None) -> Forms | None:
        """Return the forms of a message's frame, made once and in the thread that writes it."""
        header = None if author is None else author.header
        known, known_header, known_forms = self._formed
        if known is frame and known_header is header:
            return known_forms
        wanted = self.deflating, self.heading
        made = forms_of(frame, header, deflating=wanted[0], heading=wanted[1])
        if wanted == (self.deflating, self.heading):  # Else the loop has forgotten what was made before, meanwhile.
            self._formed = (frame, header, made)
        return made

    def run_on_loop(self, function: Any, *arguments: Any) -> None:
        """Call ``function`` on the loop, in the order of what is written."""
        with self._lock:
            self._collected.append(functools.partial(function, *arguments))
            self.run = _NO_RUN
        self._wake()

    def _collect(self, run: Run) -> None:
        thread = threading.get_ident()
        with self._lock:
            while self._collected_size > MAX_COLLECTED and thread != self._thread:
                self._wake()
                if not self._has_room.wait(GRACE):
                    break
            self._append(run)
            is_much = self._collected_size > MAX_COLLECTED
        if is_much and thread == self._thread and not self._is_handing_on:
            self.tick()  # Who writes so much without ever waiting waits for the kernel.
        else:
            self._wake_unless_quiet()

    def _append(self, run: Run) -> None:
        self._collected.append(run)
        self._collected_size += len(run.frame)
        self.run = run

    def _wake_unless_quiet(self) -> None:
        if threading.get_ident() not in self.quiet_threads:
            self._wake()

    def _wake(self) -> None:
        # The flag is read behind the append and cleared before the tick reads, so that nothing collected goes unseen.
        if self._is_awake or self._loop.is_closed():
            return
        self._is_awake = True
        if threading.get_ident() == self._thread:
            self._loop.call_soon(self.tick)
        else:
            with suppress(RuntimeError):  # The loop has closed in this moment, and the clients have gone with it.
                self._loop.call_soon_threadsafe(self.tick)

    # On the loop

    def enqueue(self, connection: WebSocketProtocol, frame: bytes) -> None:
        """Let a frame wait for the end of this tick, before what is collected."""
        if not connection.waiting:
            self._dirty.append(connection)
            self._wake()
        connection.waiting.append(frame)

    def ping(self, connection: WebSocketProtocol) -> None:
        """Ask a client for a sign of life."""
        if not connection.closing:
            self.enqueue(connection, build_frame(PING, b""))

    def hand_on(self) -> None:
        """Let all that has been written so far wait at its connections."""
        if not self._is_handing_on:  # Else one of the steps asks, and what was written before it waits already.
            self._is_handing_on = True
            self._hand_on_all(self._take())
            self._is_handing_on = False

    def gather(self) -> None:
        """Leave the sending of what is written from here on to the ``tick`` with which the caller ends."""
        self._is_awake = True

    def tick(self) -> None:
        """Send all that has been written so far."""
        self._is_awake = False
        collected = self._take()
        if len(collected) == 1 and isinstance(run := collected[0], Run) and not self._dirty:
            for connection in run.connections[: run.taken]:
                if not connection.closing:
                    self._send(connection, run.frame if run.forms is None else run.forms[connection.takes])
        else:
            self._is_handing_on = True
            self._hand_on_all(collected)
            self._is_handing_on = False
        dirty, self._dirty = self._dirty, []
        for connection in dirty:
            waiting, connection.waiting = connection.waiting, []
            self._send(connection, waiting[0] if len(waiting) == 1 else b"".join(waiting))

    def _take(self) -> list[Run | Step]:
        with self._lock:
            collected, self._collected = self._collected, []
            self.run = _NO_RUN
            written = size = 0
            for entry in collected:
                if isinstance(entry, Run):
                    entry.taken = entry.seen_to = taken = len(entry.connections)
                    written += taken
                    size += taken * len(entry.frame)
                    if entry.author is not None:
                        entry.author.wrote(taken)
            self.written += written
            self.written_bytes += size
            if self._collected_size > MAX_COLLECTED:
                self._has_room.notify_all()
            self._collected_size = 0
        return collected

    def _hand_on_all(self, collected: list[Run | Step]) -> None:
        runs: list[Run] = []
        connections: list[WebSocketProtocol] = []
        for entry in collected:
            if not isinstance(entry, Run):
                self._hand_on(runs, connections)
                runs, connections = [], []
                self._call(entry)
                continue
            taken = entry.connections[: entry.taken]
            if taken == connections:
                # A burst to the same clients becomes one piece of work for each of them.
                runs.append(entry)
            else:
                self._hand_on(runs, connections)
                runs, connections = [entry], taken
        self._hand_on(runs, connections)

    def _hand_on(self, runs: list[Run], connections: list[WebSocketProtocol]) -> None:
        data, forms = _joined(runs)
        dirty = self._dirty
        for connection in connections:
            if connection.closing:
                continue
            waiting = connection.waiting
            if not waiting:
                dirty.append(connection)
            waiting.append(data if forms is None else forms[connection.takes])

    def _call(self, function: Step) -> None:
        try:
            function()
        except Exception:
            logger.exception("what a thread asked of the loop failed")

    def _send(self, connection: WebSocketProtocol, data: bytes) -> None:
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
            extra=fields_of(connection.handler),
        )
        connection.cut_off(1013, "you do not read what is sent")
