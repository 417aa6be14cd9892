"""Stock senders, for routes that need no Python."""

from __future__ import annotations

from typing import Any

from djmease.types import ClientsList


def broadcast(message: Any, clients_list: ClientsList) -> None:
    """Write the message to every client: ``MEASE_ROUTES = {'news': 'djmease.senders.broadcast'}``."""
    clients_list.send(message)
