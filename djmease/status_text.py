"""A status as text for a terminal: is it well, and then who serves, what runs, and what came last."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from django.core.management.color import Style

from djmease.problems import LATE, Problem
from djmease.reporting import Status
from djmease.reports import CallbackReport, MessageReport, ServerReport, split_refused
from djmease.tables import (
    NOTHING,
    Cell,
    Column,
    Paint,
    Row,
    ago,
    count,
    duration,
    facts,
    milliseconds,
    rate,
    several,
    size,
    table,
    unpainted,
    wrapped,
)

MAX_MESSAGES = 10
"""How many of the last messages are shown; a status has more."""
MAX_UNROUTED = 10
MAX_ERRORS = 10

SERVER_COLUMNS = (
    Column(title="process", least=8),
    Column(title="state"),
    Column(title="clients", is_number=True),
    Column(title="in/s", rank=1, is_number=True),
    Column(title="out/s", rank=1, is_number=True),
    Column(title="lag p50", rank=2, is_number=True),
    Column(title="p99", rank=2, is_number=True),
    Column(title="loop delay", rank=3, is_number=True),
    Column(title="memory", rank=4, is_number=True),
    Column(title="CPU", rank=4, is_number=True),
    Column(title="up", rank=5, is_number=True),
    Column(title="waiting", rank=6, is_number=True),
    Column(title="unsent", rank=6, is_number=True),
    Column(title="address", rank=7, least=20),
    Column(title="settings", rank=8, least=10, keeps_end=True),
    Column(title="version", rank=9),
    Column(title="id", rank=10),
)
_NUMBERS = (
    Column(title="calls/s", rank=3, is_number=True),
    Column(title="errors", is_number=True),
    Column(title="p50", rank=6, is_number=True),
    Column(title="p99", rank=4, is_number=True),
    Column(title="last", rank=5, is_number=True),
    Column(title="declared in", rank=8, least=20, keeps_end=True),
)
ROUTE_COLUMNS = (
    Column(title="routing", least=12),
    Column(title="sender", least=26, keeps_end=True),
    Column(title="", rank=7),
    Column(title="heard", rank=2, is_number=True),
    Column(title="written", rank=1, is_number=True),
    *_NUMBERS,
)
CALLBACK_COLUMNS = (
    Column(title="kind"),
    Column(title="callback", least=26, keeps_end=True),
    Column(title="", rank=7),
    Column(title="calls", rank=1, is_number=True),
    *_NUMBERS,
)
UNROUTED_COLUMNS = (Column(title="routing", least=12), Column(title="times", is_number=True), Column(title="last"))
MESSAGE_COLUMNS = (
    Column(title="published", is_number=True),
    Column(title="routing", least=12),
    Column(title="written", is_number=True),
    Column(title="lag", rank=2, is_number=True),
    Column(title="size", rank=3, is_number=True),
    Column(title="errors", rank=1, is_number=True),
    Column(title="senders", rank=4, least=16),
    Column(title="id", rank=5),
    Column(title="body", rank=6, least=12),
)


def status_text(status: Status, *, width: int, style: Style) -> str:
    """Return a status as lines of at most ``width`` characters, in the colours of Django's ``style``."""
    page = _Page(status, width, style)
    sections = [page.verdict(), page.place(), page.servers(), page.routes(), page.callbacks()]
    sections += [page.errors(), page.losses(), page.unrouted(), page.messages()]
    return "\n\n".join("\n".join(lines) for lines in map(list, sections) if lines)


class _Page:
    def __init__(self, status: Status, width: int, style: Style) -> None:
        self._status = status
        self._width = width
        self._style = style
        self._now = status.taken_at

    # Is it well?

    def verdict(self) -> Iterator[str]:
        problems = self._status.problems
        yield from self._paint(self._paint_of_all(problems), wrapped(self._answer(problems), width=self._width))
        for problem in problems:
            paint = self._style.ERROR if problem.is_error else self._style.WARNING
            yield from self._paint(paint, wrapped(problem.text, width=self._width, indent="  ", mark="! "))
            yield from wrapped(problem.cure, width=self._width, indent="    ")

    def _answer(self, problems: Sequence[Problem]) -> str:
        connected = f"{self._count_servers()}, {several(self._status.clients, 'client')}"
        if not self._status.is_well:
            return f"It is not well: {connected}."
        if problems:
            return f"It is well, with something to look at: {connected}."
        return f"It is well: {connected}."

    def _count_servers(self) -> str:
        return several(len(self._status.servers), "server")

    def _paint_of_all(self, problems: Sequence[Problem]) -> Paint:
        if not self._status.is_well:
            return self._style.ERROR
        return self._style.WARNING if problems else self._style.SUCCESS

    def place(self) -> Iterator[str]:
        pairs = [("Redis", self._status.redis), ("Prefix", self._status.prefix)]
        yield from facts(pairs, width=self._width)

    # Who serves

    def servers(self) -> Iterator[str]:
        rows = [self._server(server) for server in self._status.servers]
        yield from self._section("Servers", SERVER_COLUMNS, rows)

    def _server(self, server: ServerReport) -> Row:
        return (
            f"{server.pid} {server.host}",
            self._state(server),
            count(server.clients),
            rate(server.history.received[-1] if server.history.received else 0),
            rate(server.history.sent[-1] if server.history.sent else 0),
            milliseconds(server.lag_p50),
            milliseconds(server.lag_p99),
            milliseconds(server.loop_delay),
            size(server.memory),
            f"{server.cpu_share:.0%}",
            duration(self._now - server.started_at),
            size(server.waiting_published + server.waiting_heard),
            size(server.unsent),
            " ".join(server.addresses),
            server.settings,
            server.version,
            server.id,
        )

    def _state(self, server: ServerReport) -> Cell:
        if server.is_draining:
            return Cell("stopping", self._style.WARNING)
        if server.trouble is not None:
            return Cell("deaf", self._style.ERROR)
        if self._now - server.reported_at > LATE * server.interval:
            return Cell("late", self._style.WARNING)
        return Cell("well", self._style.SUCCESS)

    # What runs

    def routes(self) -> Iterator[str]:
        rows = [
            (callback.routing or NOTHING, *_named(callback), count(callback.heard), count(callback.delivered))
            + self._numbers(callback)
            for callback in self._status.callbacks
            if callback.kind == "sender"
        ]
        yield from self._section("Routes", ROUTE_COLUMNS, rows)

    def callbacks(self) -> Iterator[str]:
        rows = [
            (callback.kind, *_named(callback), count(callback.calls), *self._numbers(callback))
            for callback in self._status.callbacks
            if callback.kind != "sender"
        ]
        yield from self._section("Receivers, openers, closers", CALLBACK_COLUMNS, rows)

    def _numbers(self, callback: CallbackReport) -> tuple[str | Cell, ...]:
        return (
            rate(callback.rate),
            self._errors(callback.errors),
            milliseconds(callback.p50),
            milliseconds(callback.p99),
            ago(callback.last_at, self._now),
            callback.source,
        )

    def _errors(self, number: int) -> Cell:
        return Cell(count(number), self._style.ERROR if number else unpainted)

    def errors(self) -> Iterator[str]:
        failed = [callback for callback in self._status.callbacks if callback.last_error is not None]
        if failed:
            yield self._title("Last errors")
        newest_first = sorted(failed, key=lambda callback: callback.last_error_at or 0, reverse=True)
        for callback in newest_first[:MAX_ERRORS]:
            where = f" for {callback.routing}" if callback.routing else ""
            text = f"{callback.path}{where}, {ago(callback.last_error_at, self._now)}: {callback.last_error}"
            yield from wrapped(text, width=self._width, indent="  ", mark="- ")

    def losses(self) -> Iterator[str]:
        servers = self._status.servers
        refused = [split_refused(server.refused) for server in servers]
        pairs = [
            ("Lost", _reasons(server.lost for server in servers)),
            ("Refused", _reasons(each for each, _ in refused)),
            ("Sent away", _reasons(each for _, each in refused)),
            ("Slow", _slowness(sum(server.slow for server in servers), sum(server.blocked for server in servers))),
        ]
        yield from facts([(title, told) for title, told in pairs if told], width=self._width)

    def unrouted(self) -> Iterator[str]:
        found: dict[str, tuple[int, float]] = {}
        for report in (each for server in self._status.servers for each in server.unrouted):
            # Every server hears every message.
            times, last_at = found.get(report.routing, (0, 0.0))
            found[report.routing] = (max(times, report.count), max(last_at, report.last_at))
        newest_first = sorted(found.items(), key=lambda item: item[1][1], reverse=True)
        rows = [
            (Cell(routing, self._style.WARNING), count(times), ago(last_at, self._now))
            for routing, (times, last_at) in newest_first[:MAX_UNROUTED]
        ]
        yield from self._section("Published, without a sender", UNROUTED_COLUMNS, rows)

    # What came last

    def messages(self) -> Iterator[str]:
        rows = [self._message(message) for message in self._status.messages[:MAX_MESSAGES]]
        yield from self._section("Last messages", MESSAGE_COLUMNS, rows)

    def _message(self, message: MessageReport) -> Row:
        return (
            ago(message.published_at, self._now),
            message.routing,
            count(message.reached),
            milliseconds(message.lag),
            size(message.size),
            self._errors(message.errors),
            ", ".join(path.rpartition(".")[2] for path in message.senders) or NOTHING,
            message.id,
            message.body or "",
        )

    # Parts

    def _section(self, title: str, columns: Sequence[Column], rows: Sequence[Row]) -> Iterator[str]:
        if rows:
            yield self._title(title)
            yield from table(columns, rows, width=self._width, heading=self._style.MIGRATE_LABEL)

    def _title(self, text: str) -> str:
        return self._style.MIGRATE_HEADING(text)

    def _paint(self, paint: Paint, lines: Iterable[str]) -> Iterator[str]:
        return (paint(line) for line in lines)


def _named(callback: CallbackReport) -> tuple[str, str]:
    return callback.path, "async" if callback.is_async else ""


def _reasons(counts: Iterable[Mapping[str, int]]) -> str:
    total: Counter[str] = Counter()
    for each in counts:
        total.update(each)
    return ", ".join(f"{count(number)} {reason.replace('_', ' ')}" for reason, number in total.most_common() if number)


def _slowness(slow: int, blocked: int) -> str:
    told = [f"{several(slow, 'call')} over MEASE_SLOW_CALLBACK_TIMEOUT"] if slow else []
    if blocked:
        told.append(f"the event loop stood still {several(blocked, 'time')}")
    return ", ".join(told)
