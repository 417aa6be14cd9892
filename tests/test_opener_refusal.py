"""An opener that raises ``PermissionDenied`` lets the client not in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.core.exceptions import PermissionDenied
from websockets.sync.client import connect

import djmease
from djmease.server.protocol import CLOSE
from djmease.test import connect as connect_page
from tests.support import LiveServer, eventually, masked_frame
from tests.test_hostile import RawClient

StartServer = Callable[[], LiveServer]
Log = Callable[[], list[str]]
KINDS = ["def", "async def"]


def denial(client: RawClient) -> tuple[int, str]:
    """Return with what the next frame closes the client, which answers it."""
    opcode, payload = client.frame() or (0, b"")
    assert opcode == CLOSE
    client.send(CLOSE, payload[:2])
    assert client.frame() is None
    return int.from_bytes(payload[:2]), payload[2:].decode()


def turn_away(kind: str, reason: str, ran: list[str]) -> None:
    """Register an opener of that kind that lets nobody in, and callbacks that say when they run."""

    def deny(client: Any) -> None:
        ran.append("denies")
        raise PermissionDenied(reason)

    async def deny_async(client: Any) -> None:
        deny(client)

    djmease.opener(deny if kind == "def" else deny_async)

    @djmease.opener
    def later() -> None:
        ran.append("later opener")

    @djmease.opener
    async def later_async() -> None:
        ran.append("later async opener")

    @djmease.receiver
    def hear() -> None:
        ran.append("receiver")

    @djmease.receiver(user_passes_test=lambda user: ran.append("test"))
    def hear_some() -> None: ...

    @djmease.receiver
    async def hear_async() -> None:
        ran.append("async receiver")

    @djmease.closer
    def leave(client: Any, clients_list: Any) -> None:
        ran.append(f"closer, {len(clients_list)} clients")


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_closed_with_4403_and_the_reason_and_nothing_but_its_closers_runs(
    start_server: StartServer, log_of: Log, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    ran: list[str] = []
    turn_away(kind, "members only", ran)
    server = start_server()
    with RawClient(server, masked_frame(1, b"I say it at once")).shake_hands() as client:
        assert denial(client) == (4403, "members only")
    eventually(lambda: len(ran) > 1)
    eventually(server.server._dispatch._idle.is_set)
    assert ran == ["denies", "closer, 0 clients"]
    assert (server.server._dispatch.turned_away, server.server._dispatch.errors) == (1, 0)
    lines = [record for record in caplog.records if "members only" in record.getMessage()]
    assert len(lines) == 1 and lines[0].exc_info is None and "is turned away by" in lines[0].getMessage()


def test_others_are_let_in_and_are_never_shown_who_was_not(start_server: StartServer) -> None:
    @djmease.opener
    def only_red(client: Any) -> None:
        client.join("a")
        if client.get_query_argument("colour", "") != "red":
            raise PermissionDenied("not red")

    @djmease.receiver
    def count(client: Any, clients_list: Any) -> None:
        client.send([len(clients_list), len(clients_list.group("a"))])

    server = start_server()
    red = server.connect("?colour=red")
    with connect(server.url) as blue:
        with pytest.raises(Exception, match="4403"):
            blue.recv(5)
        red.send("how many?")
        assert red.recv(5) == "[1,1]"


def test_who_is_turned_away_hears_no_more_of_the_group_it_was_put_into(start_server: StartServer) -> None:
    """Whether or not it has answered that it closes."""

    @djmease.opener
    def enter_and_deny(client: Any) -> None:
        client.join("a")
        raise PermissionDenied("not you")

    server = start_server()
    with RawClient(server).shake_hands() as client:
        assert client.frame() == (CLOSE, (4403).to_bytes(2) + b"not you")
        assert server.server.clients.in_groups(["a"]) == {}
        assert server.server._subscriptions._held == {}


def test_a_long_reason_is_cut_to_what_a_close_frame_holds(start_server: StartServer) -> None:
    turn_away("def", "ä" * 100, [])
    with RawClient(start_server()).shake_hands() as client:
        assert denial(client) == (4403, "ä" * 61)


def test_a_message_published_meanwhile_reaches_the_others(start_server: StartServer) -> None:
    """Its body may be anything: a dict has no hash."""

    @djmease.sender(routing="news")
    def write(message: Any, clients_list: Any) -> None:
        clients_list.send(message)

    @djmease.opener
    def deny(client: Any) -> None:
        if client.get_query_argument("in", None) is None:
            raise PermissionDenied

    server = start_server()
    page = server.connect("?in=1")
    with RawClient(server).shake_hands() as client:
        assert denial(client) == (4403, "")
        djmease.publish("news", {"a": 1})
        assert page.recv(5) == '{"a":1}'


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_of_a_test_is_closed_with_4403_too(kind: str) -> None:
    ran: list[str] = []
    turn_away(kind, "members only", ran)
    with connect_page() as page:
        assert page.close_code == 4403
        page.send("x")
    assert ran == ["denies", "closer, 0 clients"]


def test_a_permission_that_a_receiver_lacks_closes_nothing(start_server: StartServer, log_of: Log) -> None:
    @djmease.receiver
    def hear(client: Any, message: str) -> None:
        if message == "no":
            raise PermissionDenied("not this one")
        client.send("heard")

    page = start_server().connect()
    page.send("no")
    page.send("yes")
    assert page.recv(5) == "heard"
    assert any("raised PermissionDenied('not this one')" in line for line in log_of())
