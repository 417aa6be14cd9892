"""Callbacks that do not return, a loop that stands still, a pool that is busy: each is named, and once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import djmease
from djmease.server.watch import MAX_NAMED, Queue, Watch
from tests.support import DEADLINE, LiveServer, eventually

StartServer = Callable[[], LiveServer]
Log = Callable[[], list[str]]


@pytest.fixture
def may_end() -> Iterator[threading.Event]:
    """What hanging callbacks wait for; set at the end of the test."""
    may_end = threading.Event()
    yield may_end
    may_end.set()


@pytest.fixture
def quick(settings: Any) -> float:
    settings.MEASE_SLOW_CALLBACK_TIMEOUT = 0.2
    return 0.2


def lines_with(log_of: Log, text: str) -> list[str]:
    return [line for line in log_of() if text in line]


def deep_inside(may_end: threading.Event) -> None:
    may_end.wait(DEADLINE)  # where it hangs


def test_a_def_callback_that_does_not_return_is_named_once_with_its_line(
    start_server: StartServer, quick: float, may_end: threading.Event, log_of: Log
) -> None:
    @djmease.receiver
    def hang(message: str) -> None:
        if message == "hang":
            deep_inside(may_end)

    server = start_server()
    client = server.connect()
    (handler,) = server.server.clients.snapshot()
    client.send("fast")
    client.send("hang")
    (line,) = eventually(lambda: lines_with(log_of, "still runs after"))
    assert f"hang still runs after 0.{line.split('after 0.')[1][0]} s for client {handler.id}:" in line
    assert "deep_inside(may_end)" in line and "# where it hangs" in line
    assert "dispatch.py" not in line and "workers.py" not in line and "registry.py" not in line
    watch = server.server._dispatch.watch
    looks = eventually(lambda: watch._mark[0])
    eventually(lambda: watch._mark[0] > looks + 3 * watch.interval)
    assert (watch.slow, len(lines_with(log_of, "still runs after"))) == (1, 1)
    may_end.set()
    (line,) = eventually(lambda: lines_with(log_of, "has ended after"))
    assert "hang has ended after" in line and line.endswith(f"for client {handler.id}")
    assert not watch.running and not watch._slow and not watch._named


def test_an_async_callback_that_waits_is_named_once_with_where_it_waits(
    start_server: StartServer, quick: float, log_of: Log
) -> None:
    events: list[asyncio.Event] = []

    async def inner() -> None:
        events.append(asyncio.Event())
        await events[0].wait()  # where it waits

    @djmease.sender(routing="stuck")
    async def stuck() -> None:
        await inner()

    @djmease.sender(routing="free")
    async def free() -> None: ...

    server = start_server()
    djmease.publish("free", "")
    message_id = djmease.publish("stuck", "")
    (line,) = eventually(lambda: lines_with(log_of, "still waits after"))
    assert f"for stuck {message_id}:" in line
    assert "await inner()" in line and "# where it waits" in line
    assert "dispatch.py" not in line and "tasks.py" not in line
    server.call(events[0].set)
    eventually(lambda: lines_with(log_of, "has ended after"))
    assert len(lines_with(log_of, "still waits after")) == 1
    assert server.server._dispatch.watch.slow == 1


def test_an_async_callback_that_blocks_the_loop_is_named_once_and_the_end_of_it_is_said(
    start_server: StartServer, quick: float, may_end: threading.Event, log_of: Log
) -> None:
    @djmease.sender(routing="block")
    async def block() -> None:
        await asyncio.sleep(0)
        deep_inside(may_end)

    server = start_server()
    watch = server.server._dispatch.watch
    message_id = djmease.publish("block", "")
    (line,) = eventually(lambda: lines_with(log_of, "the loop has stood still"))
    assert ".block runs for block " + message_id in line
    assert "deep_inside(may_end)" in line and "# where it hangs" in line
    assert "dispatch.py" not in line and "asyncio/" not in line
    (line,) = eventually(lambda: lines_with(log_of, "still waits after"))
    assert "# where it hangs" in line
    looks = watch._mark[0]
    eventually(lambda: watch._mark[0] > looks + 3 * watch.interval)
    may_end.set()
    eventually(lambda: lines_with(log_of, "the loop turns again, after about"))
    assert (watch.blocked, len(lines_with(log_of, "the loop has stood still"))) == (1, 1)
    eventually(lambda: lines_with(log_of, "block has ended after"))


def test_something_on_the_loop_that_is_no_callback_is_shown_too(
    start_server: StartServer, quick: float, may_end: threading.Event, log_of: Log
) -> None:
    server = start_server()
    server.loop.call_soon_threadsafe(deep_inside, may_end)
    (line,) = eventually(lambda: lines_with(log_of, "the loop has stood still"))
    assert "# where it hangs" in line and "asyncio/" not in line and " while " not in line.splitlines()[0]
    may_end.set()


def test_a_pool_that_is_exhausted_names_who_keeps_it_busy(
    start_server: StartServer, settings: Any, quick: float, may_end: threading.Event, log_of: Log
) -> None:
    settings.MEASE_MAX_WORKERS = 4

    @djmease.sender(routing="one-*")
    def culprit() -> None:
        may_end.wait(DEADLINE)

    @djmease.sender(routing="two")
    def other() -> None:
        may_end.wait(DEADLINE)

    ran: list[str] = []

    @djmease.sender(routing="innocent-*")
    def innocent(routing: str) -> None:
        ran.append(routing)

    server = start_server()
    for routing in ("one-1", "one-2", "two"):
        djmease.publish(routing, "")
    eventually(lambda: len(server.server._dispatch.watch._all()) == 3)
    for index in range(5):
        djmease.publish(f"innocent-{index}", "")
    line = eventually(lambda: lines_with(log_of, "all 3 threads are busy"))[0]
    assert "5 calls wait for one" in line or eventually(lambda: lines_with(log_of, "5 calls wait for one"))
    assert "culprit (2)" in line and "other (1)" in line and "innocent" not in line and "MEASE_MAX_WORKERS" in line
    may_end.set()
    eventually(lambda: len(ran) == 5)


def test_the_watch_ends_with_the_server_and_tells_how_late_the_loop_is(
    start_server: StartServer, quick: float, may_end: threading.Event
) -> None:
    server = start_server()
    watch = server.server._dispatch.watch
    assert watch._thread.is_alive()
    server.loop.call_soon_threadsafe(may_end.wait, 3 * quick)
    eventually(lambda: watch.loop_delay > quick)
    eventually(lambda: watch.loop_delay < quick)
    server.stop()
    assert not watch._thread.is_alive()


class Running:
    """A call, as the watch sees it."""

    subject = "client 1"
    about = None

    def __init__(self, title: str = "site.stuck") -> None:
        self.title = title


def new_watch(*queue: int) -> Watch:
    """Return a watch that looks only when it is told to, with a loop that turned at 1000."""
    loop = asyncio.new_event_loop()
    loop.close()
    watch = Watch(loop, timeout=10.0, queue=lambda: Queue(*queue or (0, 0, 1)), ours=[])
    watch._turned_at = 1000.0
    watch._loop_thread = threading.get_ident()
    return watch


def test_a_process_that_was_suspended_as_a_whole_says_nothing(log_of: Log) -> None:
    watch = new_watch(0, 5, 1)
    watch.running[Running()] = (999.0, threading.get_ident())
    watch.look(1000.4, 0.0)
    watch.look(5000.0, 3999.1)
    watch.look(5000.5, 0.0)
    assert log_of() == [] and watch.slow == watch.blocked == 0
    # From there on all have their time anew, and no more.
    watch.look(5001.1, 0.0)
    assert (watch.slow, watch.blocked, len(log_of())) == (0, 1, 2)
    watch.look(5010.1, 0.0)
    assert (watch.slow, watch.blocked) == (1, 1)


def test_a_loop_that_turns_and_calls_that_are_fast_are_not_named(log_of: Log) -> None:
    watch = new_watch()
    for moment in range(1001, 1020):
        watch.running = {Running(): (moment - 9.0, threading.get_ident())}
        watch._turned_at = moment - 0.9
        watch.look(float(moment), 0.1)
    assert log_of() == [] and watch.slow == watch.blocked == 0


def test_many_slow_calls_at_once_are_counted_by_callback(log_of: Log) -> None:
    watch = new_watch()
    watch._turned_at = 2000.0
    for index in range(100):
        watch.running[Running(f"site.stuck_{index % 7}")] = (1000.0, threading.get_ident())
    for moment in (2000.0, 2000.5):
        watch.look(moment, 0.0)
    assert watch.slow == 100
    assert len(log_of()) == MAX_NAMED + 1
    assert log_of()[-1].startswith("90 calls more run for over 10.0 s: site.stuck_") and log_of()[-1].endswith("others")
    assert log_of()[-1].count("site.") == 5


def test_a_queue_whose_jobs_are_taken_in_time_is_no_complaint(log_of: Log) -> None:
    watch = new_watch()
    for index in range(20):
        queue = Queue(taken=10 * index, waiting=10, threads=3)
        watch._queue = lambda queue=queue: queue
        watch._turned_at = 1000.0 + index / 2
        watch.look(1000.0 + index / 2, 0.0)
    assert log_of() == []
    watch._turned_at = 1020.0
    watch.look(1010.9, 0.0)
    (line,) = log_of()
    assert "all 3 threads are busy: 10 calls wait for one, the first for 1.4 s; busy with none of the callbacks" in line


def test_a_look_that_fails_does_not_end_the_watch(
    start_server: StartServer, quick: float, monkeypatch: pytest.MonkeyPatch, log_of: Log
) -> None:
    watch = start_server().server._dispatch.watch
    with monkeypatch.context() as patched:
        patched.setattr(watch, "_look_at_calls", lambda now: 1 / 0)
        eventually(lambda: lines_with(log_of, "looking for slow callbacks failed"))
    looks = watch._mark[0]
    eventually(lambda: watch._mark[0] > looks)
