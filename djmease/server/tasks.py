"""``async def`` callbacks on the loop: those that wait for nothing share one task, each that waits has its own."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Coroutine
from contextvars import Context, copy_context
from typing import Any

from djmease.server.outbox import Outbox

TURN_TIME = 0.005
"""Seconds after which the shared task lets the loop do something else."""

Job = Coroutine[Any, Any, None]
"""It may not raise."""


class Tasks:
    """Runs jobs in the order in which they come, each until it waits for the first time.

    Making a task for each job would be half of what a short one costs. A job that waits keeps the task in which it
    began, to its end and alone; so does one that leaves something in its context, or asks to be cancelled. No job
    can tell that others have run in its task before, nor reach another one by it.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, outbox: Outbox) -> None:
        self._loop = loop
        self._outbox = outbox
        self._jobs: deque[Job] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._turn = 0
        self._has_turn = False
        self._bell: asyncio.Future[None] | None = None
        """What the shared task waits for; ``None`` while it works, or where there is none."""

    def run(self, job: Job) -> None:
        """Run a job in the next turn of the loop; on the loop only."""
        self._jobs.append(job)
        if not self._has_turn:
            self._begin_turn()

    def stop(self) -> None:
        """End what has not begun. What waits is not waited for."""
        while self._jobs:
            self._jobs.popleft().close()
        if self._bell is not None:
            self._bell.cancel()

    def _begin_turn(self) -> None:
        self._has_turn = True
        if self._bell is not None:
            self._bell.set_result(None)
            self._bell = None
        else:
            self._start(self._share())
        # The loop keeps the order of what it is given: this comes when the shared task has done what it could.
        self._loop.call_soon(self._end_turn)

    def _end_turn(self) -> None:
        self._has_turn = False
        self._turn += 1
        if self._bell is None:
            # The shared task has become that of a job, and those behind it are of another kind or get their own.
            while self._jobs:
                self._start(self._jobs.popleft())
        elif self._jobs:
            self._begin_turn()
        self._outbox.tick()

    def _start(self, job: Job) -> None:
        task = self._loop.create_task(job, context=Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _share(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        jobs = self._jobs
        while True:
            turn = self._turn
            self._outbox.gather()  # The end of the turn sends what is written.
            deadline = time.monotonic() + TURN_TIME
            while jobs:
                await jobs.popleft()
                if self._turn != turn or copy_context() or task.cancelling():
                    return
                if time.monotonic() >= deadline:
                    break
            self._bell = self._loop.create_future()
            await self._bell
