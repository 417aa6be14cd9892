"""Reports of servers that do not run, written into a real Redis as servers write theirs."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from redis import Redis

from djmease import connections
from djmease.reports import CallbackReport, History, MessageReport, ServerReport

DESCRIBING = ("kind", "path", "source", "is_async", "routing")


def made_server(server_id: str = "one", **changes: Any) -> ServerReport:
    """Return the report of a server that is well."""
    now = time.time()
    report: dict[str, Any] = {
        "id": server_id,
        "host": "web-1",
        "pid": 4711,
        "version": "0.1.0",
        "settings": "site.settings",
        "registry": "f00d",
        "addresses": ("ws://127.0.0.1:8001/",),
        "started_at": now - 3600,
        "reported_at": now,
        "interval": 2.0,
    }
    return ServerReport(**{**report, **changes})


def made_sender(number: int = 0, **changes: Any) -> CallbackReport:
    report: dict[str, Any] = {
        "kind": "sender",
        "routing": f"shop.item.{number}",
        "path": f"shop.live.show_{number}",
        "source": f"shop.mease_registry:{number + 10}",
        "is_async": False,
    }
    return CallbackReport(**{**report, **changes})


def made_message(number: int = 0, **changes: Any) -> MessageReport:
    report: dict[str, Any] = {
        "id": f"{number:016x}",
        "routing": f"shop.item.{number}",
        "size": 120,
        "published_at": time.time() - number,
        "senders": (f"shop.live.show_{number}",),
        "reached": 17,
        "errors": 0,
        "lag": 0.004,
    }
    return MessageReport(**{**report, **changes})


def made_history(clients: float = 10, length: int = 150) -> History:
    flat = tuple(float(clients) for _ in range(length))
    return History(clients=flat, received=flat, sent=flat, lag=(0.003,) * length, loop_delay=(0.001,) * length)


def write_report(server: ServerReport) -> None:
    """Write a report where ``get_status`` looks."""
    said = plain(server)
    callbacks = said.pop("callbacks")
    described = [{name: each[name] for name in DESCRIBING} for each in callbacks]
    said["callbacks"] = {
        str(index): {name: value for name, value in each.items() if name not in DESCRIBING}
        for index, each in enumerate(callbacks)
        if any(each[field.name] for field in fields(CallbackReport) if field.name not in DESCRIBING)
    }
    redis = Redis(connection_pool=connections.publisher_pool())
    key = f"{connections.server_prefix()}{server.id}"
    redis.hset(key, mapping={"report": json.dumps(said), "callbacks": json.dumps(described)})
    redis.zadd(connections.servers_key(), {server.id: server.reported_at})


def plain(value: Any) -> Any:
    """Return what JSON can hold of a report."""
    if is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return dict(value)
    return [plain(each) for each in value] if isinstance(value, tuple) else value
