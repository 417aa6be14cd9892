"""Many callbacks and messages for the reports of servers that do not run."""

from __future__ import annotations

import time
from typing import Any

from djmease.reports import CallbackReport, History, MessageReport
from tests import reported


def numbered_sender(number: int = 0, **fields: Any) -> CallbackReport:
    given = {"path": f"shop.live.show_{number}", "source": f"shop.mease_registry:{number + 10}"}
    return reported.sender(fields.pop("routing", f"shop.item.{number}"), **{**given, **fields})


def numbered_message(number: int = 0, **fields: Any) -> MessageReport:
    given: dict[str, Any] = {
        "routing": f"shop.item.{number}",
        "published_at": time.time() - number,
        "senders": (f"shop.live.show_{number}",),
    }
    return reported.message(fields.pop("id", f"{number:016x}"), **{**given, **fields})


def flat_history(clients: float = 10, length: int = 150) -> History:
    flat = (float(clients),) * length
    return History(clients=flat, received=flat, sent=flat, lag=(0.003,) * length, loop_delay=(0.001,) * length)
