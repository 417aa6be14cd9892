"""Other servers on the prefix: who lives, and what is said about them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

import djmease
from djmease.embedded import EmbeddedValkey
from djmease.server import neighbours as neighbours_module
from djmease.server import server as server_module
from djmease.server.neighbours import Heartbeat, Neighbours, decode
from tests.support import eventually

Log = Callable[[], list[str]]
OWN = Heartbeat(id="own", host="a", pid=1, settings="site.settings", registry="123", version="1")


def make_neighbours(local: tuple[str, ...] = (), interval: float = 60.0) -> Neighbours:
    return Neighbours(OWN, local=local, interval=interval)


def test_a_heartbeat_says_what_was_said_and_more_is_left() -> None:
    said = json.loads(OWN.encode())
    assert decode(json.dumps({**said, "more": 1}).encode()) == OWN


def test_others_are_alive_until_their_heartbeat_stays_away() -> None:
    neighbours = make_neighbours(interval=0.05)
    other = replace(OWN, id="other")
    neighbours.hear(OWN.encode())
    neighbours.hear(other.encode())
    assert neighbours.alive == (other,)
    eventually(lambda: neighbours.alive == (), "its expiry")


def test_the_callbacks_that_see_one_process_are_named_once(log_of: Log) -> None:
    neighbours = make_neighbours(local=("chat.realtime.say", "chat.realtime.leave"))
    neighbours.hear(OWN.encode())
    assert not log_of()
    for name in ("one", "two", "one"):
        neighbours.hear(replace(OWN, id=name).encode())
    (line,) = log_of()
    assert "chat.realtime.say, chat.realtime.leave" in line


def test_a_server_like_this_one_is_nothing_to_speak_of(log_of: Log) -> None:
    make_neighbours().hear(replace(OWN, id="other").encode())
    assert not log_of()


@pytest.mark.parametrize("changes", [{"settings": "site.staging"}, {"registry": "456"}])
def test_a_server_that_differs_is_named_once_even_when_it_comes_back(changes: dict[str, str], log_of: Log) -> None:
    neighbours = make_neighbours(interval=0.01)
    other = replace(OWN, id="other", host="b", pid=77, **changes)
    for _ in range(2):
        neighbours.hear(other.encode())
        eventually(lambda: not neighbours.alive, "its expiry")
    (line,) = log_of()
    assert "process 77 on 'b'" in line and repr(other.settings) in line


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xff",
        b"[]",
        b"[" * 100_000,
        b'{"id": 1}',
        OWN.encode().replace(b'"own"', b"null"),
        OWN.encode().replace(b'"pid": 1', b'"pid": true'),
        OWN.encode().replace(b'"own"', b'"' + b"x" * 201 + b'"'),
    ],
)
def test_what_is_no_heartbeat_is_said_and_dropped(payload: bytes, log_of: Log) -> None:
    neighbours = make_neighbours()
    neighbours.hear(payload)
    assert neighbours.alive == ()
    assert any("is dropped" in line for line in log_of())


def test_endless_names_fill_neither_the_memory_nor_the_log(monkeypatch: pytest.MonkeyPatch, log_of: Log) -> None:
    monkeypatch.setattr(neighbours_module, "MAX_NEIGHBOURS", 10)
    neighbours = make_neighbours()
    for number in range(50):
        neighbours.hear(replace(OWN, id=str(number), registry="456").encode())
    assert [other.id for other in neighbours.alive] == [str(number) for number in range(40, 50)]
    assert len(log_of()) == 10


def test_two_servers_hear_of_each_other(
    start_server: Callable[[], Any], valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch, log_of: Log
) -> None:
    monkeypatch.setattr(server_module, "HEARTBEAT_INTERVAL", 0.1)

    @djmease.receiver
    def say(client: Any, message: Any, clients_list: Any) -> None: ...

    @djmease.receiver
    def note(client: Any, message: Any) -> None: ...

    one = start_server()
    two = start_server()
    eventually(lambda: len(one.server.neighbours.alive) == 1, "the second")
    eventually(lambda: len(two.server.neighbours.alive) == 1, "the first")
    lines = [line for line in log_of() if "a second server runs" in line]
    assert len(lines) == 2 and all("say" in line and "note" not in line for line in lines)

    @djmease.opener
    def greet(client: Any) -> None: ...

    start_server()
    eventually(lambda: len([line for line in log_of() if "other callbacks" in line]) >= 3, "the difference")
