"""Which connections have something to read: one selector of their own for all of them."""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable
from typing import Protocol

Read = Callable[[], None]


class Outbox(Protocol):
    """What reading needs of ``server/outbox.py``."""

    def gather(self) -> None: ...

    def tick(self) -> None: ...


class Readers:
    """Calls who is to read once there is something, all who are ready in one turn of the loop.

    What is written meanwhile leaves at the end of that turn, without a turn of its own; and the loop holds one file
    with one handle instead of as many as there are connections. Where the system has no epoll(7), whose files can be
    polled themselves, the loop does it.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, outbox: Outbox) -> None:
        self._loop = loop
        self._outbox = outbox
        self._reads: dict[int, Read] = {}
        self._epoll = select.epoll() if hasattr(select, "epoll") else None
        if self._epoll is not None:
            loop.add_reader(self._epoll, self._turn)

    def add(self, file: int, read: Read) -> None:
        """Call ``read`` whenever there is something to read in ``file``, until ``remove``."""
        self._reads[file] = read
        if self._epoll is not None:
            self._epoll.register(file, select.EPOLLIN)
        else:
            self._loop.add_reader(file, read)

    def remove(self, file: int) -> None:
        """Call it no more; before the file is closed."""
        if self._reads.pop(file, None) is None:
            return
        if self._epoll is not None:
            self._epoll.unregister(file)
        else:
            self._loop.remove_reader(file)

    def close(self) -> None:
        """Call nobody any more."""
        self._reads.clear()
        if self._epoll is not None:
            self._loop.remove_reader(self._epoll)
            self._epoll.close()

    def _turn(self) -> None:
        assert self._epoll is not None
        reads = self._reads
        self._outbox.gather()
        try:
            for file, _ in self._epoll.poll(0):
                read = reads.get(file)
                if read is not None:  # Else one that was ready has ended another one.
                    read()
        finally:
            self._outbox.tick()
