"""Reports of servers for tests, and how they come into Redis without a server."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import Any

from redis import Redis

from djmease import connections
from djmease.reports import (
    CallbackReport,
    History,
    MessageReport,
    RoutingReport,
    SenderTrace,
    ServerReport,
    to_plain,
)

DESCRIBED = ("kind", "path", "source", "is_async", "routing")


def redis_client() -> Any:
    return Redis(connection_pool=connections.publisher_pool())


def server(server_id: str = "5f2c1ab09d3e4477", **fields: Any) -> ServerReport:
    """Return what a server says that is well, with other values for some fields."""
    now = time.time()
    given: dict[str, Any] = {
        "id": server_id,
        "host": "web1",
        "pid": 4711,
        "version": "0.1.0",
        "settings": "shop.settings",
        "registry": "a1b2c3",
        "addresses": ("ws://127.0.0.1:8001/",),
        "started_at": now - 7500,
        "reported_at": now - 0.5,
        "interval": 2.0,
        "clients": 12,
        "memory": 61 * 1024 * 1024,
        "cpu_share": 0.034,
        "loop_delay": 0.0003,
        "lag_p50": 0.0008,
        "lag_p99": 0.0041,
        "history": History(received=(1.0, 3.5), sent=(100.0, 340.0)),
    }
    return ServerReport(**{**given, **fields})


def sender(routing: str = "news", path: str = "djmease.senders.broadcast", **fields: Any) -> CallbackReport:
    source = fields.pop("source", f"MEASE_ROUTES[{routing!r}]")
    given: dict[str, Any] = {"kind": "sender", "routing": routing, "path": path, "source": source, "is_async": False}
    return CallbackReport(**{**given, **fields})


def receiver(path: str = "chat.live.say", **fields: Any) -> CallbackReport:
    given: dict[str, Any] = {"kind": "receiver", "path": path, "source": "MEASE_RECEIVERS[0]", "is_async": False}
    return CallbackReport(**{**given, **fields})


def message(message_id: str = "00000000000000a1", **fields: Any) -> MessageReport:
    given: dict[str, Any] = {
        "id": message_id,
        "routing": "news",
        "size": 120,
        "published_at": time.time() - 3,
        "senders": ("djmease.senders.broadcast",),
        "reached": 12,
        "errors": 0,
        "lag": 0.0009,
    }
    return MessageReport(**{**given, **fields})


def unrouted(routing: str, count: int = 1, ago: float = 5.0) -> RoutingReport:
    return RoutingReport(routing=routing, count=count, last_at=time.time() - ago)


def sender_trace(path: str = "djmease.senders.broadcast", **fields: Any) -> SenderTrace:
    given: dict[str, Any] = {"source": "MEASE_ROUTES['news']", "seconds": 0.0002, "handed": 3, "reached": 3}
    return SenderTrace(path=path, **{**given, **fields})


def fields_of(report: ServerReport) -> dict[str, Any]:
    """Return the two fields of a server's hash in Redis, before they are made JSON."""
    said = to_plain(replace(report, callbacks=()))
    described, counts = [], {}
    for index, callback in enumerate(to_plain(report)["callbacks"]):
        described.append({name: callback.pop(name) for name in DESCRIBED})
        counts[str(index)] = callback
    return {"report": {**said, "callbacks": counts}, "callbacks": described}


def put(*reports: ServerReport) -> None:
    """Write reports into Redis, as servers do."""
    for report in reports:
        put_raw(report.id, **{name: json.dumps(value) for name, value in fields_of(report).items()})


def put_raw(server_id: str, **fields: Any) -> None:
    """Write a server's hash as it is."""
    redis = redis_client()
    redis.zadd(connections.names().servers_key, {server_id: time.time()})
    redis.delete(connections.names().server_key(server_id))
    redis.hset(connections.names().server_key(server_id), mapping=fields)
