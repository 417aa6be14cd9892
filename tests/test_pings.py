"""Who is still there: pings, their answers, and who is given up."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest

import djmease
from djmease.server.outbox import Outbox
from djmease.server.pings import Pings
from djmease.server.protocol import BINARY, PING, PONG, TEXT, build_frame
from tests.support import DEADLINE, LiveServer, eventually, masked_frame
from tests.test_hostile import RawClient
from tests.test_protocol import Link, run

StartServer = Callable[[], LiveServer]
Log = Callable[[], list[str]]


@pytest.fixture
def ends() -> list[tuple[str, int | None]]:
    """Registers a closer; returns the id and code of each run."""
    ended: list[tuple[str, int | None]] = []

    @djmease.closer
    def note(client: Any) -> None:
        ended.append((client.id, client.close_code))

    return ended


@pytest.fixture
def often(settings: Any) -> None:
    """A ping each fifth of a second, and as long for its answer."""
    settings.MEASE_PING_INTERVAL = settings.MEASE_PING_TIMEOUT = 0.2


def test_a_connection_that_does_not_answer_is_found_and_its_closers_run_once(
    start_server: StartServer, often: None, ends: list[Any], log_of: Log, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "djmease.server")
    server = start_server()
    with RawClient(server).shake_hands() as dead:
        started = time.monotonic()
        assert dead.frame() == (PING, b"")
        assert dead.frame() is None
        assert 0.3 < time.monotonic() - started < DEADLINE
    eventually(lambda: ends)
    assert [code for _, code in ends] == [None]
    assert server.server._pings.timed_out == 1
    assert any(ends[0][0] in line and "has not answered a ping for 0.2 s" in line for line in log_of())
    eventually(lambda: len(server.server.clients) == 0)


def test_connections_that_answer_stay(start_server: StartServer, often: None, ends: list[Any]) -> None:
    """The ``websockets`` library answers pings by itself; the raw one by hand, and the last with another payload."""
    server = start_server()
    library = server.connect(ping_interval=None)
    with RawClient(server).shake_hands() as raw:
        for number in range(5):
            assert raw.frame() == (PING, b"")
            raw.send(PONG, b"" if number % 2 else b"whatever")
        raw.send(PING, b"and I ask, too")
        assert raw.frame() == (PONG, b"and I ask, too")
        assert ends == []
        library.send("still here")
        assert len(server.server.clients) == 2
    assert server.server._pings.timed_out == 0


def test_whatever_is_heard_is_a_sign_of_life(start_server: StartServer, often: None, ends: list[Any]) -> None:
    server = start_server()
    with RawClient(server).shake_hands() as raw:
        for piece in (masked_frame(TEXT, b"a message"), masked_frame(PING, b""), masked_frame(TEXT, b"x")[:3]):
            while raw.frame() != (PING, b""):
                pass
            raw.socket.sendall(piece)
        assert raw.frame() == (PING, b"")
        assert ends == []


def test_a_connection_that_is_not_read_is_not_given_up_for_its_silence(
    start_server: StartServer, often: None, ends: list[Any]
) -> None:
    may_go_on = threading.Event()

    @djmease.receiver
    def wait() -> None:
        may_go_on.wait(DEADLINE)

    server = start_server()
    with RawClient(server).shake_hands() as raw:
        raw.socket.sendall(masked_frame(TEXT, b"x") * 500)
        eventually(lambda: len(server.server.clients) == 1)
        connection = server.server.clients.snapshot()[0].ws_connection
        assert connection is not None
        eventually(lambda: not connection.is_reading)
        for _ in range(4):
            assert raw.frame() == (PING, b""), "it is asked all the time, and its answers are not read"
            raw.send(PONG)
        assert ends == []
        may_go_on.set()
        eventually(lambda: connection.is_reading)
        assert raw.frame() == (PING, b"")


def test_a_client_that_reads_slowly_but_does_is_not_given_up_because_the_ping_waits_behind_what_it_reads(
    start_server: StartServer, settings: Any, often: None, ends: list[Any]
) -> None:
    """On a slow line a megabyte takes longer than MEASE_PING_TIMEOUT, and nobody can answer a ping not yet there."""
    size = 4_000_000
    settings.MEASE_MAX_CLIENT_BUFFER = 2 * size

    @djmease.receiver
    def write(client: Any) -> None:
        client.write_message(bytes(size))

    server = start_server()
    with RawClient(server, receive_buffer=16_384).shake_hands() as raw:
        raw.send(TEXT, b"go")
        received = 0
        # A second and a half for all of it, a piece each hundredth of a second.
        piece = size // 150
        while received < size:
            data = raw.socket.recv(min(piece, size + 10 - received))
            assert data, f"given up after {received} bytes of {size}"
            received += len(data)
            time.sleep(0.01 * len(data) / piece)
        assert ends == []


def test_a_connection_that_closes_is_not_asked_any_more(start_server: StartServer, often: None) -> None:
    @djmease.receiver
    def close(client: Any) -> None:
        client.close(4000)

    server = start_server()
    with RawClient(server).shake_hands() as raw:
        raw.send(TEXT, b"go")
        frame = raw.frame()
        while frame is not None and frame[0] == PING:
            frame = raw.frame()
        assert frame is not None
        raw.socket.settimeout(0.7)
        with pytest.raises(TimeoutError):
            raw.frame()
    assert server.server._pings.timed_out == 0


def test_many_connections_are_all_asked_and_only_the_silent_ones_given_up(
    start_server: StartServer, often: None, ends: list[Any]
) -> None:
    server = start_server()
    stop = threading.Event()
    with ExitStack() as stack, ThreadPoolExecutor(1) as pool:
        clients = [stack.enter_context(RawClient(server)).shake_hands() for _ in range(40)]
        eventually(lambda: len(server.server.clients) == 40)

        def answer() -> None:
            while not stop.wait(0.05):
                for client in clients[:20]:
                    client.send(PONG)

        answering = pool.submit(answer)
        try:
            eventually(lambda: len(ends) == 20)
            assert len(server.server.clients) == 20
        finally:
            stop.set()
        answering.result(DEADLINE)
        for client in clients[20:]:
            assert list(client.frames())[-1] == (PING, b"")
        for client in clients[:20]:
            client.send(PING, b"alive")
            while client.frame() != (PONG, b"alive"):
                pass


@run
async def test_pings_come_each_interval_also_to_who_answers_at_once() -> None:
    loop = asyncio.get_running_loop()
    outbox = Outbox(loop, limit=1000)
    pings = Pings(loop, outbox, interval=0.1, timeout=0.3)
    with Link(outbox) as link:
        pings.start()
        pings.add(link.protocol)
        started = time.monotonic()
        for _ in range(4):
            assert await link.read_bytes(2) == build_frame(PING, b"")
            await link.send(masked_frame(PONG, b""))
        # Four intervals, not four intervals and timeouts.
        assert time.monotonic() - started < 0.9
        pings.stop()
        assert pings.timed_out == 0
        link.outbox.write(link.protocol, build_frame(BINARY, b"end"))
        assert await link.read_bytes(5) == build_frame(BINARY, b"end")


@run
async def test_nothing_is_asked_any_more_once_pings_are_stopped() -> None:
    loop = asyncio.get_running_loop()
    outbox = Outbox(loop, limit=1000)
    pings = Pings(loop, outbox, interval=0.04, timeout=0.04)
    pings.stop()
    with Link(outbox) as link:
        pings.start()
        pings.add(link.protocol)
        pings.stop()
        await asyncio.sleep(0.2)
        assert link.handler.ends == []
        link.outbox.write(link.protocol, build_frame(BINARY, b"end"))
        assert await link.read_bytes(5) == build_frame(BINARY, b"end")


def judge(pings: Pings) -> None:
    """Do what the timer does at the deadline of the one connection that was asked."""
    (entry,) = pings._to_answer
    pings._to_answer.clear()
    pings._judge(*entry)


@run
async def test_a_connection_that_is_read_again_in_the_tick_of_its_deadline_is_heard_first() -> None:
    """Its pong has waited in the kernel all the time, for which it is not to blame."""
    loop = asyncio.get_running_loop()
    outbox = Outbox(loop, limit=1000)
    pings = Pings(loop, outbox, interval=0.01, timeout=0.02)
    with Link(outbox) as link:
        pings.add(link.protocol)
        await asyncio.sleep(0.02)
        link.protocol.pause_reading()
        pings._turn()
        pings.stop()
        assert await link.read_bytes(2) == build_frame(PING, b"")
        await link.send(masked_frame(PONG, b""))
        await asyncio.sleep(0.04)
        link.protocol.resume_reading()
        judge(pings)
        assert link.handler.ends == []


@run
async def test_a_loop_that_was_busy_itself_does_not_blame_its_clients_for_it() -> None:
    """The ping has not even left: whoever was asked in the same turn would be given up at once, all of them."""
    loop = asyncio.get_running_loop()
    outbox = Outbox(loop, limit=1000)
    pings = Pings(loop, outbox, interval=0.01, timeout=0.02)
    with Link(outbox) as link:
        pings.start()
        pings.add(link.protocol)
        while not link.protocol.waiting and not link.protocol.sent:
            await asyncio.sleep(0)
        time.sleep(0.1)
        for _ in range(4):
            await asyncio.sleep(0)
        pings.stop()
        assert link.handler.ends == []
        assert await link.read_bytes(2) == build_frame(PING, b"")


@run
async def test_a_ping_behind_a_large_message_of_the_same_tick_is_not_expected_to_be_answered_at_once() -> None:
    loop = asyncio.get_running_loop()
    outbox = Outbox(loop, limit=10_000_000)
    pings = Pings(loop, outbox, interval=0.01, timeout=0.02)
    with Link(outbox, kernel_buffer=16_384) as link:
        pings.add(link.protocol)
        await asyncio.sleep(0.02)
        outbox.write(link.protocol, build_frame(BINARY, bytes(5_000_000)))
        pings._turn()
        pings.stop()
        await asyncio.sleep(0)
        await link.read_bytes(1_000_000)
        await asyncio.sleep(0.04)
        judge(pings)
        assert link.handler.ends == []


def test_a_client_that_has_stopped_reading_for_good_is_found_though_much_waits_for_it(
    start_server: StartServer, settings: Any, often: None, ends: list[Any]
) -> None:
    settings.MEASE_MAX_CLIENT_BUFFER = 100_000_000

    @djmease.receiver
    def write(client: Any) -> None:
        client.write_message(bytes(10_000_000))

    server = start_server()
    with RawClient(server, receive_buffer=16_384).shake_hands() as raw:
        raw.send(TEXT, b"go")
        eventually(lambda: ends)
    assert [code for _, code in ends] == [None]
    assert server.server._pings.timed_out == 1


@pytest.mark.parametrize(("interval", "timeout"), [(0.1, 0.5), (0.5, 0.1)])
def test_a_timeout_may_be_longer_or_shorter_than_the_interval(
    start_server: StartServer, settings: Any, ends: list[Any], interval: float, timeout: float
) -> None:
    settings.MEASE_PING_INTERVAL, settings.MEASE_PING_TIMEOUT = interval, timeout
    server = start_server()
    with RawClient(server).shake_hands() as dead, RawClient(server).shake_hands() as alive:
        for _ in range(8 if interval < timeout else 2):
            assert alive.frame() == (PING, b"")
            alive.send(PONG)
        eventually(lambda: ends)
        assert list(dead.frames())[-1] == (PING, b"")
        alive.send(PING, b"alive")
        while alive.frame() != (PONG, b"alive"):
            pass
    assert server.server._pings.timed_out == 1
