"""Closers come on time and once, whatever else of their client, or of others, hangs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import djmease
from djmease.server import workers as workers_module
from tests.support import DEADLINE, HANDSHAKE, LiveServer, eventually, masked_frame

StartServer = Callable[[], LiveServer]
Log = Callable[[], list[str]]


@pytest.fixture
def may_end() -> Iterator[threading.Event]:
    """What hanging callbacks wait for; set at the end of the test."""
    may_end = threading.Event()
    yield may_end
    may_end.set()


@pytest.fixture(autouse=True)
def quick(settings: Any) -> None:
    settings.MEASE_SLOW_CALLBACK_TIMEOUT = 0.2


def is_idle(server: LiveServer) -> bool:
    dispatch = server.server._dispatch
    return server.call(lambda: dispatch._idle.is_set() and not dispatch._client_lanes and dispatch.heard.size == 0)


def test_closers_do_not_wait_for_a_def_receiver_that_hangs_and_nothing_runs_behind_them(
    start_server: StartServer, may_end: threading.Event, log_of: Log
) -> None:
    events: list[str] = []

    @djmease.receiver
    def hang(message: str) -> None:
        events.append(message)
        may_end.wait(DEADLINE)

    @djmease.closer
    def on_close(client: Any, clients_list: Any) -> None:
        events.append(f"closed, {client in clients_list}")

    @djmease.closer
    async def on_close_too() -> None:
        events.append("closed too")

    server = start_server()
    client = server.connect()
    for message in ("one", "two", "three"):
        client.send(message)
    eventually(lambda: events == ["one"])
    client.close()
    eventually(lambda: len(events) == 3)
    assert events == ["one", "closed, False", "closed too"]
    assert not server.server.clients.snapshot()
    assert not is_idle(server)
    (line,) = [line for line in log_of() if "wait no longer" in line]
    assert "; 2 calls behind that are dropped (2 so far)" in line
    may_end.set()
    eventually(lambda: is_idle(server))
    assert len(events) == 3


def test_closers_do_not_wait_for_an_async_receiver_that_hangs(start_server: StartServer) -> None:
    events: list[str] = []
    may_go_on: list[asyncio.Event] = []

    @djmease.receiver
    async def hang(message: str) -> None:
        events.append(message)
        may_go_on.append(asyncio.Event())
        await may_go_on[0].wait()
        events.append("returned")

    @djmease.closer
    def on_close() -> None:
        events.append("closed")

    server = start_server()
    client = server.connect()
    client.send("one")
    client.send("two")
    eventually(lambda: events == ["one"])
    client.close()
    eventually(lambda: events == ["one", "closed"])
    server.call(may_go_on[0].set)
    eventually(lambda: is_idle(server))
    assert events == ["one", "closed", "returned"]


@pytest.mark.parametrize("is_async", [False, True])
def test_closers_do_not_wait_for_an_opener_that_hangs_and_the_client_is_never_listed(
    start_server: StartServer, may_end: threading.Event, is_async: bool
) -> None:
    events: list[str] = []
    may_go_on: list[asyncio.Event] = []

    def hang() -> None:
        events.append("opening")
        may_end.wait(DEADLINE)

    async def hang_async() -> None:
        events.append("opening")
        may_go_on.append(asyncio.Event())
        await may_go_on[0].wait()

    djmease.opener(hang_async if is_async else hang)

    @djmease.opener
    def second() -> None:
        events.append("never")

    @djmease.receiver
    def receive() -> None:
        events.append("never")

    @djmease.closer
    def on_close() -> None:
        events.append("closed")

    server = start_server()
    with server.raw() as client:
        client.sendall(HANDSHAKE + masked_frame(1, b"early"))
        eventually(lambda: events == ["opening"])
    eventually(lambda: events == ["opening", "closed"])
    may_end.set()
    if is_async:
        server.call(may_go_on[0].set)
    eventually(lambda: is_idle(server))
    assert events == ["opening", "closed"]
    assert not server.server.clients.snapshot()


def test_a_receiver_whose_rule_hangs_does_not_run_behind_the_closers(
    start_server: StartServer, may_end: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []

    def hang(rule: Any, user: Any) -> None:
        events.append("asked")
        may_end.wait(DEADLINE)

    @djmease.receiver(login_required=True)
    def receive() -> None:
        events.append("never")

    @djmease.closer
    def on_close() -> None:
        events.append("closed")

    server = start_server()
    (receiver,) = server.server._dispatch._registry.receivers
    monkeypatch.setattr(type(receiver.rule), "refusal", hang)
    client = server.connect()
    client.send("x")
    eventually(lambda: events == ["asked"])
    client.close()
    eventually(lambda: events == ["asked", "closed"])
    may_end.set()
    eventually(lambda: is_idle(server))
    assert events == ["asked", "closed"]


def test_closers_run_on_time_while_all_threads_hang_each_once(
    start_server: StartServer, settings: Any, may_end: threading.Event
) -> None:
    settings.MEASE_MAX_WORKERS = 3
    hung: list[str] = []
    closed: list[str] = []

    @djmease.receiver
    def hang(client: Any) -> None:
        hung.append(client.id)
        may_end.wait(DEADLINE)

    @djmease.closer
    def on_close(client: Any) -> None:
        closed.append(client.id)

    server = start_server()
    clients = [server.connect() for _ in range(6)]
    for client in clients:
        client.send("x")
    eventually(lambda: len(hung) == 2)
    for client in clients:
        client.close()
    eventually(lambda: len(closed) == 6)
    may_end.set()
    eventually(lambda: is_idle(server))
    assert len(set(closed)) == len(closed) == 6
    assert len(hung) == 2


def test_closers_of_others_run_while_closers_hang_in_all_threads(
    start_server: StartServer, settings: Any, may_end: threading.Event
) -> None:
    settings.MEASE_MAX_WORKERS = 2
    begun: list[str] = []
    behind: list[str] = []

    @djmease.closer
    def on_close(client: Any) -> None:
        begun.append(client.id)
        if client.storage.get("hangs"):
            may_end.wait(DEADLINE)

    @djmease.closer
    def second(client: Any) -> None:
        behind.append(client.id)

    server = start_server()
    clients = [server.connect() for _ in range(5)]
    for handler in list(server.server.clients.snapshot())[:4]:
        handler.storage["hangs"] = True
    for client in clients:
        client.close()
    eventually(lambda: len(begun) == len(behind) == 5)
    assert server.server._dispatch.workers._abandoned >= 2
    may_end.set()
    eventually(lambda: is_idle(server))
    eventually(lambda: server.server._dispatch.workers._abandoned == 0)
    assert len(set(begun)) == len(begun) == 5
    assert len(set(behind)) == len(behind) == 5


def test_threads_left_to_closers_that_hang_are_bounded(
    start_server: StartServer, settings: Any, may_end: threading.Event, log_of: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers_module, "MAX_ABANDONED", 1)
    settings.MEASE_MAX_WORKERS = 2
    begun: list[int] = []

    @djmease.closer
    def on_close() -> None:
        begun.append(1)
        may_end.wait(DEADLINE)

    server = start_server()
    clients = [server.connect() for _ in range(5)]
    for client in clients:
        client.close()
    eventually(lambda: any("1 closers hang, each in a thread of its own; 2 more wait" in line for line in log_of()))
    assert len(begun) == 3
    may_end.set()
    eventually(lambda: is_idle(server))
    assert len(begun) == 5


def test_a_server_that_stops_while_callbacks_hang_runs_the_closers_and_ends_in_time(
    start_server: StartServer,
    settings: Any,
    may_end: threading.Event,
    log_of: Log,
) -> None:
    settings.MEASE_DRAIN_TIMEOUT = 0.6
    settings.MEASE_SLOW_CALLBACK_TIMEOUT = 1000
    events: list[str] = []

    @djmease.receiver
    def hang(message: str) -> None:
        events.append(message)
        may_end.wait(DEADLINE)

    @djmease.closer
    def on_close() -> None:
        events.append("closed")

    server = start_server()
    gone, staying = server.connect(), server.connect()
    gone.send("gone")
    staying.send("staying")
    eventually(lambda: len(events) == 2)
    gone.close()
    eventually(lambda: server.call(lambda: len(server.server._limits.clients) == 1))
    server.stop()
    assert sorted(events) == ["closed", "closed", "gone", "staying"]
    assert any("callbacks still run" in line for line in log_of())
