"""Names callbacks that do not return, and says when the loop stands still or all threads are busy.

A thread of its own looks twice a second at what runs, so that it can also tell of a loop that does not turn.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from types import CodeType, FrameType
from typing import Any, NamedTuple, Protocol

from djmease.registry import Callback
from djmease.server.complaints import Complaints, fields_of
from djmease.server.tallies import Durations

logger = logging.getLogger("djmease.server")

LOOP_BLOCKED_AFTER = 1.0
"""Seconds without a turn of the loop after which what holds it up is named."""
BUSY_AFTER = 1.0
"""Seconds that a call may wait for a thread before the pool is called exhausted."""
MAX_NAMED = 10
"""Calls that one look names with their stacks; more are counted, by callback."""
MAX_CULPRITS = 5
JOIN_TIMEOUT = 1.0


class Call(Protocol):
    """What runs; its hash is its identity."""

    @property
    def about(self) -> object: ...

    @property
    def title(self) -> str: ...

    @property
    def subject(self) -> str: ...


class Queue(NamedTuple):
    """What waits for the threads."""

    taken: int
    """Jobs that a thread has taken since the beginning."""
    waiting: int
    threads: int


Entry = tuple[float, Any]
"""When a call began, and where it is: the number of its thread, or what is awaited for it."""


class Watch:
    """Knows what runs. A call costs a store and a removal in ``running``, which need no lock."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        timeout: float,
        queue: Callable[[], Queue],
        ours: Iterable[CodeType],
    ) -> None:
        self._loop = loop
        self._timeout = timeout
        self._queue = queue
        self._ours = {Callback.__call__.__code__, *ours}
        """What calls callbacks: a stack is shown from behind it."""
        self._blocked_after = min(LOOP_BLOCKED_AFTER, timeout)
        self._busy_after = min(BUSY_AFTER, timeout)
        self.interval = self._blocked_after / 2
        """Seconds between two looks."""
        self.running: dict[Call, Entry] = {}
        """What runs and was not found slow; whoever takes a call out of here has decided whether it was."""
        self._slow: dict[Call, Entry] = {}
        self._named: set[Call] = set()
        self.slow = 0
        """Calls that ran longer than the timeout."""
        self.blocked = 0
        """Times that the loop stood still."""
        self.loop_delay = 0.0
        """Seconds by which the loop came late to its last timer."""
        self.loop_delays = Durations()
        self._longest_delay = 0.0
        self._turned_at = self._due_at = 0.0
        self._is_blocked = False
        self._loop_thread = 0
        self._timer: asyncio.TimerHandle | None = None
        self._awake_since = 0.0
        """When this process last came back from standing still as a whole."""
        self._mark = (0.0, 0)
        """A moment, and the number of jobs that were taken or waited then."""
        self._busy = Complaints(logger)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="djmease-watch", daemon=True)

    def start(self) -> None:
        """Begin to look; on the loop."""
        self._loop_thread = threading.get_ident()
        now = time.monotonic()
        self._awake_since = now
        self._due_at = now
        self._turn()
        self._thread.start()

    def stop(self) -> None:
        """End the thread, at once but for a line that it is writing; on the loop."""
        self._stopped.set()
        if self._timer is not None:
            self._timer.cancel()
        if self._thread.is_alive():
            self._thread.join(JOIN_TIMEOUT)

    def take_longest_delay(self) -> float:
        """Return the longest ``loop_delay`` since this was last asked; on the loop."""
        longest, self._longest_delay = self._longest_delay, 0.0
        return longest

    def is_running(self, call: Call) -> bool:
        return call in self.running or call in self._slow

    def ended(self, call: Call, started: float) -> None:
        """Say that a call has ended which was found slow; any thread."""
        self._slow.pop(call, None)
        if call in self._named:
            self._named.discard(call)
            seconds = time.monotonic() - started
            extra = fields_of(call.about)
            logger.warning("%s has ended after %.1f s for %s", call.title, seconds, call.subject, extra=extra)

    # On the loop

    def _turn(self) -> None:
        now = time.monotonic()
        self.loop_delay = max(0.0, now - self._due_at)
        self._longest_delay = max(self._longest_delay, self.loop_delay)
        self.loop_delays.note(self.loop_delay)
        before, self._turned_at = self._turned_at, now
        if self._is_blocked:
            self._is_blocked = False
            logger.warning("the loop turns again, after about %.1f s", now - before)
        self._due_at = now + self.interval / 2
        self._timer = self._loop.call_later(self.interval / 2, self._turn)

    # In the thread

    def _watch(self) -> None:
        due = time.monotonic() + self.interval
        while not self._stopped.wait(self.interval):
            now = time.monotonic()
            try:
                self.look(now, now - due)
            except Exception:
                logger.exception("looking for slow callbacks failed")
            due = time.monotonic() + self.interval

    def look(self, now: float, late: float) -> None:
        """Look once; ``late`` is by how many seconds this look itself has come too late."""
        if late > self.interval:
            # The process was stopped or starved, and what it runs could not have gone on: all get their time anew.
            self._awake_since = now
        self._look_at_loop(now)
        self._look_at_calls(now)
        self._look_at_queue(now)

    def _look_at_loop(self, now: float) -> None:
        seconds = now - max(self._turned_at, self._awake_since)
        if self._is_blocked or seconds <= self._blocked_after:
            return
        stack = self._stack_of_thread(self._loop_thread)
        call = next((call for call, entry in self._all() if getattr(entry[1], "cr_running", False)), None)
        who = f" while {call.title} runs for {call.subject}" if call is not None else ""
        self.blocked += 1
        self._is_blocked = True
        logger.warning(
            "the loop has stood still for %.1f s%s, and serves nobody:\n%s",
            seconds,
            who,
            stack,
            extra=fields_of(call and call.about),
        )

    def _look_at_calls(self, now: float) -> None:
        found: list[tuple[Call, Entry]] = []
        # Copying is one step of the interpreter; the oldest come first.
        for call, entry in self.running.copy().items():
            if now - max(entry[0], self._awake_since) <= self._timeout:
                break
            self._slow[call] = entry
            if self.running.pop(call, None) is None:
                self._slow.pop(call, None)  # It has ended just now.
            else:
                found.append((call, entry))
        self.slow += len(found)
        for call, entry in found[:MAX_NAMED]:
            self._name(call, entry, now)
        if len(found) > MAX_NAMED:
            counts = _counted(call for call, _ in found[MAX_NAMED:])
            logger.warning("%d calls more run for over %.1f s: %s", len(found) - MAX_NAMED, self._timeout, counts)

    def _name(self, call: Call, entry: Entry, now: float) -> None:
        started, where = entry
        does = "runs" if isinstance(where, int) else "waits"
        stack = self._stack_of_thread(where) if isinstance(where, int) else self._stack_of_awaited(where)
        self._named.add(call)
        logger.warning(
            "%s still %s after %.1f s for %s:\n%s",
            call.title,
            does,
            now - started,
            call.subject,
            stack,
            extra=fields_of(call.about),
        )

    def _look_at_queue(self, now: float) -> None:
        queue = self._queue()
        since, count = self._mark
        if not queue.waiting or queue.taken >= count:
            self._mark = now, queue.taken + queue.waiting
        elif (seconds := now - max(since, self._awake_since)) > self._busy_after:
            self._busy.say(
                "all %d threads are busy: %d calls wait for one, the first for %.1f s; busy with %s. MEASE_MAX_WORKERS "
                "sets how many threads there are",
                queue.threads,
                queue.waiting,
                seconds,
                _counted(call for call, entry in self._all() if isinstance(entry[1], int)) or "none of the callbacks",
            )

    def _all(self) -> list[tuple[Call, Entry]]:
        return [*self._slow.copy().items(), *self.running.copy().items()]

    def _stack_of_thread(self, thread: int) -> str:
        frame = sys._current_frames().get(thread)
        frames: list[FrameType] = []
        while frame is not None:
            frames.append(frame)
            frame = frame.f_back
        return _written(self._cut(frames[::-1]))

    def _stack_of_awaited(self, awaited: Any) -> str:
        if getattr(awaited, "cr_running", False):
            return self._stack_of_thread(self._loop_thread)
        frames: list[FrameType] = []
        while awaited is not None:
            frame = getattr(awaited, "cr_frame", None) or getattr(awaited, "gi_frame", None)
            if frame is not None:
                frames.append(frame)
            awaited = getattr(awaited, "cr_await", None) or getattr(awaited, "gi_yieldfrom", None)
        return _written(frames)

    def _cut(self, frames: list[FrameType]) -> list[FrameType]:
        """Return the frames behind those that called the callback, or behind the loop's; all where there are none."""
        last = max((index for index, frame in enumerate(frames) if frame.f_code in self._ours), default=-1)
        if last < 0:
            handle = asyncio.Handle._run.__code__
            last = max((index for index, frame in enumerate(frames) if frame.f_code is handle), default=-1)
        return frames[last + 1 :] or frames


def _written(frames: list[FrameType]) -> str:
    stack = traceback.StackSummary.extract((frame, frame.f_lineno) for frame in frames)
    return "".join(stack.format()).rstrip() or "  (it has just gone on)"


def _counted(calls: Iterable[Call]) -> str:
    """Return up to five callbacks by their paths, with how many calls each has."""
    counts = Counter(call.title for call in calls).most_common()
    named = [f"{path} ({count})" for path, count in counts[:MAX_CULPRITS]]
    return ", ".join(named + (["others"] if len(counts) > MAX_CULPRITS else []))
