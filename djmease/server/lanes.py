"""What must stay in order waits in a lane: the messages of one routing, or everything of one client.

Different lanes do not wait for each other.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from contextvars import Context
from dataclasses import dataclass
from typing import Protocol

from djmease.server.calls import Call
from djmease.server.client import Client
from djmease.server.running import Runner
from djmease.server.tasks import Tasks
from djmease.server.workers import Step, Workers, tidy_connections

logger = logging.getLogger("djmease.server")

HOP_TIME = 0.005
"""Seconds after which a hop to a thread gives the rest of its lane back."""
MAX_CLIENT_LANE = 200
"""Calls that may wait for one client before it is not read any more: a page that has asked for as many groups as it may
by default has its pings answered while openers run."""
MAX_CLIENT_WAITING = 1024 * 1024
"""Bytes that may wait for one client before it is not read any more."""


class Keeper(Protocol):
    """Who keeps lanes."""

    runner: Runner
    workers: Workers
    tasks: Tasks

    def emptied(self, lane: Lane) -> None: ...

    def resume(self, lane: Lane) -> None: ...

    def returned(self) -> None: ...


@dataclass(slots=True)
class Waiting:
    """What waits in many lanes together."""

    size: int = 0
    """Bytes."""


class Closing:
    """The end of a client's lane: it is done once, in this lane or in the one that takes over from it."""

    __slots__ = ("_begun", "_lock", "entries", "is_abandoned", "is_for_thread", "timer")

    def __init__(self, entries: tuple[Call | Step, ...]) -> None:
        self.entries = entries
        """What goes last, in order: out of the list, the closers, and the client is forgotten."""
        self.is_abandoned = False
        self.is_for_thread = False
        """Whether what is next waits for a thread, which may be long and is nobody's fault."""
        self.timer: asyncio.TimerHandle | None = None
        self._begun: Call | None = None
        self._lock = threading.Lock()

    def may_begin(self, call: Call) -> bool:
        """Claim a call in a thread; from then on it is not given to another lane."""
        with self._lock:
            if not self.is_abandoned:
                self._begun = call
                self.is_for_thread = False
            return not self.is_abandoned

    def abandon(self, waiting: deque[Call | Step]) -> tuple[list[Call | Step], list[Call]] | None:
        """Return what is left to do of ``waiting``, and what is not done; ``None`` where a closer waits its turn."""
        with self._lock:
            # A copy, since the thread that hangs may return just now.
            left = [entry for entry in list(waiting) if entry is not self._begun]
            rest = [entry for entry in left if entry in self.entries]
            if self.is_for_thread and len(rest) == len(left):
                return None
            self.is_abandoned = True
            return rest, [entry for entry in left if isinstance(entry, Call) and entry not in self.entries]


class Lane:
    """What waits for one routing or one client, done in order, one thing at a time."""

    __slots__ = (
        "_entries",
        "_is_running",
        "_keeper",
        "_taken",
        "_waiting",
        "about",
        "closing",
        "moves",
        "pause",
        "size",
    )

    def __init__(self, keeper: Keeper, about: str | Client, waiting: Waiting) -> None:
        self._keeper = keeper
        self.about = about
        """The routing or the client."""
        self._entries = _NO_ENTRIES
        self._is_running = False
        self.size = 0
        """Bytes that wait."""
        self._waiting = waiting
        self._taken = 0
        """Bytes that a thread has taken, and that the loop has still to count as gone."""
        self.pause: asyncio.TimerHandle | None = None
        """While the client is not read: when it is given up."""
        self.moves = False
        """Whether something has been done since that was set."""
        self.closing: Closing | None = None
        """Of a client that has gone."""

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, *entries: Call | Step, size: int = 0) -> None:
        """Add to the end what counts with so many bytes; on the loop only. A lone entry begins at once."""
        self.size += size
        self._waiting.size += size
        if self._entries:
            self._entries.extend(entries)
        else:
            self._entries = deque(entries)
        if not self._is_running:
            self._is_running = True
            self._advance()

    @property
    def is_full(self) -> bool:
        """Whether so much waits for a client that it should not be read; it is again when half of it is done."""
        return len(self) >= MAX_CLIENT_LANE or self.size >= MAX_CLIENT_WAITING

    @property
    def is_abandoned(self) -> bool:
        return self.closing is not None and self.closing.is_abandoned

    def take_over(self) -> tuple[list[Call | Step], list[Call]] | None:
        """Give up what hangs, and return what ``abandon`` does; on the loop only."""
        assert self.closing is not None
        found = self.closing.abandon(self._entries)
        if found is not None:
            # The thread that hangs has the old deque in its hands, and finds there that it shall not go on.
            self._entries = _NO_ENTRIES
            self._release(self.size)
        return found

    def _advance(self) -> None:
        if self.is_abandoned:
            self._keeper.returned()
            return
        if self._taken:
            self._release(self._taken)
            self._taken = 0
        self.moves = True
        if self.pause is not None and len(self) < MAX_CLIENT_LANE / 2 and self.size < MAX_CLIENT_WAITING / 2:
            self._keeper.resume(self)
        while self._entries:
            head = self._entries[0]
            if not isinstance(head, Call):
                self._entries.popleft()
                _step(head)
            elif not head.needs_thread:
                self._entries.popleft()
                self._release(head.size)
                if self.closing is not None:
                    self.closing.is_for_thread = False
                self._keeper.tasks.run(self._keeper.runner.run_async(head, self._advance))
                return
            else:
                is_closer = head.callback.kind == "closer"
                if self.closing is not None:
                    self.closing.is_for_thread = True
                self._keeper.workers.run(self._hop, self._advance, is_closer=is_closer)
                return
        # An empty deque is more than all else that a lane is, and most lanes wait for nothing most of the time.
        self._entries = _NO_ENTRIES
        self._is_running = False
        self._keeper.emptied(self)

    def _release(self, size: int) -> None:
        self.size -= size
        self._waiting.size -= size

    def _hop(self) -> None:
        """In a thread: run what needs one at the head of the lane, for a while."""
        deadline = time.monotonic() + HOP_TIME
        tidy_connections()
        entries = self._entries
        while entries and isinstance(head := entries[0], Call) and head.needs_thread:
            # Read behind the head: closers come into a lane after this is set.
            if (closing := self.closing) is not None and not closing.may_begin(head):
                break
            try:
                if head.question is None or Context().run(self._keeper.runner.admit, head):
                    if head.callback.is_async or self.is_abandoned:
                        break  # It may run now, and the loop is where; or closers have run while that was asked.
                    Context().run(self._keeper.runner.run, head)
            except BaseException:
                logger.exception("what the server does around a callback failed")
            entries.popleft()
            self._taken += head.size
            if time.monotonic() >= deadline:
                break
        tidy_connections()


_NO_ENTRIES: deque[Call | Step] = deque(maxlen=0)


def _step(step: Step) -> None:
    """Do what is no call, and let what is behind it come whatever happens."""
    try:
        step()
    except Exception:
        logger.exception("what the server does between callbacks failed")
