"""Threads for ``def`` callbacks: as few as the work needs, as many as it has."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Awaitable, Callable

import pytest

from djmease.server import workers as workers_module
from djmease.server.outbox import Outbox
from djmease.server.workers import Workers
from tests.support import DEADLINE

Scenario = Callable[[Workers], Awaitable[None]]


def play(scenario: Scenario, *, count: int) -> None:
    """Play the scenario on a loop with that many workers."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        workers = Workers(loop, Outbox(loop, limit=1000), count, slow_after=10.0)
        try:
            async with asyncio.timeout(DEADLINE):
                await scenario(workers)
        finally:
            workers.stop()

    asyncio.run(main())


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def test_a_closer_does_not_wait_for_the_callback_that_has_just_taken_the_last_thread() -> None:
    async def scenario(workers: Workers) -> None:
        may_end, is_held, done = threading.Event(), asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()

        def hold() -> None:
            loop.call_soon_threadsafe(is_held.set)
            may_end.wait(DEADLINE)

        workers.run(hold, is_held.clear)
        await is_held.wait()
        # The thread has come for work within this very millisecond, as one does that has short jobs.
        workers.run(lambda: None, done.set, is_closer=True)
        await done.wait()
        assert is_held.is_set()
        may_end.set()
        await until(lambda: not is_held.is_set())

    for _ in range(20):
        play(scenario, count=2)


def test_jobs_behind_one_that_hangs_get_another_thread() -> None:
    async def scenario(workers: Workers) -> None:
        may_end, ended, done = threading.Event(), asyncio.Event(), asyncio.Event()
        names: set[str | int] = set()
        workers.run(lambda: may_end.wait(DEADLINE), ended.set)
        workers.run(lambda: names.add(threading.get_ident()), done.set)
        await done.wait()
        assert not ended.is_set()
        may_end.set()
        await ended.wait()

    play(scenario, count=3)


def test_while_all_threads_hang_and_jobs_wait_the_loop_is_woken_seldom() -> None:
    async def scenario(workers: Workers) -> None:
        loop = asyncio.get_running_loop()
        may_end, ended, done = threading.Event(), asyncio.Event(), asyncio.Event()
        looks: list[float] = []
        look = workers._look

        def counted() -> None:
            looks.append(loop.time())
            look()

        workers._look = counted  # type: ignore[method-assign]
        try:
            workers.run(lambda: may_end.wait(DEADLINE), ended.set)
            workers.run(lambda: None, done.set)
            await until(lambda: len(looks) >= 20)
            gaps = [later - earlier for earlier, later in itertools.pairwise(looks)]
            # A timer may be early by the resolution of the clock.
            assert min(gaps[8:]) > 0.9 * workers_module.MAX_LOOK_INTERVAL
            # What comes meanwhile is looked after at once, and then as seldom as before.
            seen, began = len(looks), loop.time()
            workers.run(lambda: None, done.set)
            assert workers._interval == workers_module.PATIENCE
            await until(lambda: len(looks) >= seen + 10)
            assert loop.time() - began > 4 * workers_module.MAX_LOOK_INTERVAL
            assert not done.is_set()
        finally:
            may_end.set()
        await done.wait()
        await ended.wait()

    play(scenario, count=2)


def test_short_jobs_share_a_thread() -> None:
    async def scenario(workers: Workers) -> None:
        threads: set[int] = set()
        done: list[int] = []
        for index in range(100):
            workers.run(lambda: threads.add(threading.get_ident()), lambda index=index: done.append(index))
            await until(lambda index=index: len(done) > index)
        assert done == list(range(100))
        # One, or on a machine that stood still a few.
        assert len(threads) < 4

    play(scenario, count=8)


def test_no_more_jobs_run_at_once_than_the_setting_allows() -> None:
    async def scenario(workers: Workers) -> None:
        lock = threading.Lock()
        may_end = threading.Event()
        running, most = 0, 0

        def job() -> None:
            nonlocal running, most
            with lock:
                running += 1
                most = max(most, running)
            may_end.wait(DEADLINE)
            with lock:
                running -= 1

        done: list[None] = []
        for is_closer in [False, True] * 8:
            workers.run(job, lambda: done.append(None), is_closer=is_closer)
        await until(lambda: most == 4)
        await asyncio.sleep(20 * workers_module.PATIENCE)
        may_end.set()
        await until(lambda: len(done) == 16)
        assert most == 4

    play(scenario, count=4)


def test_what_a_job_has_written_leaves_while_it_goes_on() -> None:
    async def scenario(workers: Workers) -> None:
        outbox = workers._outbox
        may_end, left, ended = threading.Event(), asyncio.Event(), asyncio.Event()

        def job() -> None:
            outbox.run_on_loop(left.set)
            may_end.wait(DEADLINE)

        workers.run(job, ended.set)
        await left.wait()
        assert not ended.is_set()
        may_end.set()
        await ended.wait()

    play(scenario, count=2)


@pytest.mark.parametrize("is_closer", [False, True])
def test_threads_that_cannot_be_started_are_started_later(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, is_closer: bool
) -> None:
    start, failed = threading.Thread.start, []

    def fail(thread: threading.Thread) -> None:
        failed.append(thread)
        raise RuntimeError("can't start new thread")

    async def scenario(workers: Workers) -> None:
        may_end, ended, done = threading.Event(), asyncio.Event(), asyncio.Event()
        if is_closer:  # Which wants the kept thread only where the others are busy.
            workers.run(lambda: may_end.wait(DEADLINE), ended.set)
            await until(lambda: workers.queue().taken == 1)
        monkeypatch.setattr(threading.Thread, "start", fail)
        workers.run(lambda: None, done.set, is_closer=is_closer)
        await until(lambda: len(failed) > 3)
        monkeypatch.setattr(threading.Thread, "start", start)
        await done.wait()
        may_end.set()

    play(scenario, count=2)
    assert "no thread can be started, and callbacks wait: can't start new thread" in caplog.text


def test_what_fails_in_a_job_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(workers: Workers) -> None:
        done, again = asyncio.Event(), asyncio.Event()

        def fail() -> None:
            raise SystemExit("broken")

        workers.run(fail, done.set)
        await done.wait()
        workers.run(lambda: None, again.set)
        await again.wait()

    play(scenario, count=2)
    assert "broken" in caplog.text


def test_nothing_is_looked_for_where_nothing_runs() -> None:
    async def scenario(workers: Workers) -> None:
        for _ in range(20):
            done = asyncio.Event()
            workers.run(lambda: None, done.set)
            await done.wait()
            await until(lambda: workers._timer is None)

    play(scenario, count=2)


def test_what_fails_behind_a_job_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(workers: Workers) -> None:
        done = asyncio.Event()

        def fail() -> None:
            raise ValueError("broken")

        workers.run(lambda: None, fail)
        workers.run(lambda: None, done.set)
        await done.wait()

    play(scenario, count=2)
    assert "broken" in caplog.text
