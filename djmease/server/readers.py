"""Which connections have something to read: one selector of their own for all of them."""

from __future__ import annotations

import asyncio
import select
import socket
from typing import Protocol


class Connection(Protocol):
    """Who is to read."""

    def on_readable(self) -> None: ...

    def abort(self) -> None: ...


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
        self._connections: dict[int, Connection] = {}
        self.bytes_in = 0
        """What was read, in all."""
        self._epoll = select.epoll() if hasattr(select, "epoll") else None
        if self._epoll is not None:
            loop.add_reader(self._epoll, self._turn)

    def add(self, sock: socket.socket, connection: Connection) -> None:
        """Call the connection whenever there is something to read in its socket, until ``remove``."""
        number = sock.fileno()
        self._connections[number] = connection
        if self._epoll is not None:
            self._epoll.register(number, select.EPOLLIN)
        else:
            self._loop.add_reader(number, connection.on_readable)

    def remove(self, sock: socket.socket) -> None:
        """Call it no more; before the socket is closed."""
        number = sock.fileno()
        if self._connections.pop(number, None) is None:
            return
        if self._epoll is not None:
            self._epoll.unregister(number)
        else:
            self._loop.remove_reader(number)

    @property
    def connections(self) -> tuple[Connection, ...]:
        """Who is called."""
        return tuple(self._connections.values())

    def close(self) -> None:
        """Call nobody any more."""
        self._connections.clear()
        if self._epoll is not None:
            self._loop.remove_reader(self._epoll)
            self._epoll.close()

    def _turn(self) -> None:
        assert self._epoll is not None
        connections = self._connections
        self._outbox.gather()
        try:
            for number, _ in self._epoll.poll(0):
                connection = connections.get(number)
                if connection is not None:  # Else one that was ready has ended another one.
                    connection.on_readable()
        finally:
            self._outbox.tick()
