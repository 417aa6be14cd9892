"""Who is connected to this process, and the snapshot of them that callbacks are handed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, overload

from djmease.server.client import Client
from djmease.server.outbox import Outbox


class ClientsList(Sequence[Client]):
    """Clients at one moment, in the order in which they came; those that go are still in it, and written to in vain."""

    __slots__ = ("_clients", "_members", "_outbox", "version")

    def __init__(self, clients: tuple[Client, ...], outbox: Outbox, version: int = 0) -> None:
        self._clients = clients
        self._outbox = outbox
        self._members: frozenset[Client] | None = None
        self.version = version

    def __len__(self) -> int:
        return len(self._clients)

    def __iter__(self) -> Iterator[Client]:
        return iter(self._clients)

    def __contains__(self, client: object) -> bool:
        if self._members is None:
            self._members = frozenset(self._clients)
        return client in self._members

    @overload
    def __getitem__(self, index: int) -> Client: ...
    @overload
    def __getitem__(self, index: slice) -> ClientsList: ...
    def __getitem__(self, index: int | slice) -> Client | ClientsList:
        if isinstance(index, slice):
            return ClientsList(self._clients[index], self._outbox)
        return self._clients[index]

    def __repr__(self) -> str:
        return f"<ClientsList of {len(self)}>"

    def send(self, message: Any, binary: bool = False) -> None:
        """Write to all of them with one encoding: ``str`` as text, ``bytes`` as a binary frame, all else as JSON."""
        frame = self._outbox.frame(message, binary)
        connections = [client.ws_connection for client in self._clients]
        self._outbox.write_all([connection for connection in connections if connection is not None], frame)


class Clients:
    """The clients that are open: changed on the loop, read from any thread."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._by_id: dict[str, Client] = {}
        self._version = 0
        self._snapshot = ClientsList((), outbox)

    def __len__(self) -> int:
        return len(self._by_id)

    def add(self, client: Client) -> None:
        self._by_id[client.id] = client
        self._version += 1

    def discard(self, client: Client) -> None:
        if self._by_id.pop(client.id, None) is not None:
            self._version += 1

    def snapshot(self) -> ClientsList:
        """Return who is open now; the same object until somebody comes or goes."""
        snapshot = self._snapshot
        # The number is raised behind each change and read before the copy: a copy is never taken for a newer one.
        version = self._version
        if snapshot.version != version:
            snapshot = self._snapshot = ClientsList(tuple(self._by_id.values()), self._outbox, version)
        return snapshot
