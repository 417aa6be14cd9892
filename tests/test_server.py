"""The whole server over real sockets and a real Valkey."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import djmease
from tests.support import LiveServer

StartServer = Callable[[], LiveServer]


def test_the_original_readme_runs_unchanged(start_server: StartServer) -> None:
    """What a client sends comes back to all by the receiver, and what is published by the sender."""

    @djmease.receiver
    def receive_websocket_message(client, message, clients_list):  # type: ignore[no-untyped-def]
        for c in clients_list:
            c.write_message(message)

    @djmease.sender(routing=["websocket"])
    def send_websocket_message(channel, message, clients_list):  # type: ignore[no-untyped-def]
        for c in clients_list:
            c.write_message(message)

    server = start_server()
    one, two = server.connect(), server.connect()
    one.send("from one")
    assert [one.recv(5), two.recv(5)] == ["from one", "from one"]
    djmease.publish("websocket", "Hello world !")
    assert [one.recv(5), two.recv(5)] == ["Hello world !", "Hello world !"]


def test_a_thousand_messages_reach_two_hundred_clients_once_and_in_order(start_server: StartServer) -> None:
    @djmease.sender(routing="sync")
    def show(message: Any, clients_list: Any) -> None:
        for client in clients_list:
            client.write_message(message)

    @djmease.sender(routing="async")
    async def show_async(message: Any, clients_list: Any) -> None:
        for client in clients_list:
            client.write_message(message)

    server = start_server()
    connections = [server.connect() for _ in range(200)]
    for index in range(1000):
        djmease.publish("sync" if index % 2 else "async", str(index))
    for connection in connections:
        received = [int(connection.recv(20)) for _ in range(1000)]
        assert [number for number in received if number % 2] == list(range(1, 1000, 2))
        assert [number for number in received if not number % 2] == list(range(0, 1000, 2))
