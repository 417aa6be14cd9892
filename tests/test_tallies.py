"""What is counted: durations by classes, recent values, and bounded memories."""

from __future__ import annotations

import random
import threading
from typing import Any

import pytest

from djmease.messages import Message
from djmease.registry import Callback, Registry, Route, bind
from djmease.server.tallies import (
    BOUNDS,
    MAX_BODY,
    MAX_MESSAGES,
    MAX_UNROUTED,
    WINDOW,
    WINDOWS,
    Durations,
    Lags,
    Tallies,
)


def sender(function: Any, name: str = "app.show") -> Callback:
    return Callback(
        kind="sender", function=function, path=name, source="here", is_async=False, binding=bind(function, "sender")
    )


def message(number: int = 0, body: Any = "x") -> Message:
    return Message(routing="news", body=body, id=f"{number:016x}", published_at=0.0, size=1)


def show(message: Any) -> None: ...


def show_too(message: Any) -> None: ...


@pytest.mark.parametrize("part", [0.5, 0.99])
def test_a_quantile_is_right_within_a_fifth(part: float) -> None:
    durations, chance = Durations(), random.Random(7)
    values = sorted(chance.lognormvariate(-6, 2) for _ in range(2000))
    durations.turn(0.0)
    for value in values:
        durations.add(value)
    found = durations.recent(1.0).quantile(part)
    assert found == pytest.approx(values[int(part * len(values))], rel=0.2)


def test_what_is_outside_of_the_classes_is_in_the_first_or_last() -> None:
    durations = Durations()
    durations.turn(0.0)
    durations.add(0.0)
    durations.add(1e9)
    assert durations.recent(1.0).quantile(0.1) < BOUNDS[0]
    assert durations.recent(1.0).quantile(0.99) < BOUNDS[-1]
    assert durations.count == 2


def test_nothing_has_no_quantile() -> None:
    assert Durations().recent(1.0).quantile(0.5) is None


def test_recent_is_the_last_minute_and_a_rate_is_by_the_second() -> None:
    durations = Durations()
    now = 0.0
    for _ in range(3 * WINDOWS):
        durations.turn(now)
        for _ in range(20):
            durations.add(0.001)
        now += WINDOW
    recent = durations.recent(now)
    assert recent.count == 20 * WINDOWS
    assert recent.rate == pytest.approx(2.0)


def test_no_duration_is_lost_between_threads() -> None:
    durations = Durations()

    def add() -> None:
        for _ in range(20_000):
            durations.add(0.001)

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert durations.count == 80_000
    assert durations.seconds == pytest.approx(80.0)


def test_the_longest_lag_is_taken_once() -> None:
    lags = Lags()
    lags.add(0.2)
    lags.add(0.1)
    assert (lags.take_longest(), lags.take_longest()) == (0.2, 0.0)


def test_a_function_that_matches_twice_is_counted_under_its_first_route() -> None:
    routes = [Route(pattern=pattern, senders=(sender(show),), source="here") for pattern in ("news", "n*")]
    other = Route(pattern="*", senders=(sender(show_too, "app.too"),), source="here")
    tallies = Tallies(Registry(routes=[*routes, other]), is_on=True, shows_bodies=False)
    assert [tally.routing for tally in tallies.for_routing("news")] == ["news", "*"]
    assert [tally.routing for tally in tallies.for_routing("no")] == ["n*", "*"]
    assert [tally.routing for tally in tallies.all] == ["news", "n*", "*"]


def test_only_the_last_messages_and_routings_are_remembered() -> None:
    tallies = Tallies(Registry(), is_on=True, shows_bodies=False)
    for number in range(2 * MAX_MESSAGES):
        tallies.heard(message(number), ())
        tallies.unheard(f"routing.{number}")
    assert [int(record.id, 16) for record in tallies.records] == list(range(MAX_MESSAGES, 2 * MAX_MESSAGES))
    assert len(tallies.unrouted) == MAX_UNROUTED and f"routing.{2 * MAX_MESSAGES - 1}" in tallies.unrouted


def test_switched_off_only_a_traced_message_is_remembered() -> None:
    tallies = Tallies(Registry(), is_on=False, shows_bodies=False)
    assert tallies.heard(message(), ()) is None
    traced = Message(routing="news", body="x", id="1", published_at=0.0, size=1, trace="token")
    assert tallies.heard(traced, ()) is not None


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        ("x" * 1_000, "x" * MAX_BODY),
        (b"\x00\xff" * 1_000, ("00 ff " * 50)[:-1]),
        ({"text": "ü", "n": [1, None]}, '{"text":"ü","n":[1,null]}'),
        ([float("nan"), float("inf")], "[NaN,Infinity]"),
        (["x" * 50] * 100_000, ('["' + '","'.join(["x" * 50] * 4))[:MAX_BODY]),
    ],
)
def test_the_beginning_of_a_body_is_kept_where_the_setting_says_so(body: Any, shown: str) -> None:
    record = Tallies(Registry(), is_on=True, shows_bodies=True).heard(message(body=body), ())
    assert record is not None and record.body == shown


def test_the_body_of_a_message_is_not_kept_with_it() -> None:
    tallies = Tallies(Registry(), is_on=True, shows_bodies=False)
    record = tallies.heard(message(body="secret"), ())
    assert record is not None and record.body is None
    assert not any(getattr(record, name) == "secret" for name in record.__slots__)
