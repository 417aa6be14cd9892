"""Who is connected to this process, by group and by user, and the snapshot of them that callbacks are handed."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol, overload

from djmease.identities import Identity
from djmease.messages import check_group, primary_key
from djmease.server.client import Client
from djmease.server.outbox import Outbox
from djmease.server.subscriptions import Channels

Index = dict[str, dict[Client, None]]
"""Clients by a name, in the order in which they got it."""


class ClientsList(Sequence[Client]):
    """Clients at one moment, in the order in which they came; those that go are still in it, and written to in vain."""

    __slots__ = ("_clients", "_members", "_source")

    def __init__(self, clients: tuple[Client, ...], source: Clients) -> None:
        self._clients = clients
        self._source = source
        self._members: frozenset[Client] | None = None

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
            return ClientsList(self._clients[index], self._source)
        return self._clients[index]

    def __repr__(self) -> str:
        return f"<ClientsList of {len(self)}>"

    def send(self, message: Any, binary: bool = False) -> None:
        """Write to all of them with one encoding: ``str`` as text, ``bytes`` as a binary frame, all else as JSON."""
        outbox = self._source.outbox
        frame = outbox.frame(message, binary)
        connections = [client.ws_connection for client in self._clients]
        outbox.write_all([connection for connection in connections if connection is not None], frame)

    def group(self, name: str) -> ClientsList:
        """Return those of them that are in a group now. Raises ``ValueError`` for a name that is not one."""
        return self._narrowed(self._source.in_groups([check_group(name)]))

    def user(self, user: Any) -> ClientsList:
        """Return those of them that are a user's: a user, or a primary key.

        Raises ``ValueError`` for a user that is not saved.
        """
        return self._narrowed(self._source.of_users([primary_key(user)]))

    def _narrowed(self, chosen: dict[Client, None]) -> ClientsList:
        if len(chosen) > len(self):
            return ClientsList(tuple(client for client in self._clients if client in chosen), self._source)
        return ClientsList(tuple(client for client in chosen if client in self), self._source)


class Attendance(Protocol):
    """Who is told of the members of groups: of those that are counted among the others."""

    def joined(self, client: Client, group: str) -> None: ...

    def left(self, client: Client, group: str) -> None: ...


class Clients:
    """The clients that are open, indexed so that nobody has to walk over all of them. Any thread may use it."""

    def __init__(self, outbox: Outbox, channels: Channels, attendance: Attendance | None = None) -> None:
        self.outbox = outbox
        self._channels = channels
        self._attendance = attendance
        self._lock = threading.Lock()
        self._by_id: dict[str, Client] = {}
        self._groups: Index = {}
        self._users: Index = {}
        self._snapshot: ClientsList | None = None

    def __len__(self) -> int:
        return len(self._by_id)

    def enter(self, client: Client) -> None:
        """Hear what is for a client's user; from now on it may join groups."""
        with self._lock:
            client.is_present = True
            self._hold_user(client)

    def add(self, client: Client) -> None:
        """Count a client among the others, and among those of the user it has; its presence is told from now on."""
        with self._lock:
            if not client.is_present:
                return
            self._by_id[client.id] = client
            self._snapshot = None
            if client.heard_as is not None:
                self._users.setdefault(client.heard_as, {})[client] = None
            self._tell_joined(client, client.groups)

    def discard(self, client: Client) -> None:
        """Count a client no more, and hear for it no more; what it was in, ``groups`` goes on telling."""
        with self._lock:
            if not client.is_present:
                return
            client.is_present = False
            self._release_user(client)
            for group in client.groups:
                self._take_out_of_group(client, group)
            if self._by_id.pop(client.id, None) is None:
                return
            self._snapshot = None
            if client.heard_as is not None:
                _take_out(self._users, client.heard_as, client)
            self._tell_left(client, client.groups)

    def reidentify(self, client: Client, identity: Identity) -> None:
        """Take what was read anew of a client's session: it is found under the user it has now."""
        with self._lock:
            client.identity = identity
            # What it was heard as: a user that is deleted has no key any more.
            before = client.heard_as
            if identity.key == before or not client.is_present:
                return
            groups = client.groups if client.id in self._by_id else ()
            self._tell_left(client, groups)
            self._release_user(client)
            self._hold_user(client)
            self._tell_joined(client, groups)
            if client.id in self._by_id:
                if before is not None:
                    _take_out(self._users, before, client)
                if client.heard_as is not None:
                    self._users.setdefault(client.heard_as, {})[client] = None

    def join(self, client: Client, group: str) -> None:
        """Put a client into a group, for as long as it is open; in a thread, return when what is published comes.

        It counts there at once, also where its openers have not ended, so that nothing is missed that is published
        behind this.
        """
        channel = self._join(client, group)
        if channel is not None:
            self._channels.wait(channel)

    async def join_on_loop(self, client: Client, group: str) -> None:
        """Put a client into a group, and return when what is published to it comes here."""
        channel = self._join(client, group)
        if channel is not None:
            await self._channels.wait_on_loop(channel)

    def _join(self, client: Client, group: str) -> str | None:
        """Return the channel to wait for; ``None`` where the client has gone."""
        channel = self._channels.of_group(group)
        with self._lock:
            if not client.is_present:
                return None
            if group not in client.groups:
                client.in_groups |= {group}
                self._channels.hold(channel)
                self._groups.setdefault(group, {})[client] = None
                if client.id in self._by_id:
                    self._tell_joined(client, (group,))
        return channel

    def leave(self, client: Client, group: str) -> None:
        with self._lock:
            if group not in client.groups:
                return
            client.in_groups -= {group}
            if client.is_present:
                self._take_out_of_group(client, group)
            if client.id in self._by_id:
                self._tell_left(client, (group,))

    def _take_out_of_group(self, client: Client, group: str) -> None:
        self._channels.release(self._channels.of_group(group))
        _take_out(self._groups, group, client)

    def _tell_joined(self, client: Client, groups: Iterable[str]) -> None:
        if self._attendance is not None:
            for group in groups:
                self._attendance.joined(client, group)

    def _tell_left(self, client: Client, groups: Iterable[str]) -> None:
        if self._attendance is not None:
            for group in groups:
                self._attendance.left(client, group)

    def _hold_user(self, client: Client) -> None:
        client.heard_as = client.user_key
        if client.heard_as is not None:
            self._channels.hold(self._channels.of_user(client.heard_as))

    def _release_user(self, client: Client) -> None:
        if client.heard_as is not None:
            self._channels.release(self._channels.of_user(client.heard_as))

    def snapshot(self) -> ClientsList:
        """Return who is open now; the same object until somebody comes or goes."""
        snapshot = self._snapshot
        if snapshot is None:
            with self._lock:
                snapshot = self._snapshot = ClientsList(tuple(self._by_id.values()), self)
        return snapshot

    def select(self, groups: Iterable[str] | None, users: Iterable[str] | None) -> ClientsList:
        """Return who is open now and in one of the groups and one of the users; ``None`` is everybody."""
        if groups is None and users is None:
            return self.snapshot()
        if groups is None or users is None:
            chosen = self.in_groups(groups) if groups is not None else self.of_users(users or ())
            return ClientsList(tuple(chosen), self)
        members = self.in_groups(groups)
        return ClientsList(tuple(client for client in self.of_users(users) if client in members), self)

    def group_names(self) -> tuple[str, ...]:
        """Return the groups that somebody is in now."""
        with self._lock:
            return tuple(self._groups)

    def group_sizes(self, names: Iterable[str]) -> list[int]:
        """Return how many are in each of these groups now."""
        with self._lock:
            return [len(self._groups.get(name, ())) for name in names]

    def in_groups(self, groups: Iterable[str]) -> dict[Client, None]:
        """Return the members of the groups, each once."""
        return self._chosen(self._groups, groups)

    def of_users(self, users: Iterable[str]) -> dict[Client, None]:
        """Return the clients of the users, each once."""
        return self._chosen(self._users, users)

    def _chosen(self, index: Index, names: Iterable[str]) -> dict[Client, None]:
        chosen: dict[Client, None] = {}
        with self._lock:
            for name in names:
                chosen.update(index.get(name, {}))
        return chosen


def _take_out(index: Index, name: str, client: Client) -> None:
    members = index.get(name)
    if members is not None:
        members.pop(client, None)
        if not members:
            del index[name]
