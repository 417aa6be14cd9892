"""The list of clients that callbacks are handed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import djmease
from djmease.test import connect
from tests.support import LiveServer, eventually

StartServer = Callable[[], LiveServer]


def test_a_clients_list_is_a_snapshot_that_is_iterated_counted_indexed_and_asked(start_server: StartServer) -> None:
    seen: list[Any] = []

    @djmease.receiver
    def look(client: Any, clients_list: Any) -> None:
        seen.append((client, clients_list))

    server = start_server()
    one, two = server.connect(), server.connect()
    two.send("look")
    eventually(lambda: seen)
    client, clients_list = seen[0]
    assert len(clients_list) == 2
    assert list(clients_list)[1] is clients_list[1] is clients_list[-1] is client
    assert client in clients_list and object() not in clients_list
    assert list(clients_list[1:]) == [client]
    assert repr(clients_list) == "<ClientsList of 2>"
    assert isinstance(clients_list, djmease.ClientsList) and isinstance(client, djmease.Client)
    one.close()
    eventually(lambda: len(server.server.clients) == 1)
    assert len(clients_list) == 2, "a snapshot stays what it was"
    clients_list[1:].send({"to": "one"})
    assert two.recv(5) == '{"to":"one"}'


def test_the_snapshot_is_the_same_object_until_somebody_comes_or_goes(start_server: StartServer) -> None:
    server = start_server()
    server.connect()
    snapshot = server.server.clients.snapshot()
    assert server.server.clients.snapshot() is snapshot
    server.connect()
    assert len(server.server.clients.snapshot()) == 2


def test_one_message_to_all_is_encoded_once(start_server: StartServer) -> None:
    class Counted(dict[str, Any]):
        encodings = 0

        def items(self) -> Any:
            Counted.encodings += 1
            return super().items()

    message = Counted(text="x")

    @djmease.receiver
    def answer(clients_list: Any) -> None:
        clients_list.send(message)

    server = start_server()
    clients = [server.connect() for _ in range(5)]
    clients[0].send("go")
    assert [client.recv(5) for client in clients] == ['{"text":"x"}'] * 5
    assert Counted.encodings == 1


def test_an_async_callback_writes_to_all_as_well(start_server: StartServer) -> None:
    @djmease.receiver
    async def answer(message: Any, clients_list: Any) -> None:
        clients_list.send(message)

    server = start_server()
    clients = [server.connect() for _ in range(3)]
    clients[0].send(b"\x00\x01")
    assert [client.recv(5) for client in clients] == [b"\x00\x01"] * 3


def assign(client: Any) -> None:
    """Do what looks like a join, and would leave nobody in the group hearing of it."""
    try:
        client.groups |= {"room"}
    except AttributeError:
        client.send(sorted(client.groups))


def test_groups_are_changed_by_join_and_leave_alone(start_server: Callable[[], LiveServer]) -> None:
    djmease.receiver(assign)
    page = start_server().connect()
    page.send("x")
    assert page.recv(5) == "[]"
    with connect() as client:
        client.send("x")
        assert client.received == [[]]
