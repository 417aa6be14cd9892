"""What all have in common who talk to Redis: when they try again, and what they say of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest
from redis.exceptions import RedisError, ResponseError

from djmease import connections
from djmease.server import link
from djmease.server.link import Access, Backoff, Link, Trouble

Log = Callable[[], list[str]]
LOGGER = logging.getLogger("djmease.server")


def make_access() -> Access:
    return Access(connect=connections.listener_connection)


def make_trouble(**options: Any) -> Trouble:
    return Trouble(make_access(), LOGGER, "it fails: %s", **options)


def test_each_attempt_waits_longer_than_the_last_up_to_a_limit_until_one_goes_well() -> None:
    backoff = Backoff()
    waits = [backoff.next() for _ in range(10)]
    for number, seconds in enumerate(waits):
        most = min(link.MAX_BACKOFF, link.FIRST_BACKOFF * 2**number)
        assert most / 2 <= seconds <= most
    backoff.reset()
    assert backoff.next() <= link.FIRST_BACKOFF


def test_what_is_wrong_is_said_once_until_something_else_is(log_of: Log) -> None:
    trouble = make_trouble()
    for text in ("one", "one", "two", "two"):
        trouble.note(OSError(text))
        assert (trouble.reason, trouble.text) == (text, f"it fails: {text}")
    trouble.note(None)
    assert trouble.reason is None
    trouble.note(OSError("two"))
    assert log_of() == ["it fails: one", "it fails: two", "it fails: two"]


def test_that_it_is_well_again_is_said_once_by_those_who_have_a_text_for_it(log_of: Log) -> None:
    trouble = make_trouble(well="it is well again")
    for error in (None, OSError("no"), None, None):
        trouble.note(error)
    assert log_of() == ["it fails: no", "it is well again"]


def test_a_reason_that_was_said_already_is_not_said_again(log_of: Log) -> None:
    trouble = make_trouble(reason="one")
    trouble.note(OSError("one"))
    trouble.note(OSError("two"))
    assert log_of() == ["it fails: two"]


def test_a_link_sends_commands_in_one_go_and_connects_anew_after_a_refusal(redis: str) -> None:
    async def run() -> None:
        one = Link(make_access(), timeout=5.0)
        assert await one.execute([]) == [] and not one.is_connected
        key = f"{redis}key"
        assert await one.execute([("SET", key, "1"), ("GET", key), ("DEL", key)]) == [b"OK", b"1", 1]
        assert one.is_connected
        with pytest.raises(ResponseError, match="unknown command"):
            await one.execute([("NONE",)])
        assert not one.is_connected
        assert await one.execute([("GET", key)]) == [None]
        await one.drop()

    asyncio.run(run())


def test_a_link_to_a_redis_that_is_away_raises_and_keeps_no_connection(settings: Any, redis: str) -> None:
    settings.MEASE_REDIS_URL = "redis://127.0.0.1:1/0"

    async def run() -> None:
        one = Link(make_access(), timeout=5.0)
        with pytest.raises((RedisError, OSError)):
            await one.execute([("GET", "a")])
        assert not one.is_connected

    asyncio.run(run())
