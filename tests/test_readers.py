"""Who is to read is called when there is something, wherever the system can poll it."""

from __future__ import annotations

import asyncio
import select
import socket
from collections.abc import Callable, Iterator

import pytest

from djmease.server.outbox import Outbox
from djmease.server.readers import Readers
from tests.support import DEADLINE


class Reading:
    """Something to be called as a connection is."""

    def __init__(self, on_readable: Callable[[], object]) -> None:
        self.on_readable = on_readable

    def abort(self) -> None:
        """It has nothing to give up."""


class Pairs:
    """Pairs of connected sockets of which one end is read by ``Readers``, and what was read."""

    def __init__(self, readers: Readers) -> None:
        self.readers = readers
        self.heard: list[tuple[int, bytes]] = []
        self.readings: list[Reading] = []
        self._pairs: list[tuple[socket.socket, socket.socket]] = []

    def open(self) -> tuple[socket.socket, socket.socket]:
        """Return a socket that is read, and its other end."""
        ours, peer = socket.socketpair()
        self._pairs.append((ours, peer))
        self.readings.append(Reading(lambda: self.heard.append((ours.fileno(), ours.recv(100)))))
        self.readers.add(ours, self.readings[-1])
        return ours, peer

    def close(self) -> None:
        self.readers.close()
        for ours, peer in self._pairs:
            ours.close()
            peer.close()


@pytest.fixture(params=["epoll", "the loop"])
def has_epoll(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[bool]:
    if request.param == "the loop":
        monkeypatch.delattr(select, "epoll", raising=False)
    elif not hasattr(select, "epoll"):
        pytest.skip("this system has no epoll")
    yield request.param == "epoll"


def pairs_on(loop: asyncio.AbstractEventLoop) -> Pairs:
    return Pairs(Readers(loop, Outbox(loop, limit=1000)))


async def heard(pairs: Pairs, count: int) -> None:
    async with asyncio.timeout(DEADLINE):
        while len(pairs.heard) < count:
            await asyncio.sleep(0)


def test_all_who_have_something_to_read_are_called_and_those_that_were_removed_are_not(has_epoll: bool) -> None:
    async def scenario() -> None:
        pairs = pairs_on(asyncio.get_running_loop())
        first, to_first = pairs.open()
        second, to_second = pairs.open()
        to_first.send(b"one")
        to_second.send(b"two")
        await heard(pairs, 2)
        assert sorted(pairs.heard) == sorted([(first.fileno(), b"one"), (second.fileno(), b"two")])
        pairs.readers.remove(first)
        pairs.readers.remove(first)
        to_first.send(b"not read")
        to_second.send(b"three")
        await heard(pairs, 3)
        assert pairs.heard[2] == (second.fileno(), b"three")
        assert list(pairs.readers.connections) == pairs.readings[1:]
        pairs.close()

    asyncio.run(scenario())


@pytest.mark.skipif(not hasattr(select, "epoll"), reason="this system has no epoll")
def test_who_is_ended_by_another_in_the_same_turn_is_not_called() -> None:
    async def scenario() -> None:
        pairs = pairs_on(asyncio.get_running_loop())
        calls: list[int] = []
        ends = [socket.socketpair() for _ in range(2)]

        def end_the_other(index: int) -> None:
            calls.append(index)
            ends[index][0].recv(100)
            pairs.readers.remove(ends[1 - index][0])

        for index, (ours, _) in enumerate(ends):
            pairs.readers.add(ours, Reading(lambda index=index: end_the_other(index)))
        for _, peer in ends:
            peer.send(b"x")
        async with asyncio.timeout(DEADLINE):
            while not calls:
                await asyncio.sleep(0)
        for _ in range(5):
            await asyncio.sleep(0)
        assert len(calls) == 1
        pairs.close()
        for ours, peer in ends:
            ours.close()
            peer.close()

    asyncio.run(scenario())


def test_one_whose_reading_fails_does_not_keep_what_others_write(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        outbox = Outbox(loop, limit=1000)
        pairs = Pairs(Readers(loop, outbox))
        ours, peer = socket.socketpair()
        done: list[str] = []

        def fail() -> None:
            ours.recv(100)
            outbox.run_on_loop(done.append, "written before")
            raise ValueError("broken")

        pairs.readers.add(ours, Reading(fail))
        peer.send(b"x")
        async with asyncio.timeout(DEADLINE):
            while not done:
                await asyncio.sleep(0)
        outbox.run_on_loop(done.append, "written behind")
        async with asyncio.timeout(DEADLINE):
            while len(done) < 2:
                await asyncio.sleep(0)
        pairs.close()
        ours.close()
        peer.close()

    asyncio.run(scenario())
    assert "broken" in caplog.text
