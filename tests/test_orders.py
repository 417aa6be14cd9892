"""Orders as they come: obeyed by name, answered where they are questions, and dropped where they are none."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest

from djmease.server.background import Background
from djmease.server.orders import Orders
from tests.support import DEADLINE

Log = Callable[[], list[str]]


def make_orders() -> Orders:
    return Orders(Background(logging.getLogger("djmease.server")))


def test_an_order_is_obeyed_by_its_name() -> None:
    obeyed: list[dict[str, Any]] = []
    orders = make_orders()
    orders.add({"sing": obeyed.append})
    orders.hear(b'{"order": "sing", "what": "a song"}')
    assert obeyed == [{"order": "sing", "what": "a song"}]


@pytest.mark.parametrize("payload", [b"", b"[1]", b"7", b"\xff", b"[" * 100_000])
def test_what_is_no_order_is_said_and_dropped(payload: bytes, log_of: Log) -> None:
    make_orders().hear(payload)
    assert log_of() == [f"an order of {len(payload)} bytes is not a JSON object, and is dropped"]


@pytest.mark.parametrize("payload", [b"{}", b'{"order": null}', b'{"order": ["sing"]}', b'{"order": "dance"}'])
def test_an_order_that_is_not_known_is_said_and_dropped(payload: bytes, log_of: Log) -> None:
    orders = make_orders()
    orders.add({"sing": lambda _: None})
    orders.hear(payload)
    (line,) = log_of()
    assert line.startswith("an order is not known, and is dropped: ")


def test_a_question_is_answered_to_the_token_that_asks_and_a_failure_is_logged(log_of: Log) -> None:
    async def tell(order: dict[str, Any]) -> dict[str, Any]:
        return {"song": order["what"]}

    async def run() -> list[tuple[object, dict[str, Any]]]:
        answers: list[tuple[object, dict[str, Any]]] = []
        background = Background(logging.getLogger("djmease.server"))
        orders = Orders(background)
        orders.add_questions({"sing": tell}, lambda token, what: answers.append((token, what)))
        orders.obey({"order": "sing", "reply": "t"})
        orders.obey({"order": "sing", "reply": "t", "what": "a song"})
        async with asyncio.timeout(DEADLINE):
            while background._tasks:
                await asyncio.sleep(0)
        return answers

    assert asyncio.run(run()) == [("t", {"song": "a song"})]
    assert log_of() == ["the answer to sing has failed"]
