"""``def`` callbacks in threads: who runs them, and when the loop comes for what they have written."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue

from django.db import close_old_connections, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created

from djmease.server.complaints import Complaints
from djmease.server.outbox import Outbox
from djmease.server.watch import Queue

logger = logging.getLogger("djmease.server")

PATIENCE = 0.001
"""Seconds that a job waits for a thread which is awake, before another is woken."""
MAX_LOOK_INTERVAL = 0.01
"""Seconds between two looks at what running callbacks have written, at most."""
MAX_ABANDONED = 32
"""Threads with closers that hang, beside those of the setting."""

Step = Callable[[], object]
Job = tuple[Step, Step]
"""What to do in a thread, and what to do on the loop behind it."""
Bell = SimpleQueue[bool]


class Workers:
    """Up to ``count`` daemon threads for ``def`` callbacks, as few of them awake as the work needs.

    Jobs that are short are done one after another by one thread: each thread more would cost more in handing the
    interpreter to and fro than it does. One more is woken when a job has waited for a millisecond. The last thread is
    kept for closers, so that busy callbacks cannot hold them up; one whose closer hangs is replaced.

    What a job writes does not wake the loop. The end of the job does, and while it runs the loop looks now and then.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, outbox: Outbox, count: int | None, *, slow_after: float
    ) -> None:
        self._loop = loop
        self._outbox = outbox
        self._limit = max(1, (count or min(32, (os.cpu_count() or 1) + 4)) - 1)
        self._lock = threading.Lock()
        self._jobs: deque[Job] = deque()
        self._closers: deque[Job] = deque()
        self._done: deque[Step] = deque()
        self._is_told = False
        self._bell: Bell = SimpleQueue()
        self._kept_bell: Bell = SimpleQueue()
        self._threads = 0
        self._awake = 0
        self._has_kept = False
        self._is_kept_awake = False
        self._taken_at = 0.0
        """When a thread last took a job, in the time of the loop."""
        self._timer: asyncio.TimerHandle | None = None
        self._interval = PATIENCE
        self._slow_after = slow_after
        self._taken = 0
        self._kept_at = 0.0
        """When the kept thread took what it does."""
        self._abandoned = 0
        self._too_many = Complaints(logger, logging.ERROR)
        self._none_left = Complaints(logger, logging.ERROR)

    def queue(self) -> Queue:
        """Tell what waits for threads that are not the kept one."""
        return Queue(self._taken, len(self._jobs), self._limit)

    def run(self, job: Step, then: Step, *, is_closer: bool = False) -> None:
        """Run ``job`` in a thread, and ``then`` on the loop; on the loop only. What they raise is logged."""
        with self._lock:
            (self._closers if is_closer else self._jobs).append((job, then))
            if not self._awake or self._is_late:
                self._wake_one()
        if self._timer is None or self._interval > PATIENCE:
            self._look_in(PATIENCE)

    def stop(self) -> None:
        """Let the threads end behind what they are doing; nobody waits for them."""
        for _ in range(self._threads):
            self._bell.put(False)
        # Those with closers that hang were told when they were abandoned.
        self._kept_bell.put(False)
        if self._timer is not None:
            self._timer.cancel()

    @property
    def _is_late(self) -> bool:
        """Whether no thread has come for a job for a while."""
        return self._loop.time() - self._taken_at > PATIENCE

    @property
    def _has_one_to_wake(self) -> bool:
        """Whether there is a thread for what waits; where all are busy, the first that is not takes it by itself."""
        return self._awake < self._limit or (bool(self._closers) and not self._is_kept_awake)

    def _wake_one(self) -> None:
        """Wake one thread more, with the lock held; the kept one where all others are busy."""
        if self._awake < self._limit:
            if self._awake == self._threads:
                if not self._starts(self._bell):
                    return
                self._threads += 1
            self._awake += 1
            self._bell.put(True)
        elif self._closers and not self._is_kept_awake:
            if not self._has_kept:
                if not self._starts(self._kept_bell):
                    return
                self._has_kept = True
            self._is_kept_awake = True
            self._kept_bell.put(True)

    def _starts(self, bell: Bell) -> bool:
        """Start a thread, and tell whether the system lets it; what waits is looked at again soon."""
        try:
            threading.Thread(target=self._work, args=(bell,), name="djmease-worker", daemon=True).start()
        except RuntimeError as error:
            self._none_left.say("no thread can be started, and callbacks wait: %s", error)
            return False
        return True

    def _replace_kept(self) -> None:
        """Leave the kept thread to a closer that hangs, with the lock held; it ends when that returns."""
        if not self._is_kept_awake or time.monotonic() - self._kept_at <= self._slow_after:
            return
        if self._abandoned >= MAX_ABANDONED:
            self._too_many.say(
                "%d closers hang, each in a thread of its own; %d more wait until one returns",
                self._abandoned,
                len(self._closers),
            )
            return
        self._abandoned += 1
        self._kept_bell.put(False)
        self._kept_bell = SimpleQueue()
        self._has_kept = self._is_kept_awake = False

    def _look_in(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._interval = seconds
        self._timer = self._loop.call_later(seconds, self._look)

    def _look(self) -> None:
        """Wake one thread more for jobs that wait, and send what running jobs have written so far."""
        self._timer = None
        with self._lock:
            is_waited_for = bool(self._jobs or self._closers)
            if self._closers:
                self._replace_kept()
            if is_waited_for and self._is_late:
                self._wake_one()
            # Where no thread could be started, this is all that comes for what waits.
            is_busy = self._awake > 0 or self._is_kept_awake or bool(self._jobs or self._closers)
            is_helped_soon = is_waited_for and self._has_one_to_wake
        self._outbox.tick()
        if is_busy:
            self._look_in(PATIENCE if is_helped_soon else min(2 * self._interval, MAX_LOOK_INTERVAL))

    def _finish(self) -> None:
        """Go on with what waited for the jobs, then send what they wrote: threads may work while the loop sends."""
        self._is_told = False
        for _ in range(len(self._done)):
            then = self._done.popleft()
            try:
                then()
            except Exception:
                logger.exception("what waited for a callback failed")
        self._outbox.tick()
        if self._timer is not None and not (self._awake or self._is_kept_awake or self._jobs or self._closers):
            # There is nothing to look for. Should a thread be about to take what came last, it tells when it is done.
            self._timer.cancel()
            self._timer = None

    # In the threads

    def _work(self, bell: Bell) -> None:
        self._outbox.quiet_threads.add(threading.get_ident())
        try:
            while bell.get():
                while (entry := self._take(bell)) is not None:
                    job, then = entry
                    try:
                        job()
                    except BaseException:
                        logger.exception("what ran in a thread failed")
                    self._tell(then)
                    # A thread that waits for the next job shall not keep the client of the last one.
                    del entry, job, then
        finally:
            self._outbox.quiet_threads.discard(threading.get_ident())
            for connection in connections.all(initialized_only=True):
                # A database in memory closes only by the base class's method; this thread has no more use for any.
                BaseDatabaseWrapper.close(connection)

    def _take(self, bell: Bell) -> Job | None:
        with self._lock:
            is_kept = bell is not self._bell
            if is_kept and bell is not self._kept_bell:
                self._abandoned -= 1  # Its closer has returned after all.
                return None
            # A closer goes first: what it frees, others wait for.
            jobs = self._closers if self._closers or is_kept else self._jobs
            if jobs:
                if is_kept:
                    self._kept_at = time.monotonic()
                else:
                    self._taken_at = time.monotonic()
                    self._taken += jobs is self._jobs
                return jobs.popleft()
            if is_kept:
                self._is_kept_awake = False
            else:
                self._awake -= 1
            return None

    def _tell(self, then: Step) -> None:
        # The flag is read behind the append and cleared before the loop reads, so that nothing done goes unseen.
        self._done.append(then)
        if not self._is_told:
            self._is_told = True
            with suppress(RuntimeError):  # The loop is closed: the server has gone, and did not wait for this job.
                self._loop.call_soon_threadsafe(self._finish)


class _Thread(threading.local):
    """What a thread knows of itself."""

    has_database = False
    """Whether it has connected to a database."""


_thread = _Thread()


def _on_connection_created(**_: object) -> None:
    _thread.has_database = True


connection_created.connect(_on_connection_created, dispatch_uid="djmease.server.workers")


def tidy_connections() -> None:
    """Close this thread's database connections that are broken or too old, as Django does around each request."""
    if not _thread.has_database:
        return
    try:
        close_old_connections()
        _thread.has_database = any(
            connection.connection is not None for connection in connections.all(initialized_only=True)
        )
    except Exception:
        logger.exception("closing old database connections failed")
