"""What log lines say of whom they are about; and lines about what comes from outside, which must not fill the disk."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from djmease.messages import Message


def fields_of(about: object) -> dict[str, str]:
    """Return what a log record has beside its text that is about a message, a client, or a routing by its name."""
    if isinstance(about, Message):
        return {"routing": about.routing, "message_id": about.id}
    if isinstance(about, str):
        return {"routing": about}
    client_id = getattr(about, "id", None)  # Its connection may have forgotten it.
    return {} if client_id is None else {"client_id": client_id}


MAX_ERROR = 500
"""Characters of an error that are shown."""


def said_by(error: BaseException) -> str:
    """Return what an error says, whatever its ``__str__`` does."""
    try:
        return str(error)
    except Exception as another:
        return f"(its text raised {type(another).__name__})"


def error_text(error: BaseException) -> str:
    """Return of what kind an error is and what it says."""
    return f"{type(error).__name__}: {said_by(error)}"[:MAX_ERROR]


def error_repr(error: BaseException) -> str:
    """Return ``repr(error)``, or what stands in for one that raises."""
    try:
        return repr(error)
    except Exception:
        return error_text(error)


class Lazily:
    """Text that is made only where a line with it is written."""

    def __init__(self, make: Callable[[], str]) -> None:
        self._make = make

    def __str__(self) -> str:
        return self._make()


MAX_KINDS = 16
"""How many kinds are told apart; those that come later, perhaps without end, are one."""


class Complaints:
    """Complaints of one kind, or of a few, each kind once a second at most.

    What is kept back is counted in the next line of its kind.
    """

    def __init__(self, logger: logging.Logger, level: int = logging.WARNING) -> None:
        self._logger = logger
        self._level = level
        self._kinds: dict[str, _Kind] = {}

    def say(self, message: str, *arguments: Any, about: object = None, kind: str = "") -> None:
        """Log a line, if its kind may have one now: ``kind`` holds nothing of what comes from outside."""
        now = time.monotonic()
        state = self._state_of(kind)
        if now < state.next_at:
            state.kept_back += 1
            return
        more = f" ({state.kept_back} more like this)" if state.kept_back else ""
        self._logger.log(self._level, message + "%s", *arguments, more, extra=fields_of(about))
        state.next_at, state.kept_back = now + 1.0, 0

    def _state_of(self, kind: str) -> _Kind:
        if kind not in self._kinds and len(self._kinds) >= MAX_KINDS:
            kind = ""
        return self._kinds.setdefault(kind, _Kind())


@dataclass(slots=True)
class _Kind:
    next_at: float = 0.0
    kept_back: int = 0
