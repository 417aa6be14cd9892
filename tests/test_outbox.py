"""What waits to be written: frames, their order from any thread, and who is too slow."""

from __future__ import annotations

import asyncio
import datetime
import decimal
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest
from django.utils.functional import lazystr
from django.utils.safestring import mark_safe

from djmease.server import outbox as outbox_module
from djmease.server import protocol as protocol_module
from djmease.server.client import Client
from djmease.server.outbox import HARD_LIMIT, Outbox, frame_of
from djmease.server.protocol import BINARY, PING, TEXT, build_close, build_frame
from tests.support import DEADLINE
from tests.test_protocol import Handler, Link, read_with_websockets, reset, run

MESSAGES: list[tuple[Any, int, bytes]] = [
    ("text", TEXT, b"text"),
    ("", TEXT, b""),
    ("ü€𝄞\x00", TEXT, "ü€𝄞\x00".encode()),
    (mark_safe("<b>"), TEXT, b"<b>"),
    (b"\x00\xff", BINARY, b"\x00\xff"),
    (b"", BINARY, b""),
    (bytearray(b"ab"), BINARY, b"ab"),
    (memoryview(b"abcdef")[::2], BINARY, b"ace"),
    ({"a": 1, "b": ["ü"]}, TEXT, '{"a":1,"b":["ü"]}'.encode()),
    ([1, 2.5, None, True], TEXT, b"[1,2.5,null,true]"),
    ((1, 2), TEXT, b"[1,2]"),
    (None, TEXT, b"null"),
    (False, TEXT, b"false"),
    (0, TEXT, b"0"),
    (datetime.date(2024, 2, 29), TEXT, b'"2024-02-29"'),
    (datetime.datetime(2024, 2, 29, 1, 2, 3, tzinfo=datetime.UTC), TEXT, b'"2024-02-29T01:02:03Z"'),
    (datetime.timedelta(days=1), TEXT, b'"P1DT00H00M00S"'),
    (decimal.Decimal("1.50"), TEXT, b'"1.50"'),
    (uuid.UUID(int=1), TEXT, b'"00000000-0000-0000-0000-000000000001"'),
    ({"when": datetime.time(1, 2)}, TEXT, b'{"when":"01:02:00"}'),
    # A lazy string is no str: it goes as its JSON, with quotes, as it does inside a dict.
    (lazystr("later"), TEXT, b"later"),
]


@pytest.mark.parametrize(("message", "opcode", "payload"), MESSAGES, ids=[type(each[0]).__name__ for each in MESSAGES])
def test_text_is_text_bytes_are_binary_and_all_else_is_its_json(message: Any, opcode: int, payload: bytes) -> None:
    received = read_with_websockets(frame_of(message))
    assert (int(received.opcode), bytes(received.data)) == (opcode, payload)
    as_binary = read_with_websockets(frame_of(message, binary=True))
    assert (int(as_binary.opcode), bytes(as_binary.data)) == (BINARY, payload)


@pytest.mark.parametrize(
    "message", [object(), {"a": object()}, float("nan"), [float("inf")], {1, 2}, "\ud800", {(1, 2): 3}]
)
def test_what_json_cannot_hold_raises(message: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        frame_of(message)


def test_a_structure_that_holds_itself_raises() -> None:
    message: list[Any] = []
    message.append(message)
    with pytest.raises(ValueError, match="(?i)circular"):
        frame_of(message)


@run
async def test_the_same_text_is_framed_once_and_nothing_that_may_have_changed_is_remembered() -> None:
    outbox = Outbox(asyncio.get_running_loop(), limit=1)
    text = "x" * 100
    assert outbox.frame(text) is outbox.frame(text)
    assert outbox.frame(text, True) == build_frame(BINARY, text.encode())
    assert outbox.frame(text) == build_frame(TEXT, text.encode())
    data = b"y" * 100
    assert outbox.frame(data) is outbox.frame(data)
    for changing in ({"n": 0}, [0], bytearray(b"\x00")):
        before = outbox.frame(changing)
        changing.update(n=1) if isinstance(changing, dict) else changing.__setitem__(0, 1)
        assert outbox.frame(changing) != before

    class Chameleon(str):
        __slots__ = ("now",)
        now: str

        def encode(self, *arguments: Any) -> bytes:
            return self.now.encode()

    chameleon = Chameleon("c")
    chameleon.now = "one"
    first = outbox.frame(chameleon)
    chameleon.now = "two"
    assert outbox.frame(chameleon) != first


def frames_in(data: bytes) -> Iterator[bytes]:
    """Yield the payloads of short frames."""
    position = 0
    while position < len(data):
        size = data[position + 1]
        assert size < 126
        yield data[position + 2 : position + 2 + size]
        position += 2 + size


@run
async def test_what_threads_and_the_loop_write_arrives_once_and_in_the_order_of_each_writer() -> None:
    loop = asyncio.get_running_loop()
    outbox = Outbox(loop, limit=64 * 1024 * 1024)
    count, writers = 3000, 4
    with ExitStack() as stack:
        links = [stack.enter_context(Link(outbox)) for _ in range(3)]
        connections = [link.protocol for link in links]

        def write(writer: int) -> None:
            for number in range(count):
                frame = build_frame(TEXT, b"%d:%d" % (writer, number))
                if number % 2:
                    outbox.write_all(connections, frame)
                else:
                    for connection in connections:
                        outbox.write(connection, frame)
            outbox.run_on_loop(done.release)

        done = asyncio.Semaphore(0)
        threads = [threading.Thread(target=write, args=(writer,)) for writer in range(1, writers)]
        for thread in threads:
            thread.start()
        reading = [asyncio.create_task(link.read()) for link in links]
        for number in range(count):
            outbox.write_all(connections, build_frame(TEXT, b"0:%d" % number))
            if number % 10 == 0:
                await asyncio.sleep(0)
        for thread in threads:
            await asyncio.to_thread(thread.join, DEADLINE)
        for _ in threads:
            await done.acquire()
        for connection in connections:
            connection.cut_off(1001, "")
        closing = build_close(1001, "")
        for data in await asyncio.gather(*reading):
            assert data.endswith(closing)
            received = list(frames_in(data[: -len(closing)]))
            assert len(received) == count * writers
            for writer in range(writers):
                own = [payload for payload in received if payload.startswith(b"%d:" % writer)]
                assert own == [b"%d:%d" % (writer, number) for number in range(count)]


def client_on(link: Link, outbox: Outbox) -> Client:
    client = Client.__new__(Client)
    client._outbox = outbox
    client.ws_connection = link.protocol
    return client


@run
async def test_threads_that_write_the_same_messages_lose_none_and_keep_their_order() -> None:
    """They add to each other's runs without a lock, while the loop takes these away from them."""
    outbox = Outbox(asyncio.get_running_loop(), limit=64 * 1024 * 1024)
    threads, messages = 4, [f"{number:05}" for number in range(1500)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ExitStack() as stack, ThreadPoolExecutor(threads) as pool:
            links = [stack.enter_context(Link(outbox)) for _ in range(3)]
            clients = [client_on(link, outbox) for link in links]

            def write() -> None:
                for message in messages:
                    for client in clients:
                        client.write_message(message)

            writing = [pool.submit(write) for _ in range(threads)]
            size = threads * len(messages) * len(frame_of(messages[0]))
            received = await asyncio.gather(*(link.read_bytes(size) for link in links))
            for future in writing:
                future.result()
    finally:
        sys.setswitchinterval(interval)
    for data in received:
        counts = dict.fromkeys(messages, 0)
        numbers = [payload.decode() for payload in frames_in(data)]
        for number in numbers:
            counts[number] += 1
            # Each thread writes the one before it first.
            assert number == messages[0] or counts[f"{int(number) - 1:05}"] >= counts[number]
        assert set(counts.values()) == {threads}


@run
async def test_what_is_added_to_a_run_that_has_been_taken_is_rescued_once() -> None:
    outbox = Outbox(asyncio.get_running_loop(), limit=1024 * 1024)
    with Link(outbox) as first, Link(outbox) as second, Link(outbox) as third:
        client_on(first, outbox).write_message("x")
        run = outbox.run
        run.connections.append(second.protocol)
        outbox.rescue(run)  # It is still to be taken: there is nothing to do.
        outbox.tick()
        # Two threads found the run open, and come back to it when it is not.
        run.connections.append(third.protocol)
        run.connections.append(first.protocol)
        outbox.rescue(run)
        outbox.rescue(run)
        outbox.tick()
        run.connections.append(second.protocol)
        outbox.rescue(run)
        outbox.tick()
        frame = frame_of("x")
        assert await first.read_bytes(2 * len(frame)) == 2 * frame
        assert await second.read_bytes(2 * len(frame)) == 2 * frame
        assert await third.read_bytes(len(frame)) == frame


@run
async def test_a_callback_on_the_loop_that_writes_without_end_writes_to_the_kernel_meanwhile() -> None:
    outbox = Outbox(asyncio.get_running_loop(), limit=1024)
    with Link(outbox) as link:
        message = "x" * 1_000_000
        client = client_on(link, outbox)
        for number in range(30):
            client.write_message(f"{number}{message}")
        assert outbox._collected_size <= outbox_module.MAX_COLLECTED
        # It did not read, since nobody had a turn: that is known here already.
        assert outbox.slow == 1


@run
async def test_a_close_from_a_thread_is_behind_all_that_the_thread_has_written() -> None:
    outbox = Outbox(asyncio.get_running_loop(), limit=1024 * 1024)
    noise = threading.Event()
    with ThreadPoolExecutor(2) as pool, Link(outbox) as other:

        def make_noise() -> None:
            """Wake the loop again and again, so that the other thread writes at every point of a drain."""
            while not noise.wait(0.0002):
                outbox.write(other.protocol, b"\x8a\x00")

        def write_and_close(link: Link, size: int) -> None:
            for number in range(size):
                outbox.write(link.protocol, build_frame(TEXT, b"%d" % number))
            outbox.run_on_loop(link.protocol.close, 4000, "end")

        pool.submit(make_noise)
        drained = asyncio.create_task(other.read())
        try:
            for size in range(60):
                with Link(outbox) as link:
                    await asyncio.get_running_loop().run_in_executor(pool, write_and_close, link, size)
                    expected = b"".join(build_frame(TEXT, b"%d" % number) for number in range(size))
                    expected += build_close(4000, "end")
                    assert await link.read_bytes(len(expected)) == expected
                    await link.send(b"\x88\x80\x00\x00\x00\x00")
                    assert await link.read() == b""
        finally:
            noise.set()
            other.protocol.abort()
            await asyncio.gather(drained, return_exceptions=True)


@run
async def test_what_a_thread_writes_behind_its_close_is_not_sent() -> None:
    """A callback that closes one client and then writes to all must not write to that one."""
    outbox = Outbox(asyncio.get_running_loop(), limit=1024 * 1024)
    with Link(outbox) as link:

        def write_and_close() -> None:
            outbox.write(link.protocol, build_frame(TEXT, b"before"))
            outbox.run_on_loop(link.protocol.close, 4000, "end")
            outbox.write(link.protocol, build_frame(TEXT, b"behind"))

        # The loop waits for the thread, so that its collection is drained when all three are there.
        with ThreadPoolExecutor(1) as pool:
            pool.submit(write_and_close).result(DEADLINE)
        await link.until(lambda: link.protocol.closing)
        await link.send(b"\x88\x80\x00\x00\x00\x00")
        assert await link.read() == build_frame(TEXT, b"before") + build_close(4000, "end")


@run
async def test_everything_written_in_one_tick_is_one_send() -> None:
    with Link() as link:
        sizes: list[int] = []
        for number in range(500):
            link.outbox.write(link.protocol, build_frame(TEXT, b"%03d" % number))
            sizes.append(link.protocol.sent)
        assert set(sizes) == {0}, "nothing is sent before the end of the tick"
        assert not link.protocol.backlog
        await asyncio.sleep(0)
        assert link.protocol.sent == 500 * 5
        assert await link.read_bytes(500 * 5) == b"".join(build_frame(TEXT, b"%03d" % number) for number in range(500))


def test_writing_where_the_loop_has_closed_is_no_error() -> None:
    made: list[tuple[Outbox, Any]] = []

    @run
    async def begin() -> None:
        with Link() as link:
            made.append((link.outbox, link.protocol))

    begin()
    outbox, connection = made[0]

    def write() -> None:
        outbox.write(connection, b"x")
        outbox.write_all([connection], b"x")
        outbox.run_on_loop(connection.close, 1000, None)

    with ThreadPoolExecutor(1) as pool:
        pool.submit(write).result(DEADLINE)


# Who does not read


def test_a_client_that_does_not_read_gets_1013_and_what_waited_and_then_is_cut_off(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(protocol_module, "CLOSE_TIMEOUT", 60.0)
    limit = 100_000

    @run
    async def test() -> None:
        outbox = Outbox(asyncio.get_running_loop(), limit=limit)
        frame = build_frame(BINARY, bytes(10_000))
        with Link(outbox, kernel_buffer=4096) as slow, Link(outbox) as other:
            reading = asyncio.create_task(other.read())
            written, peak = 0, 0
            while not slow.handler.ends:
                outbox.write_all([slow.protocol, other.protocol], frame)
                written += 1
                await asyncio.sleep(0)
                peak = max(peak, len(slow.protocol.backlog))
                assert written < 1000, "it is never cut off"
            assert slow.handler.ends == [(1013, "you do not read what is sent")]
            assert outbox.slow == 1
            assert peak <= HARD_LIMIT * limit + 2 * len(frame)
            for _ in range(100):
                outbox.write_all([slow.protocol, other.protocol], frame)
                await asyncio.sleep(0)
            assert len(slow.protocol.backlog) <= peak + 100
            # What it had still to read is whole frames, then the reason, then the end.
            data = await slow.read()
            close = build_close(1013, "you do not read what is sent")
            assert data.endswith(close)
            assert (len(data) - len(close)) % len(frame) == 0
            slow.peer.close()
            await slow.until(lambda: slow.protocol._socket is None)
            other.protocol.cut_off(1001, "")
            assert len(await reading) == (written + 100) * len(frame) + len(build_close(1001, ""))

    test()
    assert caplog.text.count("client a-handler does not read") == 1
    assert "MEASE_MAX_CLIENT_BUFFER" in caplog.text


def test_a_client_that_never_reads_at_all_is_gone_some_seconds_after_1013(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol_module, "CLOSE_TIMEOUT", 0.05)

    @run
    async def test() -> None:
        with Link(limit=1000, kernel_buffer=4096) as link:
            while not link.handler.ends:
                link.outbox.write(link.protocol, build_frame(BINARY, bytes(10_000)))
                await asyncio.sleep(0)
            await link.until(lambda: link.protocol._socket is None)
            assert not link.protocol.backlog
            assert link.handler.ends == [(1013, "you do not read what is sent")]

    test()


@run
async def test_a_client_that_reads_too_slowly_for_what_is_sent_is_cut_off_as_well_later() -> None:
    with Link(limit=50_000, kernel_buffer=4096) as link:
        peak = 0
        while not link.handler.ends:
            link.outbox.write(link.protocol, build_frame(BINARY, bytes(10_000)))
            sent = link.protocol.sent
            peak = max(peak, len(link.protocol.backlog))
            if link.protocol.backlog:
                # It goes on, if only by little.
                while link.protocol.sent == sent:
                    with pytest.raises(BlockingIOError):
                        while True:
                            link.peer.recv(1000)
                    await asyncio.sleep(0)
                    assert peak < 10 * HARD_LIMIT * 50_000
            await asyncio.sleep(0)
        assert link.handler.ends == [(1013, "you do not read what is sent")]


@pytest.mark.parametrize("reads", [True, False])
def test_more_than_the_limit_may_wait_only_for_a_client_that_still_reads(
    monkeypatch: pytest.MonkeyPatch, reads: bool
) -> None:
    monkeypatch.setattr(outbox_module, "GRACE", 0.3)
    limit = 1_000_000

    @run
    async def test() -> None:
        with Link(limit=limit, kernel_buffer=16_384) as link:
            link.outbox.write(link.protocol, build_frame(BINARY, bytes(2 * limit)))
            await asyncio.sleep(0.5)
            if reads:
                await link.read_bytes(200_000)
            assert len(link.protocol.backlog) > limit
            link.outbox.write(link.protocol, build_frame(TEXT, b"more"))
            await asyncio.sleep(0.01)
            assert link.handler.ends == ([] if reads else [(1013, "you do not read what is sent")])

    test()


def test_a_loop_that_was_busy_itself_does_not_blame_its_clients_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """They had room all the time; the writers could not run. Else one slow callback throws out everybody at once."""
    monkeypatch.setattr(outbox_module, "GRACE", 0.05)

    @run
    async def test() -> None:
        with Link(limit=100_000, kernel_buffer=16_384) as link:
            link.outbox.write(link.protocol, build_frame(BINARY, bytes(300_000)))
            await asyncio.sleep(0)
            assert len(link.protocol.backlog) > 100_000
            # The client reads all there is, while the loop does something else.
            while len(link.peer.recv(65536)) == 65536:
                pass
            time.sleep(0.1)
            link.outbox.write(link.protocol, build_frame(TEXT, b"more"))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert link.handler.ends == []

    test()


@run
async def test_a_healthy_client_that_gets_two_large_messages_and_a_ping_at_once_is_not_cut_off() -> None:
    """Three ticks are less than a round trip: that nothing was read between them says nothing about the client."""
    limit = 1024 * 1024
    with Link(limit=limit, kernel_buffer=32_768) as link:
        reading = asyncio.create_task(link.read())
        large = build_frame(BINARY, bytes(limit))
        for frame in (large, large, build_frame(PING, b"")):
            link.outbox.write(link.protocol, frame)
            # The end of the tick, with nothing between it and the next but what a busy loop does.
            link.outbox.tick()
        link.protocol.close(1000, None)
        await link.until(lambda: link.handler.ends or not link.protocol.backlog)
        assert link.handler.ends == []
        link.protocol.abort()
        assert await reading == large + large + build_frame(PING, b"") + build_close(1000, None)


# One connection's misfortune is no other's


class Raising(Handler):
    """As a server whose threads cannot be started any more, and whatever else may happen at the end of a connection."""

    def on_ws_connection_close(self, code: int | None = None, reason: str | None = None) -> None:
        super().on_ws_connection_close(code, reason)
        raise RuntimeError("can't start new thread")


def test_a_connection_whose_end_fails_does_not_make_the_others_of_its_flush_mute_for_ever() -> None:
    async def test() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda *_: None)
        outbox = Outbox(loop, limit=1000)
        with ExitStack() as stack:
            links = [stack.enter_context(Link(outbox)) for _ in range(5)]
            broken = links[1]
            broken.protocol.handler = Raising()
            broken.protocol.pause_reading()
            reset(broken.peer)
            outbox.write_all([link.protocol for link in links], build_frame(TEXT, b"one"))
            await broken.until(lambda: broken.handler.ends or broken.protocol._socket is None)
            others = [link for link in links if link is not broken]
            outbox.write_all([link.protocol for link in others], build_frame(TEXT, b"two"))
            async with asyncio.timeout(3):
                for link in others:
                    assert await link.read_bytes(10) == build_frame(TEXT, b"one") + build_frame(TEXT, b"two")

    asyncio.run(test())


def test_what_a_thread_asks_of_the_loop_and_fails_does_not_hold_back_what_comes_behind_it() -> None:
    async def test() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda *_: None)
        outbox = Outbox(loop, limit=1000)
        with Link(outbox) as broken, Link(outbox) as other:

            def write() -> None:
                outbox.run_on_loop(broken.protocol.close, 1000, object())
                outbox.write(other.protocol, build_frame(TEXT, b"behind"))

            with ThreadPoolExecutor(1) as pool:
                pool.submit(write).result(DEADLINE)
            async with asyncio.timeout(3):
                assert await other.read_bytes(8) == build_frame(TEXT, b"behind")

    asyncio.run(test())


@run
async def test_connections_that_end_within_a_flush_leave_the_others_of_it_alone() -> None:
    outbox = Outbox(asyncio.get_running_loop(), limit=1000)
    with ExitStack() as stack:
        links = [stack.enter_context(Link(outbox, kernel_buffer=4096)) for _ in range(9)]
        aborted, was_reset, slow = links[2], links[4], links[6]
        others = [link for link in links if link not in (aborted, was_reset, slow)]
        frame = build_frame(TEXT, b"hello")
        outbox.write(slow.protocol, build_frame(BINARY, bytes(1_000_000)))
        await asyncio.sleep(0)
        for link in (aborted, was_reset):
            link.protocol.pause_reading()
        reset(was_reset.peer)
        for _ in range(4):
            outbox.write_all([link.protocol for link in links], frame)
            aborted.protocol.abort()
            await asyncio.sleep(0)
        for link in others:
            assert await link.read_bytes(4 * len(frame)) == 4 * frame
            assert link.handler.ends == []
        assert [link.handler.ends for link in (aborted, was_reset)] == [[(None, None)]] * 2
        assert slow.handler.ends == [(1013, "you do not read what is sent")]
