"""Log lines about what comes from outside: one a second at most, since whoever sends it must not fill the disk."""

from __future__ import annotations

import logging
import time
from typing import Any


class Complaints:
    """One kind of complaint; what is kept back is counted in the next line."""

    def __init__(self, logger: logging.Logger, level: int = logging.WARNING) -> None:
        self._logger = logger
        self._level = level
        self._next_at = 0.0
        self._kept_back = 0

    def say(self, message: str, *arguments: Any) -> None:
        now = time.monotonic()
        if now < self._next_at:
            self._kept_back += 1
            return
        more = f" ({self._kept_back} more like this)" if self._kept_back else ""
        self._logger.log(self._level, message + "%s", *arguments, more)
        self._next_at, self._kept_back = now + 1.0, 0
