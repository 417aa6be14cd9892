"""Log lines about bad input."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest

from djmease.server import complaints as complaints_module
from djmease.server.complaints import Complaints, Lazily


def test_complaints_are_logged_once_a_second_and_counted(
    log_of: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(complaints_module.time, "monotonic", lambda: now[0])
    complaints = Complaints(logging.getLogger("djmease.test"))
    for index in range(5):
        complaints.say("bad %s", index)
    now[0] += 1.5
    complaints.say("bad %s", "again")
    assert log_of() == ["bad 0", "bad again (4 more like this)"]


def test_kinds_are_told_apart_as_long_as_they_are_few(log_of: Callable[[], list[str]]) -> None:
    complaints = Complaints(logging.getLogger("djmease.test"))
    for _ in range(2):
        complaints.say("no Origin", kind="origin")
        complaints.say("no Host", kind="host")
    assert log_of() == ["no Origin", "no Host"]
    for index in range(1000):
        complaints.say("bad %s", index, kind=str(index))
    assert len(log_of()) == 2 + 14 + 1, "sixteen kinds, and what all others are"


def test_what_is_made_lazily_is_made_for_lines_that_are_written(log_of: Callable[[], list[str]]) -> None:
    made: list[int] = []
    complaints = Complaints(logging.getLogger("djmease.test"))
    for index in range(5):
        complaints.say("bad %s", Lazily(lambda index=index: str(made.append(index) or index)))  # type: ignore[misc]
    assert log_of() == ["bad 0"] and set(made) == {0}
