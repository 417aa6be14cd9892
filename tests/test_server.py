"""The whole server over real sockets and a real Valkey: what users were promised."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from redis import Redis
from websocket import create_connection
from websockets.exceptions import ConnectionClosed

import djmease
from djmease.embedded import EmbeddedValkey
from tests.support import DEADLINE, LiveServer, eventually

StartServer = Callable[[], LiveServer]
Log = Callable[[], list[str]]


def register_echo(routing: str = "echo") -> None:
    """Register the plain loop of the README."""

    @djmease.sender(routing=routing)
    def show(message: Any, clients_list: Any) -> None:
        for client in clients_list:
            client.write_message(message)


def register_async_echo(routing: str) -> None:
    @djmease.sender(routing=routing)
    async def show_async(message: Any, clients_list: Any) -> None:
        for client in clients_list:
            await client.write_message(message)


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


def test_the_order_of_parameters_that_the_readme_says_in_prose_works_too(start_server: StartServer) -> None:
    @djmease.sender(routing="prose")
    def send(clients_list: Any, routing: str, message: Any) -> None:
        clients_list.send(f"{routing}: {message}")

    client = start_server().connect()
    djmease.publish("prose", "hi")
    assert client.recv(5) == "prose: hi"


def test_a_route_in_settings_needs_no_python(start_server: StartServer, settings: Any) -> None:
    settings.MEASE_ROUTES = {"news": "djmease.senders.broadcast"}
    client = start_server().connect()
    djmease.publish("news", {"text": "Hello world !", "when": None})
    assert client.recv(5) == '{"text":"Hello world !","when":null}'


def test_another_clients_library_is_served_too(start_server: StartServer) -> None:
    register_echo()
    server = start_server()
    connection = create_connection(server.url, timeout=5)
    try:
        eventually(lambda: len(server.server.clients) == 1)
        djmease.publish("echo", b"\x00\xff")
        assert connection.recv() == b"\x00\xff"
    finally:
        connection.close()


@pytest.mark.parametrize("kind", ["def", "async", "both"])
def test_a_thousand_messages_reach_two_hundred_clients_once_and_in_order(start_server: StartServer, kind: str) -> None:
    if kind in ("def", "both"):
        register_echo("count")
    if kind in ("async", "both"):
        register_async_echo("count")
    each = 2 if kind == "both" else 1
    server = start_server()
    connections = [server.connect() for _ in range(200)]
    for index in range(1000):
        djmease.publish("count", str(index))
    djmease.publish("count", "end")
    for connection in connections:
        received = [connection.recv(DEADLINE) for _ in range(1001 * each)]
        assert received == [str(index) for index in range(1000) for _ in range(each)] + ["end"] * each


def test_redis_cli_can_publish_plain_text(start_server: StartServer, redis: str, valkey: EmbeddedValkey) -> None:
    register_echo("websocket")
    client = start_server().connect()
    with Redis(unix_socket_path=str(valkey.socket)) as cli:
        assert cli.publish(f"{redis}websocket", "Hello world !") == 1
    assert client.recv(5) == "Hello world !"


def test_rubbish_on_the_redis_channel_is_refused_and_logged_and_hurts_nothing(
    start_server: StartServer, redis: str, valkey: EmbeddedValkey, log_of: Log
) -> None:
    register_echo()
    client = start_server().connect()
    with Redis(unix_socket_path=str(valkey.socket)) as cli:
        cli.publish(f"{redis}echo", b"\xff" + os.urandom(10_000))
        cli.publish(f"{redis}echo", b"\x00mease2 t id 0\nfrom the future")
        cli.publish(f"{redis}we ird", "name")
        cli.publish(f"{redis}echo", b"\x00mease1 j id 0\n" + b"[" * 100_000)
    djmease.publish("echo", "after")
    assert client.recv(5) == "after"
    assert any("neither an envelope nor text" in line for line in log_of())


def test_a_message_that_a_publisher_sent_twice_arrives_once(
    start_server: StartServer, redis: str, valkey: EmbeddedValkey
) -> None:
    register_echo()
    client = start_server().connect()
    with Redis(unix_socket_path=str(valkey.socket)) as cli:
        for _ in range(3):
            cli.publish(f"{redis}echo", b"\x00mease1 t 0123456789abcdef 0.0\nonce")
    djmease.publish("echo", "after")
    assert [client.recv(5), client.recv(5)] == ["once", "after"]


def test_a_prefix_with_a_pattern_in_it_is_taken_literally(start_server: StartServer, settings: Any) -> None:
    register_echo()
    settings.MEASE_KEY_PREFIX += "[a*?]\\"
    client = start_server().connect()
    djmease.publish("echo", "hi")
    assert client.recv(5) == "hi"


def test_a_sender_that_raises_sleeps_or_writes_to_the_gone_hurts_nobody_else(
    start_server: StartServer, log_of: Log
) -> None:
    slow_is_done = threading.Event()
    gone: list[Any] = []

    @djmease.sender(routing="raise")
    def fail(message: Any) -> None:
        raise RuntimeError(f"no {message}")

    @djmease.sender(routing="slow")
    def sleep() -> None:
        slow_is_done.wait(DEADLINE)

    @djmease.sender(routing="gone")
    def write_to_the_gone(clients_list: Any) -> None:
        for client in gone:
            client.write_message("in vain")
            client.close(1000)
            client.ping()

    @djmease.opener
    def remember(client: Any) -> None:
        gone.append(client)

    for routing in ("raise", "slow", "gone", "good"):
        register_echo(routing)
    server = start_server()
    leaver = server.connect()
    client = server.connect()
    del gone[1:]
    leaver.close()
    eventually(lambda: len(server.server.clients) == 1)
    djmease.publish("slow", "slow")
    for routing in ("raise", "gone", "good"):
        djmease.publish(routing, routing)
    # Different routings do not wait for each other, so that these come in any order, and the slow one last.
    assert {client.recv(5) for _ in range(3)} == {"raise", "gone", "good"}
    slow_is_done.set()
    assert client.recv(5) == "slow"
    assert any("fail raised RuntimeError('no raise') for raise" in line for line in log_of())


def test_a_thousand_slow_messages_of_one_routing_do_not_hold_up_another(start_server: StartServer) -> None:
    register_echo("fast")

    @djmease.sender(routing="slow")
    def sleep() -> None:
        time.sleep(0.01)

    client = start_server().connect()
    for _ in range(100):
        djmease.publish("slow", "")
    started = time.monotonic()
    djmease.publish("fast", "fast")
    assert client.recv(5) == "fast"
    assert time.monotonic() - started < 0.9, "the hundred slow ones take a second"


def test_redis_is_killed_and_comes_back_and_messages_arrive_without_a_restart(
    start_server: StartServer, own_valkey: EmbeddedValkey, log_of: Log
) -> None:
    register_echo()
    client = start_server().connect()
    djmease.publish("echo", "before")
    assert client.recv(5) == "before"
    os.kill(int((own_valkey.home / "valkey.pid").read_text()), signal.SIGKILL)
    eventually(lambda: any(line.startswith("Redis is gone") for line in log_of()), "the log line")
    with pytest.raises(djmease.PublishError):
        djmease.publish("echo", "meanwhile")
    own_valkey.ensure_running()
    restarted = time.monotonic()
    eventually(lambda: any(line.startswith("Redis is back after") for line in log_of()), "coming back")
    assert time.monotonic() - restarted < 2
    djmease.publish("echo", "after")
    assert client.recv(5) == "after"
    assert len([line for line in log_of() if line.startswith("Redis is gone")]) == 1


def test_all_clients_get_1012_and_all_closers_run_when_the_server_stops(start_server: StartServer) -> None:
    closed: list[str] = []

    @djmease.closer
    def say_goodbye(client: Any) -> None:
        closed.append(client.id)

    @djmease.closer
    async def say_goodbye_async(client: Any) -> None:
        closed.append(client.id)

    server = start_server()
    clients = [server.connect() for _ in range(20)]
    server.loop.call_soon_threadsafe(server.server.stop)
    for client in clients:
        with pytest.raises(ConnectionClosed) as caught:
            client.recv(DEADLINE)
        assert caught.value.rcvd is not None and caught.value.rcvd.code == 1012
    # A second order to stop would wait for no callback.
    eventually(lambda: not server._thread.is_alive(), "the end of the server")
    assert len(closed) == 40
    assert len(set(closed)) == 20


def test_a_server_that_is_asked_to_stop_does_not_wait_for_ever(
    start_server: StartServer, settings: Any, log_of: Log
) -> None:
    settings.MEASE_DRAIN_TIMEOUT = 0.2
    hangs = threading.Event()
    end = threading.Event()

    @djmease.sender(routing="stuck")
    def hang() -> None:
        hangs.set()
        end.wait(DEADLINE)

    server = start_server()
    server.connect()
    djmease.publish("stuck", "")
    assert hangs.wait(DEADLINE)
    server.stop()
    end.set()
    assert any("callbacks still run" in line for line in log_of())


def test_mease_path_is_the_only_websocket_where_it_is_set(start_server: StartServer, settings: Any) -> None:
    settings.MEASE_PATH = "/ws/"
    server = start_server()
    server.connect("ws/")
    with server.raw() as other:
        other.sendall(b"GET /other HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert other.recv(100).startswith(b"HTTP/1.1 404")


def test_a_port_that_refuses_redis_at_the_start_is_an_error(start_server: StartServer, settings: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    settings.MEASE_REDIS_URL = f"redis://127.0.0.1:{port}/0"
    with pytest.raises(Exception, match="127.0.0.1"):
        start_server()
