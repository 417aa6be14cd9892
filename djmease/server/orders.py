"""Orders that come from other processes by Redis: what is done for each, and who answers those that are questions."""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from djmease.server.background import Background
from djmease.server.complaints import Complaints

logger = logging.getLogger("djmease.server")

Order = dict[str, Any]
"""Its name is in ``order``, and in ``reply`` the token of whoever waits for an answer."""
Obey = Callable[[Order], None]
Tell = Callable[[Order], Awaitable[dict[str, Any]]]
Answer = Callable[[object, dict[str, Any]], None]
"""Gets the token, and what is told."""


class Orders:
    """Knows orders by their names, and obeys them; on the loop only."""

    def __init__(self, background: Background) -> None:
        self._background = background
        self._known: dict[str, Obey] = {}
        self._complaints = Complaints(logger)

    def add(self, orders: Mapping[str, Obey]) -> None:
        """Obey these orders too, each by its name."""
        self._known.update(orders)

    def add_questions(self, questions: Mapping[str, Tell], answer: Answer) -> None:
        """Obey these orders too, by answering them, which may take a while."""
        for name, tell in questions.items():
            self._known[name] = functools.partial(self._answer, name, tell, answer)

    def _answer(self, name: str, tell: Tell, answer: Answer, order: Order) -> None:
        self._background.run(f"the answer to {name}", _tell(tell, answer, order))

    def hear(self, payload: bytes) -> None:
        """Take an order as it came."""
        try:
            order = json.loads(payload)
        except (ValueError, RecursionError):
            order = None
        if isinstance(order, dict):
            self.obey(order)
        else:
            self._complaints.say("an order of %d bytes is not a JSON object, and is dropped", len(payload))

    def obey(self, order: Order) -> None:
        name = order.get("order")
        obey = self._known.get(name) if isinstance(name, str) else None
        if obey is None:
            self._complaints.say("an order is not known, and is dropped: %.100r", name)
        else:
            obey(order)


async def _tell(tell: Tell, answer: Answer, order: Order) -> None:
    answer(order.get("reply"), await tell(order))
