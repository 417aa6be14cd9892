"""Tasks that nobody awaits: none dies unseen."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator

import pytest

from djmease.server import background
from djmease.server.background import Background
from tests.support import DEADLINE

Log = Callable[[], list[str]]
LOGGER = logging.getLogger("djmease.server")


@pytest.fixture(autouse=True)
def short_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "PAUSE", 0.001)


def kept_through(*failures: Exception) -> None:
    """Keep work that fails so, and return when it has begun once more and was stopped."""

    async def run(left: Iterator[Exception]) -> None:
        lasts = asyncio.Event()

        async def work() -> None:
            for failure in left:
                raise failure
            lasts.set()
            await asyncio.Event().wait()

        tasks = Background(LOGGER)
        tasks.keep("the work", work)
        async with asyncio.timeout(DEADLINE):
            await lasts.wait()
            await tasks.stop()
        assert not tasks._tasks

    asyncio.run(run(iter(failures)))


def test_what_lasts_goes_on_after_a_failure_which_is_logged_with_its_traceback(
    log_of: Log, caplog: pytest.LogCaptureFixture
) -> None:
    kept_through(RuntimeError("no"))
    assert log_of() == ["the work has failed, and begins anew"]
    assert "RuntimeError: no" in caplog.text and "raise failure" in caplog.text


def test_a_failure_that_goes_on_is_said_once_and_another_one_too(log_of: Log) -> None:
    kept_through(*[RuntimeError("no")] * 5, ValueError("no"))
    assert log_of() == ["the work has failed, and begins anew"] * 2


def test_a_failure_whose_text_cannot_be_made_is_no_end_of_it_either(log_of: Log) -> None:
    class UntellableError(Exception):
        def __repr__(self) -> str:
            raise KeyError("detail")

    kept_through(UntellableError())
    assert log_of() == ["the work has failed, and begins anew"]


def test_a_failure_that_goes_on_for_long_is_said_again(log_of: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "SAID_AGAIN_AFTER", 0.0)
    kept_through(*[RuntimeError("no")] * 3)
    assert len(log_of()) == 3


def test_what_ends_has_ended_and_what_fails_is_logged(log_of: Log) -> None:
    ended: list[str] = []

    async def end() -> None:
        ended.append("well")

    async def fail() -> None:
        raise RuntimeError("no")

    async def run() -> None:
        tasks = Background(LOGGER)
        tasks.keep("what lasts", end)
        tasks.run("what ends", end())
        tasks.run("what fails", fail())
        async with asyncio.timeout(DEADLINE):
            while tasks._tasks:
                await asyncio.sleep(0)

    asyncio.run(run())
    assert (ended, log_of()) == (["well", "well"], ["what fails has failed"])


def test_what_is_stopped_before_it_began_leaves_nothing(log_of: Log) -> None:
    async def work() -> None:
        raise AssertionError

    async def run() -> None:
        tasks = Background(LOGGER)
        tasks.run("what ends", work())
        tasks.keep("what lasts", work)
        await tasks.stop()
        await tasks.stop()

    asyncio.run(run())
    assert log_of() == []


def test_nothing_begins_once_all_is_stopped() -> None:
    began: list[str] = []

    async def work() -> None:
        began.append("it")

    async def run() -> None:
        tasks = Background(LOGGER)
        await tasks.stop()
        tasks.run("what ends", work())
        tasks.keep("what lasts", work)
        while tasks._tasks:
            await asyncio.sleep(0)

    asyncio.run(run())
    assert began == []
