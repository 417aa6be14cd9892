"""Tasks that nobody awaits: what fails in one is said, and what should last goes on."""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any

from djmease.server.complaints import error_repr

PAUSE = 1.0
"""Seconds until what has failed begins anew."""
SAID_AGAIN_AFTER = 60.0
"""Seconds after which a failure that goes on is logged again."""

Work = Coroutine[Any, Any, None]


class Background:
    """Runs work on the loop until it is stopped; a failure is logged with its traceback."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_stopped = False

    def run(self, name: str, work: Work) -> None:
        """Run something to its end."""
        self._start(work).add_done_callback(functools.partial(self._say_failure, name))

    def keep(self, name: str, begin: Callable[[], Work]) -> None:
        """Run something that lasts: after a failure it begins anew."""
        self._start(self._keep(name, begin))

    async def stop(self) -> None:
        """Cancel all of it, and return when it has ended; nothing begins any more."""
        self._is_stopped = True
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _start(self, work: Work) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        if self._is_stopped:
            task.cancel()
        # The loop itself holds a task only weakly.
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _say_failure(self, name: str, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._logger.error("%s has failed", name, exc_info=error)

    async def _keep(self, name: str, begin: Callable[[], Work]) -> None:
        said, say_again_at = "", 0.0
        while True:
            try:
                return await begin()
            except Exception as error:
                text = error_repr(error)
                if text != said or time.monotonic() >= say_again_at:
                    said, say_again_at = text, time.monotonic() + SAID_AGAIN_AFTER
                    self._logger.exception("%s has failed, and begins anew", name)
            await asyncio.sleep(PAUSE)
