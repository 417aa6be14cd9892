"""What the admin's status page shows: a status as rows of text, rendered in parts that are replaced one by one."""

from __future__ import annotations

import functools
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlencode

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.template.loader import render_to_string
from django.utils.html import conditional_escape, format_html
from django.utils.safestring import SafeString
from django.utils.translation import get_language, ngettext
from django.utils.translation import gettext as _
from redis.exceptions import RedisError

from djmease import connections, formats, loader
from djmease.plots import sparkline
from djmease.problems import START_COMMAND, Problem
from djmease.publishing import PublishError
from djmease.registry import is_async_callable, is_pattern, path_of
from djmease.reporting import ClientsReport, GroupsReport, Status, get_status, list_clients, list_groups
from djmease.reports import (
    CallbackReport,
    ClientReport,
    GroupReport,
    MessageReport,
    RoutingReport,
    ServerReport,
    split_refused,
)
from djmease.tracing import Trace, notes, verdict

PARTS = ("top", "servers", "routes", "quiet", "callbacks", "messages", "groups", "clients", "published")
"""Each has a template of its own."""
TEMPLATES = "admin/djmease/status"
INTERVAL = 2.0
"""Seconds after which an open page asks again."""
LISTS_INTERVAL = 6.0
"""The same for clients and groups: to tell of them costs a server more than all the rest."""
SHORTEST_HISTORY = 60
"""Values that fill a plot at least."""
LATE_LAG = 1.0
LATE_LOOP = 0.25
"""Seconds from which the lag and the delay of the event loop want looking at."""
MANY = 40
"""So many routes without traffic are shown at once; of more the list is folded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What somebody who looks at the page asked for, and may do."""

    url: str = ""
    """Where the page is."""
    groups: bool = False
    """Whether the servers are asked for their groups."""
    group_search: str = ""
    clients: bool = False
    """Whether the servers are asked for their clients."""
    search: str = ""
    group: str = ""
    """Of whose members the clients are; nothing is everybody."""
    published: Mapping[str, Any] | None = None
    """What became of the test message that was published last, as ``outcome`` says it."""
    disconnect_url: str | None = None
    """Where connections are closed, for those who may."""

    @property
    def address(self) -> str:
        """The page on which the same is asked for."""
        asked: dict[str, Any] = {}
        if self.groups:
            asked |= {"groups": 1, "group_search": self.group_search}
        if self.clients:
            asked |= {"clients": 1, "group": self.group, "search": self.search}
        return f"{self.url}?{urlencode(asked)}" if asked else self.url

    @property
    def for_everybody(self) -> str:
        """The page on which the clients are not those of a group."""
        return f"{replace(self, group='').address}#clients"

    def for_group(self, name: str) -> str:
        """Return the page on which the clients are those of this group."""
        return f"{replace(self, clients=True, group=name, search='').address}#clients"


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A piece of the page; its version changes when it does."""

    html: SafeString
    version: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "version", f"{zlib.crc32(self.html.encode()):08x}")


def current_status() -> Status:
    """Return the status, also where the settings name no Redis: that is one of the things that can be wrong."""
    try:
        return get_status()
    except ImproperlyConfigured as error:
        text, _colon, cure = str(error).partition(": ")
        problem = Problem(kind="settings", text=f"{text}.", cure=cure)
        return Status(taken_at=time.time(), redis="", prefix=connections.names().prefix, problems=(problem,))


def parts_of(status: Status, wish: Wish) -> dict[str, Part]:
    """Return the parts of the page by their names."""
    busy, silent = _routes(status)
    quiet = [*map(QuietRow.of, silent)] if status.servers else declared_here()
    contexts: dict[str, Callable[[], Mapping[str, Any]]] = {
        "top": lambda: {"top": Top.of(status)},
        "servers": lambda: {"servers": _server_cards(status)},
        "routes": lambda: {"rows": _rows(busy, status), "quiet": len(quiet), "unrouted": _unrouted(status)},
        "callbacks": lambda: {"rows": _rows(_others(status), status)},
        "messages": lambda: {
            "rows": [MessageRow.of(each, status.taken_at) for each in status.messages],
            "has_servers": bool(status.servers),
        },
        "groups": lambda: _groups(status, wish),
        "clients": lambda: _clients(status, wish),
        "published": lambda: {"outcome": wish.published},
    }
    html = {name: _render(name, context()) for name, context in contexts.items()}
    html["quiet"] = _render_quiet(tuple(quiet), bool(busy), bool(status.servers), get_language())
    return {name: Part(html=html[name]) for name in PARTS}


def known_routings(status: Status) -> list[str]:
    """Return the routings, without patterns, that the servers tell of; where there is none, those declared here."""
    routes = status.callbacks if status.servers else declared_here()
    declared = {each.routing for each in routes if each.routing and not is_pattern(each.routing)}
    return sorted(declared | {message.routing for message in status.messages})


def _render(name: str, context: Mapping[str, Any]) -> SafeString:
    return render_to_string(f"{TEMPLATES}/{name}.html", dict(context))


# Those without traffic are many and stay the same.
@functools.lru_cache(maxsize=8)
def _render_quiet(rows: tuple[QuietRow, ...], has_others: bool, has_servers: bool, language: str | None) -> SafeString:
    context = {"rows": rows, "is_folded": len(rows) > MANY, "has_others": has_others, "has_servers": has_servers}
    return _render("quiet", context)


# The line at the top


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A number with its name."""

    label: str
    value: str
    unit: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    text: str
    cure: SafeString
    state: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Top:
    """Whether it is well."""

    state: str
    """``good``, ``warn`` or ``bad``."""
    headline: str
    troubles: tuple[Trouble, ...]
    figures: tuple[Figure, ...]
    redis: str
    prefix: str
    clock: str
    stamp: str

    @classmethod
    def of(cls, status: Status) -> Top:
        state = "bad" if not status.is_well else "warn" if status.problems else "good"
        return cls(
            state=state,
            headline=_headline(state, len(status.problems)),
            troubles=tuple(map(_trouble, status.problems)),
            figures=tuple(_figures(status)) if status.servers else (),
            redis=status.redis,
            prefix=status.prefix,
            clock=formats.clock(status.taken_at),
            stamp=formats.stamp(status.taken_at),
        )


def _headline(state: str, problems: int) -> str:
    if state == "good":
        return _("All is well")
    if state == "bad":
        return _("Not well: messages do not arrive, or may not")
    return ngettext("It works, and one thing wants looking at", "It works, and %d things want looking at", problems) % (
        () if problems == 1 else problems
    )


def _trouble(problem: Problem) -> Trouble:
    before, command, after = problem.cure.partition(START_COMMAND)
    cure = format_html("{}<code>{}</code>{}", before, command, after) if command else conditional_escape(before)
    return Trouble(text=problem.text, cure=cure, state="bad" if problem.is_error else "warn")


def _figures(status: Status) -> Iterator[Figure]:
    servers = status.servers
    yield Figure(label=_("Servers"), value=formats.count(len(servers)))
    yield Figure(label=_("Clients"), value=formats.count(status.clients))
    yield Figure(label=_("Received"), value=formats.rate(_now(servers, "received")), unit=_("/s"))
    yield Figure(label=_("Sent"), value=formats.rate(_now(servers, "sent")), unit=_("/s"))
    lags = [server.lag_p99 for server in servers if server.lag_p99 is not None]
    yield Figure(label=_("Lag, 99 %"), value=formats.seconds(max(lags, default=None)))
    yield Figure(label=_("Errors, last minute"), value=formats.count(sum(each.recent_errors for each in servers)))


def _now(servers: Iterable[ServerReport], name: str) -> float:
    """Return the newest values of a history, of all servers together."""
    return float(sum(values[-1] for server in servers if (values := getattr(server.history, name))))


# Servers


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """What a server does now, with a plot of the last minutes."""

    label: str
    value: str
    unit: str
    most: str
    """The highest value in the plot."""
    plot: SafeString
    is_hot: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Counter:
    """What was refused, closed or lost, by the reason."""

    label: str
    total: str
    figures: tuple[Figure, ...]
    is_bad: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerCard:
    report: ServerReport
    state: str
    state_text: str
    up: str
    stamp: str
    facts: tuple[Figure, ...]
    tiles: tuple[Tile, ...]
    details: tuple[Figure, ...]
    counters: tuple[Counter, ...]


def _server_cards(status: Status) -> list[ServerCard]:
    length = max([SHORTEST_HISTORY, *(len(server.history.clients) for server in status.servers)])
    return [_server_card(server, status.taken_at, length) for server in status.servers]


def _server_card(server: ServerReport, now: float, length: int) -> ServerCard:
    state, text = _state_of(server, now)
    return ServerCard(
        report=server,
        state=state,
        state_text=text,
        up=formats.long_seconds(max(0.0, now - server.started_at)),
        stamp=formats.stamp(server.started_at),
        facts=(
            Figure(label=_("Memory"), value=formats.size(server.memory)),
            Figure(label=_("CPU"), value=_("%s %%") % round(server.cpu_share * 100)),
            Figure(label=_("Waiting"), value=formats.count(server.waiting_calls)),
            Figure(label=_("Unsent"), value=formats.size(server.unsent)),
        ),
        tiles=tuple(_tiles(server, length)),
        details=tuple(_details(server, now)),
        counters=tuple(_counters(server)),
    )


def _state_of(server: ServerReport, now: float) -> tuple[str, str]:
    if server.is_draining:
        return "warn", _("stopping")
    if server.trouble is not None:
        return "bad", _("may not hear")
    if now - server.reported_at > 3 * server.interval:
        return "warn", _("silent for %s") % formats.seconds(int(now - server.reported_at))
    return "good", _("hears Redis")


def _tiles(server: ServerReport, length: int) -> Iterator[Tile]:
    past = server.history
    yield _tile(_("Clients"), past.clients, length, lambda value: formats.count(round(value)), now=server.clients)
    yield _tile(_("Received"), past.received, length, formats.rate, unit=_("/s"))
    yield _tile(_("Sent"), past.sent, length, formats.rate, unit=_("/s"))
    yield _tile(_("Lag"), past.lag, length, formats.seconds, floor=0.01, hot=LATE_LAG)
    yield _tile(
        _("Loop delay"), past.loop_delay, length, formats.seconds, floor=0.01, hot=LATE_LOOP, now=server.loop_delay
    )


def _tile(
    label: str,
    values: Sequence[float],
    length: int,
    tell: Callable[[float], str],
    *,
    unit: str = "",
    floor: float = 1.0,
    hot: float | None = None,
    now: float | None = None,
) -> Tile:
    if now is None:
        now = values[-1] if values else 0.0
    return Tile(
        label=label,
        value=tell(now),
        unit=unit,
        most=tell(max(values, default=0.0)),
        plot=sparkline(values, length=length, floor=floor),
        is_hot=hot is not None and now >= hot,
    )


def _details(server: ServerReport, now: float) -> Iterator[Figure]:
    yield Figure(label=_("Id"), value=server.id)
    yield Figure(label=_("Settings"), value=server.settings)
    yield Figure(label=_("Callbacks"), value=server.registry)
    yield Figure(label=_("Last report"), value=formats.ago(server.reported_at, now))
    yield Figure(label=_("Opened"), value=formats.count(server.opened))
    yield Figure(label=_("Messages received"), value=formats.count(server.received))
    yield Figure(label=_("Messages published"), value=formats.count(server.published))
    yield Figure(label=_("Messages sent"), value=formats.count(server.sent))
    yield Figure(label=_("Bytes in"), value=formats.size(server.bytes_in))
    yield Figure(label=_("Bytes out"), value=formats.size(server.bytes_out))
    yield Figure(label=_("Lag, half"), value=formats.seconds(server.lag_p50))
    yield Figure(label=_("Lag, 99 %"), value=formats.seconds(server.lag_p99))
    yield Figure(label=_("Callbacks that raised"), value=formats.count(server.errors))
    yield Figure(label=_("Slow calls"), value=formats.count(server.slow))
    yield Figure(label=_("Loop stood still"), value=formats.count(server.blocked))
    yield Figure(label=_("Calls that wait"), value=formats.count(server.waiting_calls))
    yield Figure(label=_("Waiting for senders"), value=formats.size(server.waiting_published))
    yield Figure(label=_("Waiting for receivers"), value=formats.size(server.waiting_heard))
    yield Figure(label=_("Came back to Redis"), value=formats.count(server.reconnects))
    yield Figure(label=_("Away from Redis"), value=formats.seconds(server.away))
    yield Figure(label=_("Processor time"), value=formats.long_seconds(server.cpu))
    yield Figure(label=_("Threads"), value=formats.count(server.threads))


def _counters(server: ServerReport) -> Iterator[Counter]:
    refused, away = split_refused(server.refused)
    yield from _counter(_("Refused"), refused)
    yield from _counter(_("Sent away"), away)
    yield from _counter(_("Lost"), server.lost)
    yield from _counter(_("Closed, by code"), server.closed, is_bad=False)


def _counter(label: str, counts: Mapping[str, int], is_bad: bool = True) -> Iterator[Counter]:
    if counts:
        most_first = sorted(counts.items(), key=lambda item: -item[1])
        figures = tuple(Figure(label=reason, value=formats.count(number)) for reason, number in most_first)
        yield Counter(label=label, total=formats.count(sum(counts.values())), figures=figures, is_bad=is_bad)


# Callbacks


@dataclass(frozen=True, slots=True, kw_only=True)
class CallbackRow:
    """A callback that has been called, or a sender whose route has been published on."""

    key: str
    kind: str
    routing: str | None
    is_repeated: bool
    """Whether the row above is of the same routing."""
    path: str
    source: str
    is_async: bool
    heard: str
    calls: str
    rate: str
    delivered: str
    half: str
    most: str
    last: str
    errors: str | None
    error: str | None
    error_last: str


@dataclass(frozen=True, slots=True, kw_only=True)
class QuietRow:
    """A sender that nothing was published for."""

    routing: str | None
    path: str
    source: str
    is_async: bool | None
    """``None`` where that is not known, since it was not imported."""

    @classmethod
    def of(cls, callback: CallbackReport) -> QuietRow:
        return cls(routing=callback.routing, path=callback.path, source=callback.source, is_async=callback.is_async)


def _routes(status: Status) -> tuple[list[CallbackReport], list[CallbackReport]]:
    """Return the senders with traffic, those that raised first, then the busiest; and those without."""
    senders = [each for each in status.callbacks if each.kind == "sender"]
    traffic: dict[str | None, tuple[int, int]] = {}
    for each in senders:
        errors, heard = traffic.get(each.routing, (0, 0))
        traffic[each.routing] = errors + each.errors, heard + each.heard + each.calls
    busy = [each for each in senders if any(traffic[each.routing])]
    # The senders of one routing stay together, in the order in which they run.
    busy.sort(key=lambda each: (-traffic[each.routing][0], -traffic[each.routing][1], each.routing or ""))
    return busy, [each for each in senders if not any(traffic[each.routing])]


def declared_here() -> list[QuietRow]:
    """Return the senders that this process knows of, by names alone: nothing is imported."""
    routes = settings.MEASE_ROUTES
    rows = [
        QuietRow(routing=str(pattern), path=path, source=f"MEASE_ROUTES[{pattern!r}]", is_async=None)
        for pattern, value in (routes.items() if isinstance(routes, dict) else ())
        for path in _paths(value)
    ]
    for declaration in loader.decorated():
        target = declaration.target
        if declaration.kind == "sender" and callable(target):
            path, is_async = path_of(target), is_async_callable(target)
            rows += [
                QuietRow(routing=pattern, path=path, source=declaration.source, is_async=is_async)
                for pattern in declaration.patterns
            ]
    return rows


def _paths(value: Any) -> list[str]:
    """Return the dotted paths in an entry of ``MEASE_ROUTES``, as far as it is one; a check tells what is not."""
    named = value.get("SENDERS") if isinstance(value, dict) else value
    paths = named if isinstance(named, (list, tuple)) else [named]
    return [path for path in paths if isinstance(path, str)]


def _others(status: Status) -> list[CallbackReport]:
    return [each for each in status.callbacks if each.kind != "sender"]


def _rows(callbacks: Iterable[CallbackReport], status: Status) -> list[CallbackRow]:
    rows: list[CallbackRow] = []
    for callback in callbacks:
        is_repeated = bool(rows) and callback.routing is not None and rows[-1].routing == callback.routing
        rows.append(_row(callback, is_repeated, status.taken_at))
    return rows


def _row(callback: CallbackReport, is_repeated: bool, now: float) -> CallbackRow:
    return CallbackRow(
        key=f"{callback.kind} {callback.routing} {callback.path} {callback.source}",
        kind=_KINDS[callback.kind]() if callback.kind in _KINDS else callback.kind,
        routing=callback.routing,
        is_repeated=is_repeated,
        path=callback.path,
        source=callback.source,
        is_async=callback.is_async,
        heard=formats.count(callback.heard),
        calls=formats.count(callback.calls),
        rate=formats.rate(callback.rate),
        delivered=formats.count(callback.delivered),
        half=formats.seconds(callback.p50),
        most="" if callback.p99 is None else formats.seconds(callback.p99),
        last=formats.ago(callback.last_at, now),
        errors=formats.count(callback.errors) if callback.errors else None,
        error=callback.last_error,
        error_last=formats.ago(callback.last_error_at, now),
    )


_KINDS: dict[str, Callable[[], str]] = {
    "sender": lambda: _("sender"),
    "receiver": lambda: _("receiver"),
    "opener": lambda: _("opener"),
    "closer": lambda: _("closer"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class UnroutedRow:
    routing: str
    count: str
    last: str
    closest: tuple[str, ...]


def _unrouted(status: Status) -> list[UnroutedRow]:
    """Return the routings that were published without a sender, the latest first."""
    found: dict[str, RoutingReport] = {}
    for server in status.servers:
        for each in server.unrouted:
            known = found.get(each.routing)
            # Every server hears every message.
            if known is None or each.count > known.count:
                found[each.routing] = each
    return [
        UnroutedRow(
            routing=each.routing,
            count=formats.count(each.count),
            last=formats.ago(each.last_at, status.taken_at),
            closest=tuple(loader.closest_routings(each.routing)),
        )
        for each in sorted(found.values(), key=lambda each: -each.last_at)
    ]


# Messages


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageRow:
    id: str
    routing: str
    clock: str
    stamp: str
    size: str
    senders: tuple[str, ...]
    reached: str
    errors: int
    lag: str
    body: str | None

    @classmethod
    def of(cls, message: MessageReport, now: float) -> MessageRow:
        return cls(
            id=message.id,
            routing=message.routing,
            clock=formats.clock(message.published_at),
            stamp=formats.stamp(message.published_at),
            size=formats.size(message.size),
            senders=message.senders,
            reached=formats.count(message.reached),
            errors=message.errors,
            lag=formats.seconds(None if message.lag is None else max(0.0, message.lag)),
            body=message.body,
        )


def outcome(trace: Trace) -> dict[str, Any]:
    """Return what became of a test message, as a session can keep it."""
    doubts = list(notes(trace))
    return {
        "id": trace.id,
        "routing": trace.routing,
        "verdict": verdict(trace),
        "notes": doubts,
        "state": "bad" if not trace.written else "warn" if doubts else "good",
        "senders": [
            {
                "server": f"{server.pid} · {server.host}",
                "path": sender.path,
                "handed": formats.count(sender.handed),
                "reached": formats.count(sender.reached),
                "seconds": formats.seconds(sender.seconds),
                "error": sender.error,
            }
            for server in trace.servers
            for sender in server.senders
        ],
    }


# Groups and clients


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupRow:
    name: str
    connections: str
    persons: str
    link: str
    """Where the page tells who is in it."""
    is_chosen: bool


def _groups(status: Status, wish: Wish) -> dict[str, Any]:
    if not wish.groups:
        return {"asked": False}
    try:
        report = list_groups(status, search=wish.group_search)
    except (RedisError, OSError, PublishError, ImproperlyConfigured) as error:
        return {"asked": True, "rows": (), "error": connections.reason(error)}
    return {"asked": True, "search": wish.group_search, **_group_rows(status, report, wish)}


def _group_rows(status: Status, report: GroupsReport, wish: Wish) -> dict[str, Any]:
    return {
        "rows": [_group_row(each, wish) for each in report.groups],
        "has_persons": any(each.persons is not None for each in report.groups),
        **_counts(report, len(report.groups), status),
    }


def _group_row(group: GroupReport, wish: Wish) -> GroupRow:
    return GroupRow(
        name=group.name,
        connections=formats.count(group.connections),
        persons="" if group.persons is None else formats.count(group.persons),
        link=wish.for_group(group.name),
        is_chosen=wish.clients and group.name == wish.group,
    )


def _counts(report: ClientsReport | GroupsReport, shown: int, status: Status) -> dict[str, Any]:
    """Return how many there are, and who did not answer."""
    names = _server_names(status)
    return {
        "shown": formats.count(shown),
        "total": formats.count(report.total),
        "is_cut": report.total > shown,
        "silent": [names.get(server, server) for server in report.silent],
    }


def _server_names(status: Status) -> dict[str, str]:
    return {server.id: f"{server.pid} · {server.host}" for server in status.servers}


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientRow:
    report: ClientReport
    since: str
    stamp: str
    received: str
    unsent: str
    server: str
    disconnect: str | None
    disconnect_user: str | None


def _clients(status: Status, wish: Wish) -> dict[str, Any]:
    if not wish.clients:
        return {"asked": False}
    try:
        report = list_clients(status, search=wish.search, group=wish.group or None)
    except (RedisError, OSError, PublishError, ImproperlyConfigured) as error:
        return {"asked": True, "rows": (), "error": connections.reason(error)}
    return {"asked": True, "search": wish.search, "group": wish.group, **_client_rows(status, report, wish)}


def _client_rows(status: Status, report: ClientsReport, wish: Wish) -> dict[str, Any]:
    names = _server_names(status)
    return {
        "rows": [_client_row(each, names, status.taken_at, wish) for each in report.clients],
        "may_disconnect": wish.disconnect_url is not None,
        **_counts(report, len(report.clients), status),
    }


def _client_row(client: ClientReport, servers: Mapping[str, str], now: float, wish: Wish) -> ClientRow:
    url = wish.disconnect_url
    return ClientRow(
        report=client,
        since=formats.long_seconds(max(0.0, now - client.connected_at)),
        stamp=formats.stamp(client.connected_at),
        received=formats.count(client.received),
        unsent=formats.size(client.unsent),
        server=servers.get(client.server, client.server),
        disconnect=url and f"{url}?{urlencode({'client': client.id})}",
        disconnect_user=url and client.user_key and f"{url}?{urlencode({'user': client.user_key})}",
    )
