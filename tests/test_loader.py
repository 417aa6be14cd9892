"""What is known of routings by their names alone; test_checks has the faults that loading finds."""

from __future__ import annotations

import difflib
import time
from collections.abc import Callable
from typing import Any

import djmease
from djmease.loader import closest_routings, is_sent
from djmease.registry import declarations, matches

NAMES = [f"shop.part{number}.changed" for number in range(1000)]


def declare(*routings: Any) -> None:
    for routing in routings:
        djmease.sender(routing=routing)(lambda message: None)


def quickest(function: Callable[[], object]) -> float:
    """Return the seconds that the quickest of some calls took."""
    times = []
    for _ in range(5):
        began = time.perf_counter()
        function()
        times.append(time.perf_counter() - began)
    return min(times)


def test_what_decorators_and_settings_say_later_counts_at_once(settings: Any) -> None:
    settings.MEASE_ROUTES = {}
    assert not is_sent("news") and closest_routings("news") == []
    declare("news", ["chat.*", "chat.?"])
    assert is_sent("news") and is_sent("chat.room") and not is_sent("new")
    assert closest_routings("new") == ["news"]
    settings.MEASE_ROUTES = {"news": None, "chat.*": None, "new": "djmease.senders.broadcast", "shop.*": "a.b"}
    assert not is_sent("news") and not is_sent("chat.room")
    assert is_sent("chat.1") and is_sent("shop.x") and is_sent("new")
    assert closest_routings("news") == ["new"]
    settings.MEASE_ROUTES["new"] = None
    settings.MEASE_ROUTES["shop.*"] = None
    assert not is_sent("new") and not is_sent("shop.x")
    del settings.MEASE_ROUTES["news"]
    assert is_sent("news")
    declarations.clear()
    declare("other", "else")
    assert is_sent("other") and not is_sent("news") and not is_sent("chat.1")


def test_a_name_that_is_switched_off_may_still_match_a_pattern(settings: Any) -> None:
    settings.MEASE_ROUTES = {"chat.1": None, "chat.*": "djmease.senders.broadcast"}
    declare("chat.1")
    assert is_sent("chat.1")


def test_a_decorator_with_what_is_no_routing_is_left_to_the_checks(settings: Any) -> None:
    settings.MEASE_ROUTES = {7: "a.b"}
    declare([7, None, ["x"]], "news")
    assert is_sent("news") and not is_sent("x")
    assert closest_routings("newz") == ["news"]


def test_a_thousand_declared_names_are_not_gone_through_for_each_message() -> None:
    declare(*NAMES)
    naive = quickest(lambda: any(matches(name, NAMES[-1]) for name in NAMES))
    assert quickest(lambda: is_sent(NAMES[-1])) < naive / 3


def test_what_looks_like_a_routing_is_looked_for_once() -> None:
    declare(*NAMES)
    naive = quickest(lambda: difflib.get_close_matches("shop.bart7.changed", NAMES, n=3, cutoff=0.5))
    assert quickest(lambda: closest_routings("shop.bart7.changed")) < naive / 3
    assert closest_routings("shop.bart7.changed")[0] == "shop.part7.changed"
