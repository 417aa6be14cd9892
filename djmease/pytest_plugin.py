"""Fixtures for pytest, found without configuration: the test kit of ``djmease.test`` by fixture names."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from djmease import test
from djmease.messages import Message


@pytest.fixture
def mease_messages() -> Iterator[list[Message]]:
    """What the test publishes, instead of sending it."""
    with test.captured_messages() as captured:
        yield captured


@pytest.fixture
def mease_connect() -> Iterator[Callable[..., test.Page]]:
    """A function that connects a page, as ``djmease.test.connect`` does; it leaves at the end of the test."""
    with ExitStack() as stack:

        def connect(**options: Any) -> test.Page:
            return stack.enter_context(test.connect(**options))

        yield connect


@pytest.fixture
def mease_live_server(transactional_db: None) -> Iterator[test.LiveServer]:
    """A real server, as ``djmease.test.live_server`` gives it; with pytest-django, which lets threads see the data."""
    with test.live_server() as server:
        yield server
