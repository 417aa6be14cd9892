"""What became of a message, as text for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from django.core.management.color import Style

from djmease.reports import MessageTrace
from djmease.tables import Cell, Column, count, milliseconds, several, table, unpainted, wrapped
from djmease.tracing import Trace, notes, verdict

LABEL = 10
"""Characters of what stands at the left."""
SENDER_COLUMNS = (
    Column(title="sender", least=26, keeps_end=True),
    Column(title="", rank=1),
    Column(title="declared in", rank=1, least=16, keeps_end=True),
)
RAN_COLUMNS = (
    Column(title="sender", least=26, keeps_end=True),
    Column(title="ran in", rank=1, is_number=True),
    Column(title="handed", rank=2, is_number=True),
    Column(title="written", is_number=True),
    Column(title="raised", least=12),
    Column(title="declared in", rank=3, least=16, keeps_end=True),
)


def trace_text(trace: Trace, *, width: int, style: Style) -> str:
    """Return each station of a message as lines of at most ``width`` characters, and where it stopped at the end."""
    page = _Page(trace, width, style)
    stations = [page.message(), page.settings(), page.redis(), *map(page.server, trace.servers)]
    return "\n".join([*(line for station in stations for line in station), "", *page.end()])


class _Page:
    def __init__(self, trace: Trace, width: int, style: Style) -> None:
        self._trace = trace
        self._width = width
        self._style = style

    def message(self) -> Iterator[str]:
        trace = self._trace
        said = [f"{trace.id or 'not published'}, on {trace.routing}"]
        for names, one in ((trace.groups, "group"), (trace.users, "user")):
            if names:
                said.append(f"for the {one if len(names) == 1 else one + 's'} {', '.join(names)}")
        yield from self._station("Message", ", ".join(said))

    def settings(self) -> Iterator[str]:
        senders = self._trace.senders
        told = f"{several(len(senders), 'sender')} would run, by the settings here" if senders else "no sender here"
        yield from self._station("Settings", told)
        rows = [(sender.path, "async" if sender.is_async else "", sender.source) for sender in senders]
        if rows:
            yield from self._indented(table(SENDER_COLUMNS, rows, width=self._room, heading=self._style.MIGRATE_LABEL))

    def redis(self) -> Iterator[str]:
        trace = self._trace
        if trace.heard is None:
            told = "did not take it" if trace.refusal is None else "was not asked"
        elif trace.is_idle:
            told = "does not run: the first server starts it"
        else:
            servers = several(trace.heard, "server")
            told = f"handed it to {servers} on {trace.channel} in {milliseconds(trace.seconds)}"
        yield from self._station("Redis", f"{trace.redis} {told}")

    def server(self, server: MessageTrace) -> Iterator[str]:
        told = f"{server.pid} on {server.host} received it after {milliseconds(server.lag)}"
        if not server.senders:
            yield from self._station("Server", f"{told}: {server.dropped or 'nothing ran'}")
            return
        whom = (
            f"for {count(server.chosen)} of {several(server.clients, 'client')}" if server.clients else "for no client"
        )
        yield from self._station("Server", f"{told}, and ran its senders {milliseconds(server.waited)} later, {whom}")
        rows = [
            (
                sender.path,
                milliseconds(sender.seconds),
                count(sender.handed),
                Cell(count(sender.reached), self._style.SUCCESS if sender.reached else unpainted),
                Cell(sender.error or "", self._style.ERROR),
                sender.source,
            )
            for sender in server.senders
        ]
        yield from self._indented(table(RAN_COLUMNS, rows, width=self._room, heading=self._style.MIGRATE_LABEL))
        if server.names:
            more = server.chosen - len(server.names)
            listed = ", ".join(server.names) + (f", and {more:,} more" if more > 0 else "")
            yield from wrapped(f"Clients: {listed}", width=self._width, indent=" " * LABEL)

    def end(self) -> Iterator[str]:
        others = list(notes(self._trace))
        paint = self._style.ERROR
        if self._trace.written:
            paint = self._style.WARNING if others else self._style.SUCCESS
        yield from map(paint, wrapped(verdict(self._trace), width=self._width))
        for other in others:
            yield from map(self._style.WARNING, wrapped(other, width=self._width, indent="  ", mark="! "))

    @property
    def _room(self) -> int:
        return self._width - LABEL + 2

    def _station(self, label: str, text: str) -> Iterator[str]:
        first, *rest = wrapped(text, width=self._width, indent=" " * LABEL)
        yield self._style.MIGRATE_HEADING(label) + first[len(label) :]
        yield from rest

    def _indented(self, lines: Iterable[str]) -> Iterator[str]:
        # The lines of a table are two characters further in already.
        return (" " * (LABEL - 2) + line for line in lines)
