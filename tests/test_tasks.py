"""``async def`` jobs: those that wait for nothing share a task, and none can tell."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import time
from collections.abc import Awaitable, Callable

from djmease.server.outbox import Outbox
from djmease.server.tasks import TURN_TIME, Tasks
from tests.support import DEADLINE

MARK: contextvars.ContextVar[str] = contextvars.ContextVar("mark", default="none")


def play(scenario: Callable[[Tasks], Awaitable[None]]) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        tasks = Tasks(loop, Outbox(loop, limit=1000))
        try:
            async with asyncio.timeout(DEADLINE):
                await scenario(tasks)
        finally:
            tasks.stop()

    asyncio.run(main())


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0)


def test_jobs_that_wait_for_nothing_run_in_order_in_one_task() -> None:
    async def scenario(tasks: Tasks) -> None:
        ran: list[int] = []
        in_tasks: set[object] = set()

        async def job(index: int) -> None:
            ran.append(index)
            in_tasks.add(asyncio.current_task())

        for index in range(100):
            tasks.run(job(index))
        await until(lambda: len(ran) == 100)
        for index in range(100, 200):
            tasks.run(job(index))
            await until(lambda index=index: len(ran) > index)
        assert ran == list(range(200))
        assert len(in_tasks) == 1

    play(scenario)


def test_jobs_behind_one_that_waits_begin_in_order_and_each_wait_for_themselves() -> None:
    async def scenario(tasks: Tasks) -> None:
        begun: list[int] = []
        ended: list[int] = []
        waiting: set[object] = set()
        may_end = asyncio.Event()

        async def job(index: int) -> None:
            begun.append(index)
            task = asyncio.current_task()
            if index % 3 == 0:
                assert task not in waiting
                waiting.add(task)
                await may_end.wait()
                assert asyncio.current_task() is task
            ended.append(index)

        for index in range(30):
            tasks.run(job(index))
        await until(lambda: len(begun) == 30)
        assert begun == list(range(30))
        assert ended == [index for index in range(30) if index % 3]
        may_end.set()
        await until(lambda: len(ended) == 30)
        tasks.run(job(1))
        await until(lambda: len(begun) == 31)

    play(scenario)


def test_a_job_that_waited_is_alone_in_its_task_to_the_end() -> None:
    async def scenario(tasks: Tasks) -> None:
        stored: list[asyncio.Task[object]] = []
        others: list[int] = []

        async def waits() -> None:
            task = asyncio.current_task()
            assert task is not None
            stored.append(task)
            await asyncio.sleep(0)

        async def other() -> None:
            others.append(1)

        tasks.run(waits())
        await until(lambda: stored and stored[0].done())
        # A callback may keep its task and cancel it when the client goes: that hits nobody else.
        stored[0].cancel()
        for _ in range(5):
            tasks.run(other())
        await until(lambda: len(others) == 5)

    play(scenario)


def test_what_a_job_leaves_in_its_context_no_other_finds() -> None:
    async def scenario(tasks: Tasks) -> None:
        found: list[str] = []

        async def job(index: int) -> None:
            found.append(MARK.get())
            MARK.set(f"left by {index}")

        MARK.set("left by the caller")
        for index in range(10):
            tasks.run(job(index))
        await until(lambda: len(found) == 10)
        assert found == ["none"] * 10

    play(scenario)


def test_a_job_that_asks_to_be_cancelled_cancels_no_other() -> None:
    async def scenario(tasks: Tasks) -> None:
        ran: list[int] = []

        async def cancels() -> None:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()

        async def job() -> None:
            await asyncio.sleep(0)
            ran.append(1)

        tasks.run(cancels())
        tasks.run(job())
        tasks.run(job())
        await until(lambda: len(ran) == 2)

    play(scenario)


def test_a_timeout_in_a_job_ends_that_job_alone() -> None:
    async def scenario(tasks: Tasks) -> None:
        ended: list[str] = []

        async def too_slow() -> None:
            try:
                async with asyncio.timeout(0.01):
                    await asyncio.sleep(DEADLINE)
            except TimeoutError:
                ended.append("timeout")

        async def quick() -> None:
            ended.append("quick")

        for job in (too_slow, quick, too_slow, quick):
            tasks.run(job())
        await until(lambda: len(ended) == 4)
        assert ended == ["quick", "quick", "timeout", "timeout"]

    play(scenario)


def test_many_jobs_leave_the_loop_its_turns() -> None:
    async def scenario(tasks: Tasks) -> None:
        ran: list[int] = []

        async def job() -> None:
            time.sleep(TURN_TIME / 5)
            ran.append(1)
            if len(ran) < 100:
                tasks.run(job())  # As a lane does that has more.

        tasks.run(job())
        turns = 0
        while len(ran) < 100:
            await asyncio.sleep(0)
            turns += 1
        assert turns >= 10

    play(scenario)


def test_what_was_never_begun_is_closed_at_the_end_without_a_warning() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        tasks = Tasks(loop, Outbox(loop, limit=1000))

        async def job() -> None:
            raise AssertionError("it should not run")

        tasks.run(job())
        tasks.run(job())
        tasks.stop()
        await asyncio.sleep(0)

    asyncio.run(main())
    gc.collect()
