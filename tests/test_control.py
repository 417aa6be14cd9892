"""Orders to the servers: published in one attempt, and obeyed on the loop."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from djmease.embedded import EmbeddedValkey
from djmease.publishing import publish_control
from djmease.test import captured_messages, live_server
from tests.support import eventually

Log = Callable[[], list[str]]


def test_an_order_reaches_every_server_and_is_obeyed(start_server: Callable[[], Any]) -> None:
    obeyed: list[dict[str, Any]] = []
    for live in (start_server(), start_server()):
        live.server.orders.add({"recheck": obeyed.append})
    with captured_messages() as captured:
        assert publish_control({"order": "recheck", "user": "7"})
    eventually(lambda: len(obeyed) == 2, "both")
    assert obeyed == [{"order": "recheck", "user": "7"}] * 2
    assert not captured


@pytest.mark.parametrize("order", [{"order": "dance"}, {"order": ["dance"]}, {}])
def test_an_order_that_is_not_known_is_said_and_dropped(
    start_server: Callable[[], Any], log_of: Log, order: dict[str, Any]
) -> None:
    start_server()
    assert publish_control(order)
    eventually(lambda: any("an order is not known" in line for line in log_of()), "the complaint")


def test_an_order_reaches_a_live_server_without_any_redis(settings: Any) -> None:
    settings.MEASE_REDIS_URL = None
    obeyed: list[dict[str, Any]] = []
    with live_server() as live:
        live.server.orders.add({"recheck": obeyed.append})  # type: ignore[attr-defined]
        assert publish_control({"order": "recheck"})
        eventually(lambda: obeyed, "the order")


@pytest.mark.parametrize("url", [None, "redis://:secret@127.0.0.1:1/0", "redis://nowhere.invalid/0"])
def test_an_order_that_cannot_be_published_is_logged_at_once(settings: Any, url: str | None, log_of: Log) -> None:
    settings.MEASE_REDIS_URL, settings.DEBUG = url, False
    started = time.monotonic()
    assert publish_control({"order": "recheck"}) is False
    assert time.monotonic() - started < 2
    (line,) = log_of()
    assert "'recheck' could not be published" in line and "secret" not in line


def test_no_server_that_runs_is_no_failure(
    settings: Any, short_directory: Path, redis: str, valkey: EmbeddedValkey, log_of: Log
) -> None:
    assert publish_control({"order": "recheck"})
    settings.MEASE_REDIS_URL, settings.MEASE_EMBEDDED_DIR = "embedded://", str(short_directory / "valkey")
    assert publish_control({"order": "recheck"})
    assert not log_of()


def test_an_order_that_json_cannot_hold_is_a_fault_of_the_code() -> None:
    with pytest.raises(TypeError):
        publish_control({"order": object()})
