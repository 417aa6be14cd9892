"""Numbers, sizes and times as people read them."""

from __future__ import annotations

import time
from datetime import UTC

import pytest
from django.utils import timezone, translation

from djmease import formats


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0.0, "0 ms"),
        (0.00002, "<0.1 ms"),
        (0.0012, "1.2 ms"),
        (0.034, "34 ms"),
        (1.26, "1.3 s"),
        (5, "5 s"),
        (59.6, "60 s"),
        (60.0, "1 min"),
        (7200.0, "2 h"),
        (86_400.0 * 3, "3 d"),
    ],
)
def test_a_length_of_time_has_one_unit(value: float | None, text: str) -> None:
    assert formats.seconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.4, "0 s"), (59.0, "59 s"), (61.0, "1 min 1 s"), (11_520.0, "3 h 12 min"), (90_000.0, "1 d 1 h")],
)
def test_a_long_time_has_two_units(value: float, text: str) -> None:
    assert formats.long_seconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0"), (0.01, "<0.1"), (0.5, "0.5"), (9.94, "9.9"), (10.4, "10"), (12_345.0, "12,345")]
)
def test_a_rate_is_as_exact_as_it_is_of_use(value: float, text: str) -> None:
    assert formats.rate(value) == text


def test_what_was_is_told_as_so_long_ago() -> None:
    now = time.time()
    assert [formats.ago(at, now) for at in (None, now, now - 12.7, now - 300)] == [
        "–",
        "just now",
        "12 s ago",
        "5 min ago",
    ]


def test_a_clock_that_is_ahead_is_just_now() -> None:
    assert formats.ago(200.0, 100.0) == "just now"


def test_the_time_of_another_day_has_its_date() -> None:
    with timezone.override(UTC):
        assert formats.clock(0.0) == "1970-01-01 00:00:00"
    assert len(formats.clock(time.time())) == len("12:03:04")


def test_thousands_and_decimals_are_those_of_the_language() -> None:
    with translation.override("de"):
        assert (formats.count(1234567), formats.rate(1.5), formats.count(999)) == ("1.234.567", "1,5", "999")
