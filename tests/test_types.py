"""The protocols for annotations are what callbacks are really handed, and need no Tornado."""

from __future__ import annotations

import asyncio
import inspect
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from tornado.web import MissingArgumentError

import djmease
from djmease.server.client import Client as ServerClient
from djmease.server.clients import ClientsList as ServerClientsList
from djmease.test import TestClient, TestClientsList, connect
from djmease.types import Client, ClientsList
from tests.support import DEADLINE, ROOT, LiveServer


def members(protocol: type) -> list[str]:
    return [name for name in vars(protocol) if not name.startswith("_") or name in ("__len__", "__iter__")]


def methods(protocol: type) -> list[str]:
    return [name for name in members(protocol) if inspect.isfunction(vars(protocol)[name])]


def shape(function: Callable[..., Any]) -> list[tuple[str, Any, bool]]:
    """Return the names and kinds of the parameters, and whether each has a default."""
    return [
        (parameter.name, parameter.kind, parameter.default is not parameter.empty)
        for parameter in inspect.signature(function).parameters.values()
    ]


PAIRS = [
    (Client, ServerClient),
    (Client, TestClient),
    (ClientsList, ServerClientsList),
    (ClientsList, TestClientsList),
]


@pytest.mark.parametrize(("protocol", "real"), PAIRS)
def test_every_method_is_called_the_same_way(protocol: type, real: type) -> None:
    for name in methods(protocol):
        assert shape(getattr(real, name)) == shape(getattr(protocol, name)), name


def test_what_a_server_hands_to_callbacks_satisfies_the_protocols(start_server: Callable[[], LiveServer]) -> None:
    @djmease.receiver
    def receive(client: djmease.Client, clients_list: djmease.ClientsList) -> None:
        matches = isinstance(client, djmease.Client) and isinstance(clients_list, djmease.ClientsList)
        parts = (clients_list[0] is client, client in clients_list, len(clients_list[:1]) == 1, len(clients_list) == 1)
        client.send([matches, *parts, client.id.isalnum() and len(client.id) == 16, client.storage == {}])

    page = start_server().connect()
    page.send("x")
    assert page.recv(DEADLINE) == "[true,true,true,true,true,true,true]"


def test_what_a_test_hands_to_callbacks_satisfies_the_protocols() -> None:
    @djmease.opener
    def check(client: Any, clients_list: Any) -> None:
        client.send([isinstance(client, Client), isinstance(clients_list, ClientsList)])

    with connect() as page:
        assert page.received == [[True, True]]


WRONG: list[tuple[Callable[[Any, Any], Any], Any]] = [
    (lambda client, _: client.close(999), ValueError),
    (lambda client, _: client.close("4000"), TypeError),
    (lambda client, _: client.close(4000, b"enough"), TypeError),
    (lambda client, _: client.join("a b"), ValueError),
    (lambda client, _: asyncio.run(client.ajoin("a b")), ValueError),
    (lambda client, _: client.leave("a b"), ValueError),
    (lambda client, _: setattr(client, "presence", ["a"]), TypeError),
    (lambda client, _: setattr(client, "presence", {"a": "x" * 2000}), ValueError),
    (lambda client, _: client.send(object()), TypeError),
    (lambda client, _: client.write_message({"a": float("nan")}), ValueError),
    (lambda client, _: client.send("\ud800"), ValueError),
    (lambda client, _: client.send(["\ud800"]), ValueError),
    (lambda client, _: client.get_query_argument("nothing"), (MissingArgumentError, LookupError)),
    (lambda client, _: client.get_query_argument("blank"), None),
    (lambda _, clients_list: clients_list.send(object()), TypeError),
    (lambda _, clients_list: clients_list[:0].send(object()), TypeError),
    (lambda _, clients_list: clients_list.group("a b"), ValueError),
    (lambda _, clients_list: clients_list.user(None), ValueError),
]


def test_a_server_and_a_test_refuse_the_same(start_server: Callable[[], LiveServer]) -> None:
    raised: list[type[Exception] | None] = []

    @djmease.receiver
    def receive(client: Any, clients_list: Any) -> None:
        for call, _ in WRONG:
            try:
                call(client, clients_list)
            except Exception as error:
                raised.append(type(error))
            else:
                raised.append(None)
        client.send("as binary", binary=True)

    def told() -> list[bool]:
        told = [
            error is None if got is None else error is not None and issubclass(got, error)
            for got, (_, error) in zip(raised, WRONG, strict=True)
        ]
        raised.clear()
        return told

    page = start_server().connect("?blank=")
    page.send("x")
    assert page.recv(DEADLINE) == b"as binary"
    assert told() == [True] * len(WRONG)
    with connect(path="/?blank=") as test_page:
        test_page.send("x")
    assert test_page.received == [b"as binary"]
    assert told() == [True] * len(WRONG)


def test_anything_else_is_neither() -> None:
    assert not isinstance(object(), Client)
    assert not isinstance([], ClientsList)


def test_annotations_need_neither_tornado_nor_settings() -> None:
    code = "import sys, djmease.types; djmease.Client, djmease.ClientsList; print('tornado' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout == "False\n", done.stderr
