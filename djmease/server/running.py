"""Runs one call: ``def`` in the thread that it is called in, ``async def`` on the loop; errors, and what is counted."""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable
from contextvars import Token
from types import AsyncGeneratorType, CoroutineType, GeneratorType

from asgiref.sync import sync_to_async
from django.core.exceptions import PermissionDenied

from djmease.messages import Message
from djmease.server.calls import Call, Sending
from djmease.server.client import Client
from djmease.server.complaints import error_repr, fields_of, said_by
from djmease.server.outbox import Outbox
from djmease.server.tallies import AUTHOR, Author, Tallies
from djmease.server.watch import Queue, Watch
from djmease.server.workers import Step, tidy_connections

logger = logging.getLogger("djmease.server")
traffic_logger = logging.getLogger("djmease.traffic")

ASYNC_HYGIENE_INTERVAL = 1.0
"""Seconds between two looks at the database connections of asynchronous callbacks."""
FAILED = "error"
"""Why a client may not have what could not be asked: the question raised."""

UNRUN = (CoroutineType, GeneratorType, AsyncGeneratorType)
"""What a call may return of which nothing has run."""


def _refuse_unrun(path: str, result: object) -> None:
    if isinstance(result, CoroutineType):
        result.close()
        raise TypeError(f"{path} is a def and returned a coroutine: declare it with async def")
    raise TypeError(f"{path} returned {result!r}, of which nothing has run: loop, and yield nothing")


class Runner:
    """Runs calls, each in a context of its own; what they raise is logged and contained, and they are watched."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        outbox: Outbox,
        tallies: Tallies,
        turn_away: Callable[[Client, str, str], None],
        slow_callback_timeout: float,
        queue: Callable[[], Queue],
    ) -> None:
        self._outbox = outbox
        self._tallies = tallies
        self._turn_away = turn_away
        """Given a client, the opener that does not let it in, and why; from any thread."""
        self.watch = Watch(
            loop,
            timeout=slow_callback_timeout,
            queue=queue,
            ours=[function.__code__ for function in (Runner.admit, Runner.run, Runner.run_async)],
        )
        self._running = self.watch.running
        self._tidy_at = 0.0

    def admit(self, call: Call) -> bool:
        """Ask, in a thread, whether a call may run, and note that it may; a question that fails is a no."""
        question = call.question
        assert question is not None
        if call.is_left_out:
            return False
        started = time.monotonic()
        self._running[call] = (started, threading.get_ident())
        try:
            reason = question.ask()
        except BaseException as error:
            self._report(call, error)
            reason = FAILED
        finally:
            self._ended(call, started)
        if reason is not None:
            question.refuse(reason)
            return False
        call.question = None
        return True

    def run(self, call: Call) -> None:
        """Run a ``def`` callback, in a thread and in a context of its own; what it raises is logged and contained."""
        if call.is_left_out:
            return
        author = self._sign(call) if isinstance(call, Sending) and call.signs else None
        if call.callback.binding.wants_clients:
            call.arguments["clients_list"] = call.select()
        started = time.monotonic()
        self._running[call] = (started, threading.get_ident())
        try:
            result = call.callback(call.arguments)
            if isinstance(result, UNRUN):
                _refuse_unrun(call.callback.path, result)
        except BaseException as error:
            self._report(call, error)
        if author is not None:
            self._outbox.end_run()
        self._count(call, started)

    async def run_async(self, call: Call, then: Step) -> None:
        """Run an ``async def`` callback, and ``then`` behind it; whatever it raises is logged and contained."""
        if call.is_left_out:
            then()
            return
        author = self._sign(call) if isinstance(call, Sending) and call.signs else None
        if call.callback.binding.wants_clients:
            call.arguments["clients_list"] = call.select()
        started = time.monotonic()
        try:
            try:
                awaited = call.callback(call.arguments)
                self._running[call] = (started, awaited)
                await awaited
            except BaseException as error:
                self._report(call, error)
            if author is not None:
                AUTHOR.reset(author)  # Its task may be that of others too.
                self._outbox.end_run()
            self._count(call, started)
        finally:
            then()  # Whatever happens: all that is behind it waits for this.
        if started >= self._tidy_at:
            # Django's asynchronous ORM keeps its connections in one thread of asgiref's, which may hang; nobody waits
            # for it, and there is one at a time.
            self._tidy_at = math.inf
            await sync_to_async(tidy_connections)()
            self._tidy_at = time.monotonic() + ASYNC_HYGIENE_INTERVAL

    def _sign(self, call: Sending) -> Token[Author | None]:
        """Let what is written in this context be known for a sender's."""
        self._outbox.end_run()  # Or it would write in the name of another call.
        return AUTHOR.set(call)

    def _count(self, call: Call, started: float) -> None:
        """Note that a call has ended, and how long it took."""
        seconds = time.monotonic() - started
        self._ended(call, started)
        if self._tallies.is_on:
            durations = call.tally.durations
            if call.callback.is_async:
                durations.note(seconds)
            else:
                durations.add(seconds)
        if isinstance(call, Sending):
            call.started, call.seconds = started, seconds
        if traffic_logger.isEnabledFor(logging.INFO):
            traffic_logger.info(
                "%s: %s, %s%.1f ms",
                call.subject,
                call.title,
                _clients_of(call) if isinstance(call, Sending) else "",
                seconds * 1000,
                extra=fields_of(call.about),
            )

    def _ended(self, call: Call, started: float) -> None:
        if self._running.pop(call, None) is None:
            self.watch.ended(call, started)  # It was found slow.

    def _report(self, call: Call, error: BaseException) -> None:
        if isinstance(error, PermissionDenied) and call.callback.kind == "opener":
            assert not isinstance(call.about, Message)
            self._turn_away(call.about, call.callback.path, said_by(error))
            return
        call.tally.failed(error)
        if isinstance(call, Sending):
            call.error = error
            if call.record is not None:
                call.record.errors += 1
        extra = fields_of(call.about)
        what = error_repr(error)
        logger.error("%s raised %s for %s", call.title, what, call.subject, exc_info=error, extra=extra)


def _clients_of(call: Sending) -> str:
    number = len(call.arguments.get("clients_list") or call.select())
    return f"{number} client{'' if number == 1 else 's'}, "
