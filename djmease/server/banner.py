"""What the server says when it starts."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator, Sequence

import django
import tornado

import djmease
from djmease.registry import Callback, Registry

Row = tuple[str, ...]


def banner(
    *, registry: Registry, settings_module: str, addresses: Sequence[str], redis: str, pages: Sequence[str] = ()
) -> str:
    """Return versions, settings, addresses, Redis, and the table of routes and other callbacks, for a person.

    ``pages`` is what is amiss between the addresses and the pages that should connect there.
    """
    facts = [
        ("Settings", settings_module),
        *(("Address", address) for address in addresses),
        *(("Pages", fault) for fault in pages),
        ("Redis", redis),
    ]
    versions = (
        f"django-mease {djmease.__version__} on Django {django.get_version()}, Tornado {tornado.version}, "
        f"Python {platform.python_version()}"
    )
    return "\n".join([versions, *_aligned(facts), "", *_tables(registry), "", "Quit with Ctrl-C."])


def _tables(registry: Registry) -> Iterator[str]:
    routes = [
        (route.pattern, _described(sender), route.source) for route in registry.routes for sender in route.senders
    ]
    yield from _table("Routes", routes, "none: MEASE_ROUTES is empty, and no mease_registry has a sender")
    for title, callbacks in (
        ("Receivers", registry.receivers),
        ("Openers", registry.openers),
        ("Closers", registry.closers),
    ):
        if callbacks or title == "Receivers":
            yield from _table(title, [(_described(callback), callback.source) for callback in callbacks], "none")


def _described(callback: Callback) -> str:
    return f"{'async ' if callback.is_async else ''}{callback.path}"


def _table(title: str, rows: Sequence[Row], otherwise: str) -> Iterator[str]:
    yield title
    for line in _aligned(rows) if rows else [otherwise]:
        yield f"  {line}"


def _aligned(rows: Iterable[Row]) -> list[str]:
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
