"""Whether a server goes on, and whether clients should be sent to it."""

from __future__ import annotations

import asyncio

from djmease.server.listener import Listener


class State:
    """What all parts of a server may ask; ``Server.drain`` and ``Server.stop`` say it."""

    def __init__(self, listener: Listener | None) -> None:
        self._listener = listener
        self.stopping = asyncio.Event()
        """Set when the server begins to send its clients away."""
        self.hurrying = asyncio.Event()
        """Set when it shall not take its time for that."""

    @property
    def is_stopping(self) -> bool:
        return self.stopping.is_set()

    def trouble(self) -> str | None:
        """Return why no more clients should be sent here, in a sentence; ``None`` where all is well."""
        if self.is_stopping:
            return "the server stops"
        return None if self._listener is None else self._listener.trouble
