"""Realtime for Django, declared in ``settings.py``: the public names, and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

from djmease.attendance import Person, apresence, apresence_count, presence, presence_count
from djmease.messages import Message
from djmease.publishing import PublishError, UnknownRouting, apublish, publish
from djmease.registry import closer, opener, receiver, sender
from djmease.reporting import get_status
from djmease.revocation import adisconnect, disconnect
from djmease.tickets import issue_ticket
from djmease.types import Client, ClientsList

__all__ = [
    "Client",
    "ClientsList",
    "Message",
    "Person",
    "PublishError",
    "UnknownRouting",
    "adisconnect",
    "apresence",
    "apresence_count",
    "apublish",
    "closer",
    "disconnect",
    "get_status",
    "issue_ticket",
    "opener",
    "presence",
    "presence_count",
    "publish",
    "receiver",
    "sender",
]

__version__ = "0.1.0"

if not TYPE_CHECKING:  # A type checker would take it that there is any name.

    def __getattr__(name):
        # Of an AttributeError `from djmease import mease` would show nothing.
        if name == "mease":
            raise ImportError(
                "djmease has no 'mease', as the original had: use  import djmease  (docs/from-upstream.rst)"
            )
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
