"""How a server goes: clients sent away one after another, what runs is finished, a second signal hurries."""

from __future__ import annotations

import gc
import http.client
import os
import resource
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tornado.iostream import IOStream
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

import djmease
from djmease.server import http as http_module
from djmease.server import server as server_module
from tests.support import DEADLINE, HANDSHAKE, LiveServer, Project, eventually

StartServer = Callable[[], LiveServer]
ECHO = """
import djmease

@djmease.receiver
def answer(client, message):
    client.write_message(message)
"""


def close_of(connection: Any) -> tuple[int, float]:
    """Return with which code a connection ends, and when."""
    with pytest.raises(ConnectionClosed):
        connection.recv(DEADLINE)
    return connection.protocol.close_code, time.monotonic()


def test_clients_are_sent_away_with_1012_one_after_another_and_those_who_wait_still_hear(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "DRAIN_RATE", 20)

    @djmease.sender(routing="news")
    def show(message: Any, clients_list: Any) -> None:
        clients_list.send(message)

    server = start_server()
    connections = [server.connect() for _ in range(20)]
    ends: list[tuple[int, float]] = []
    heard: list[Any] = []

    def watch(connection: Any) -> None:
        try:
            while True:
                heard.append(connection.recv(DEADLINE))
        except ConnectionClosed:
            ends.append((connection.protocol.close_code, time.monotonic()))

    threads = [threading.Thread(target=watch, args=(connection,)) for connection in connections]
    for thread in threads:
        thread.start()
    server.loop.call_soon_threadsafe(server.server.drain)
    eventually(lambda: len(ends) >= 2)
    djmease.publish("news", "still here")
    for thread in threads:
        thread.join(DEADLINE)
    times = sorted(at for _, at in ends)
    assert [code for code, _ in ends] == [1012] * 20
    assert times[-1] - times[0] > 0.3
    assert "still here" in heard


def test_a_second_drain_sends_all_away_at_once(start_server: StartServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "DRAIN_RATE", 0.1)
    server = start_server()
    connections = [server.connect() for _ in range(5)]
    server.loop.call_soon_threadsafe(server.server.drain)
    server.loop.call_soon_threadsafe(server.server.drain)
    assert [close_of(connection)[0] for connection in connections] == [1012] * 5


def test_the_drain_takes_no_longer_than_its_timeout(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch, settings: Any
) -> None:
    monkeypatch.setattr(server_module, "DRAIN_RATE", 0.01)
    settings.MEASE_DRAIN_TIMEOUT = 0.3
    server = start_server()
    connections = [server.connect() for _ in range(5)]
    began = time.monotonic()
    server.loop.call_soon_threadsafe(server.server.drain)
    assert max(close_of(connection)[1] for connection in connections) - began < DEADLINE / 2


def test_nobody_new_is_let_in_while_it_drains(start_server: StartServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "DRAIN_RATE", 0.1)
    server = start_server()
    server.connect()
    with server.raw() as early:
        early.sendall(HANDSHAKE[:-2])
        eventually(lambda: server.call(lambda: len(server.server._http._connections)) >= 1)
        server.loop.call_soon_threadsafe(server.server.drain)
        eventually(lambda: server.server.trouble)
        with pytest.raises(OSError):
            eventually(lambda: server.raw().close())
        early.sendall(HANDSHAKE[-2:])
        data = b""
        while b"\x88" not in data:
            chunk = early.recv(65536)
            assert chunk, data
            data += chunk
        assert b"\x03\xf4" in data


def test_sigterm_drains_lets_what_runs_end_and_exits_with_0(project: Project) -> None:
    project.registry(
        ECHO
        + "\nimport pathlib, time\n\n@djmease.sender(routing='slow')\ndef work(message):\n"
        + "    pathlib.Path('began').touch()\n"
        + "    while not pathlib.Path('go').exists():\n        time.sleep(0.01)\n"
        + "    pathlib.Path('done').write_text(message)\n"
    )
    server = project.start("run_websocket_server")
    with connect(f"ws://127.0.0.1:{server.port()}/") as client:
        project.run("shell", "-c", "import djmease; djmease.publish('slow', 'whole')")
        eventually(lambda: (project.home / "began").exists())
        server.send_signal(signal.SIGTERM)
        assert close_of(client)[0] == 1012
    project.write("go", "")
    assert server.wait() == 0
    assert (project.home / "done").read_text() == "whole"


def test_a_second_signal_does_not_wait_for_what_hangs(project: Project) -> None:
    project.registry(
        ECHO
        + "\nimport pathlib, threading\n\n@djmease.sender(routing='stuck')\ndef hang(message):\n"
        + "    pathlib.Path('began').touch()\n    threading.Event().wait()\n"
    )
    project.settings("MEASE_DRAIN_TIMEOUT = 3600")
    server = project.start("run_websocket_server")
    with connect(f"ws://127.0.0.1:{server.port()}/") as client:
        project.run("shell", "-c", "import djmease; djmease.publish('stuck', 'x')")
        eventually(lambda: (project.home / "began").exists())
        server.send_signal(signal.SIGTERM)
        assert close_of(client)[0] == 1012
    server.send_signal(signal.SIGTERM)
    assert server.wait() == 0


def answer(server: LiveServer, path: str, host: str = "10.0.0.9") -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=DEADLINE)
    try:
        connection.request("GET", path, headers={"Host": host})
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def test_the_health_of_a_server_is_told_to_probes_that_name_no_host(start_server: StartServer) -> None:
    server = start_server()
    assert answer(server, "/healthz") == (200, "ok\n")
    assert answer(server, "/readyz") == (200, "ok\n")


def test_a_server_that_stops_is_not_ready(start_server: StartServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "DRAIN_RATE", 0.1)
    server = start_server()
    server.connect()
    probe = http.client.HTTPConnection("127.0.0.1", server.port, timeout=DEADLINE)
    probe.request("GET", "/readyz")
    assert probe.getresponse().read() == b"ok\n"
    server.loop.call_soon_threadsafe(server.server.drain)
    eventually(lambda: server.server.trouble)
    probe.request("GET", "/readyz")
    response = probe.getresponse()
    assert (response.status, response.read()) == (503, b"the server stops\n")
    probe.close()


def test_a_thousand_half_open_connections_harm_nobody_and_leave_nothing(
    start_server: StartServer, settings: Any, many_files: None
) -> None:
    settings.MEASE_HANDSHAKE_TIMEOUT = 6

    @djmease.receiver
    async def answer(client: Any, message: Any) -> None:
        client.write_message(message)

    server = start_server()
    steady = server.connect()
    eventually(lambda: djmease.get_status().servers, "the server's connection for its reports")
    files, streams = len(os.listdir("/proc/self/fd")), alive_streams()
    half_open = [server.raw() for _ in range(1000)]
    for number, sock in enumerate(half_open):
        sock.sendall(HANDSHAKE[: number % len(HANDSHAKE)])
    # On a busy machine the first have had their time when the last come.
    eventually(lambda: server.call(lambda: len(server.server._http._connections)) >= 400)
    for number in range(100):
        steady.send(str(number))
        assert steady.recv(DEADLINE) == str(number)
    server.connect().close()
    eventually(lambda: server.call(lambda: len(server.server._http._connections)) == 0)
    for sock in half_open:
        sock.close()
    eventually(lambda: len(os.listdir("/proc/self/fd")) <= files)
    eventually(lambda: alive_streams() <= streams)


def alive_streams() -> int:
    gc.collect()
    return sum(issubclass(type(each), IOStream) for each in gc.get_objects())


@pytest.fixture
def many_files() -> Iterator[None]:
    """May open as many files as the system allows this process."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_unfinished_handshakes_are_bounded_and_make_room_again(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch, settings: Any
) -> None:
    monkeypatch.setattr(http_module, "MAX_HANDSHAKES", 50)
    settings.MEASE_HANDSHAKE_TIMEOUT = 3
    server = start_server()
    steady = server.connect()
    half_open = [server.raw() for _ in range(50)]
    eventually(lambda: server.call(lambda: len(server.server._http._connections)) == 50)
    with server.raw() as one_more:
        assert one_more.recv(1) == b""
    eventually(lambda: server.call(lambda: len(server.server._http._connections)) == 0)
    server.connect().close()
    steady.ping().wait(DEADLINE)
    for sock in half_open:
        sock.close()
    assert isinstance(half_open[0], socket.socket)
