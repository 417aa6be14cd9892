"""What log lines say of whom they are about; and lines about what comes from outside, which must not fill the disk."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
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


class Complaints:
    """One kind of complaint, once a second at most; what is kept back is counted in the next line."""

    def __init__(self, logger: logging.Logger, level: int = logging.WARNING) -> None:
        self._logger = logger
        self._level = level
        self._next_at = 0.0
        self._kept_back = 0

    def say(self, message: str, *arguments: Any, about: object = None) -> None:
        now = time.monotonic()
        if now < self._next_at:
            self._kept_back += 1
            return
        more = f" ({self._kept_back} more like this)" if self._kept_back else ""
        self._logger.log(self._level, message + "%s", *arguments, more, extra=fields_of(about))
        self._next_at, self._kept_back = now + 1.0, 0
