"""What a server reports of itself: frozen dataclasses, and their form in Redis.

A server's report is one hash in Redis, ``<prefix>.server.<id>``. Its field ``report`` is a JSON object that is written
anew each time; its field ``callbacks`` says once, in order, what the counts in the report are about, so that a
thousand routes do not travel every two seconds.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from types import MappingProxyType
from typing import Any, TypeVar

NO_SENDER = "no sender is registered for this routing here"
"""Why a server ran no sender of a message that is traced."""
MAX_NUMBER = 1e18
"""More than anything that is counted or timed; what is more could not be shown, and is refused."""
NO_COUNTS: Mapping[str, int] = MappingProxyType({})
SENT_AWAY = frozenset({"login_ended", "messages", "turned_away"})
"""Those among the reasons of ``ServerReport.refused`` for which clients were closed that had been let in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallbackReport:
    """A sender of one route, or a receiver, opener or closer, and what became of its calls in one server."""

    kind: str
    """``sender``, ``receiver``, ``opener`` or ``closer``."""
    path: str
    """Its dotted path."""
    source: str
    """Where it was declared: a setting with its key, or a module and line."""
    is_async: bool
    routing: str | None = None
    """Of a sender: the routing or pattern of its route."""
    heard: int = 0
    """Of a sender: the messages that were published on its route and came to this server."""
    calls: int = 0
    """Calls that have ended, those that raised among them."""
    rate: float = 0.0
    """Calls a second in the last minute."""
    delivered: int = 0
    """Of a sender: messages written, one for each client."""
    errors: int = 0
    """Calls that raised."""
    last_at: float | None = None
    """When it was called last, in seconds since the epoch, give or take the interval of the reports."""
    last_error: str | None = None
    """The error it raised last, as text."""
    last_error_at: float | None = None
    p50: float | None = None
    """Seconds that the half of its calls took at most, of those in the last minute."""
    p99: float | None = None
    """Seconds that 99 in 100 of its calls took at most, of those in the last minute."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingReport:
    """A routing that was published though no sender is registered for it."""

    routing: str
    count: int
    last_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageReport:
    """One of the last messages that were published."""

    id: str
    routing: str
    size: int
    """Bytes of the encoded body."""
    published_at: float
    """Seconds since the epoch, by the clock of the publisher."""
    senders: tuple[str, ...]
    """The dotted paths of the senders that it was for."""
    reached: int
    """Times that it was written to a client."""
    errors: int
    """Senders that raised."""
    lag: float | None = None
    """Seconds from the publishing to the first writing, by two clocks if publisher and server have two."""
    body: str | None = None
    """The beginning of its body, where ``MEASE_REPORT_BODIES`` says so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """The last minutes, one value for each interval, the newest last."""

    interval: float = 2.0
    """Seconds between two values."""
    clients: tuple[float, ...] = ()
    received: tuple[float, ...] = ()
    """Messages a second that came from clients."""
    sent: tuple[float, ...] = ()
    """Messages a second that were written to clients."""
    lag: tuple[float, ...] = ()
    """Seconds from the publishing of a message to its writing, the longest in that interval."""
    loop_delay: tuple[float, ...] = ()
    """Seconds by which the event loop came late to a timer, the longest in that interval."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerReport:
    """One server process; counts are since it started, times in seconds since the epoch."""

    id: str
    host: str
    pid: int
    version: str
    settings: str
    """The settings module."""
    registry: str
    """A fingerprint: the same callbacks for the same routings have the same."""
    addresses: tuple[str, ...]
    """Where it listens, as URLs."""
    started_at: float
    reported_at: float
    interval: float
    """Seconds between two reports."""
    is_draining: bool = False
    trouble: str | None = None
    """Why no more clients should be sent to it, as a sentence; ``None`` where all is well."""
    presence_trouble: str | None = None
    """Why it could not tell Redis who is in groups with presence; ``None`` where it could, or there are none."""
    reconnects: int = 0
    """Times that it came back to Redis."""
    away: float = 0.0
    """Seconds, in all, for which it could not hear Redis."""
    clients: int = 0
    """Connected now."""
    opened: int = 0
    closed: Mapping[str, int] = field(default_factory=lambda: NO_COUNTS)
    """Connections that have ended, by their close code."""
    refused: Mapping[str, int] = field(default_factory=lambda: NO_COUNTS)
    """Handshakes that were refused and clients that were closed, by the reason."""
    lost: Mapping[str, int] = field(default_factory=lambda: NO_COUNTS)
    """Messages and calls that were dropped, by the reason."""
    received: int = 0
    """Messages that came from clients."""
    published: int = 0
    """Messages that came from Redis."""
    sent: int = 0
    """Messages written, one for each client."""
    bytes_in: int = 0
    """Read from clients' sockets, behind the handshake."""
    bytes_out: int = 0
    """Written to clients, frames before their compression."""
    errors: int = 0
    """Callbacks that raised."""
    recent_errors: int = 0
    """Callbacks that raised in the last minute."""
    recent_lost: int = 0
    """Messages and calls that were dropped in the last minute."""
    slow: int = 0
    """Calls that ran longer than ``MEASE_SLOW_CALLBACK_TIMEOUT``."""
    blocked: int = 0
    """Times that the event loop stood still."""
    waiting_calls: int = 0
    """Calls of callbacks that wait for a thread."""
    waiting_published: int = 0
    """Bytes that wait for senders."""
    waiting_heard: int = 0
    """Bytes that wait for receivers, openers and closers."""
    unsent: int = 0
    """Bytes that clients have not read yet."""
    lag_p50: float | None = None
    """Seconds from publishing to writing of the half of the messages, of those in the last minute."""
    lag_p99: float | None = None
    loop_delay: float = 0.0
    """Seconds by which the event loop came late to its last timer."""
    memory: int = 0
    """Bytes of resident memory."""
    cpu: float = 0.0
    """Seconds of processor time since it started."""
    cpu_share: float = 0.0
    """Part of one processor that it used in the last interval."""
    threads: int = 0
    callbacks: tuple[CallbackReport, ...] = ()
    unrouted: tuple[RoutingReport, ...] = ()
    messages: tuple[MessageReport, ...] = ()
    """The last ones, the newest last."""
    history: History = field(default_factory=History)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientReport:
    """One connection, as a server tells of it when it is asked."""

    server: str
    """The id of its server."""
    id: str
    user: str | None
    """The user's name, ``None`` for nobody."""
    user_key: str | None
    """The user's primary key as text."""
    address: str
    groups: tuple[str, ...]
    connected_at: float
    received: int
    """Messages that came from it."""
    unsent: int
    """Bytes that it has not read yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupReport:
    """A group that somebody is in, as a server tells of it when it is asked, or all of them together."""

    name: str
    connections: int
    """How many clients are in it."""
    persons: int | None = None
    """How many persons are in it, on all servers, where the group has presence (``MEASE_PRESENCE``)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SenderTrace:
    """What one sender did with a message that is traced."""

    path: str
    source: str
    seconds: float
    handed: int
    """Clients in its ``clients_list``."""
    reached: int
    """Times that it wrote to a client."""
    error: str | None = None
    """What it raised."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageTrace:
    """What became of a message in one server, as it tells when it is done with it."""

    server: str
    """The id of the server."""
    host: str
    pid: int
    clients: int
    """Connected to it in all."""
    chosen: int
    """Of those, the ones in the groups and of the users that it was for."""
    lag: float
    """Seconds from the publishing until it came here, by two clocks if publisher and server have two."""
    waited: float
    """Seconds until its first sender ran."""
    senders: tuple[SenderTrace, ...]
    names: tuple[str, ...] = ()
    """Some of the clients that were chosen: each its id, with its user if it has one."""
    dropped: str | None = None
    """Why no sender ran."""


Report = TypeVar("Report")


def read(kind: type[Report], value: Any) -> Report:
    """Return a report of this kind from what JSON parsed to; fields that it does not know are left.

    Raises ``ValueError`` that names the field which is missing or of another type than it should be.
    """
    if not isinstance(value, dict):
        raise ValueError(f"a {kind.__name__} is an object, not a {type(value).__name__}")
    given = {}
    for name, (check, takes) in _readers(kind).items():  # type: ignore[arg-type]
        if name not in value:
            continue
        if not check(value[name]):
            raise ValueError(f"{kind.__name__}.{name} is {value[name]!r:.80}")
        given[name] = takes(value[name])
    try:
        return kind(**given)
    except TypeError as error:
        raise ValueError(f"{kind.__name__}: {error}") from None


def read_server(report: bytes, callbacks: bytes) -> ServerReport:
    """Return a server's report from the two fields of its hash. Raises ``ValueError`` where it cannot be read."""
    try:
        said = json.loads(report)
        described = json.loads(callbacks)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is not JSON: {error}") from None
    if not isinstance(said, dict) or not isinstance(described, list):
        raise ValueError("it is not a report")
    counts = said.get("callbacks", {})
    if not isinstance(counts, dict):
        raise ValueError(f"ServerReport.callbacks is {counts!r:.80}")
    # Those that were never called are not in the report.
    said["callbacks"] = [_merged(about, counts.get(str(index), {})) for index, about in enumerate(described)]
    return read(ServerReport, said)


def split_refused(refused: Mapping[str, int]) -> tuple[dict[str, int], dict[str, int]]:
    """Return what was refused, handshakes and messages, and whom a server has sent away, each by the reason."""
    away = {reason: count for reason, count in refused.items() if reason in SENT_AWAY}
    return {reason: count for reason, count in refused.items() if reason not in SENT_AWAY}, away


def to_plain(value: Any) -> Any:
    """Return reports, and what else is made of dataclasses, as what JSON can hold: their fields by name."""
    if is_dataclass(value):
        return {each.name: to_plain(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, Mapping):
        return {name: to_plain(each) for name, each in value.items()}
    if isinstance(value, (tuple, list)):
        return [to_plain(each) for each in value]
    return value


def _merged(about: Any, counts: Any) -> dict[str, Any]:
    if not isinstance(about, dict) or not isinstance(counts, dict):
        raise ValueError("ServerReport.callbacks has something that is no callback")
    return {**about, **counts}


Check = Callable[[Any], bool]
Take = Callable[[Any], Any]


def _is_number(value: Any) -> bool:
    # No NaN is within bounds either.
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -MAX_NUMBER < value < MAX_NUMBER


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and _is_number(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _or_none(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _all(check: Check) -> Check:
    return lambda value: isinstance(value, list) and all(map(check, value))


def _is_counts(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_count, value.values()))


def _same(value: Any) -> Any:
    return value


def _each(kind: type[Any]) -> tuple[Check, Take]:
    return _all(lambda value: True), lambda values: tuple(read(kind, value) for value in values)


_BY_TYPE: dict[str, tuple[Check, Take]] = {
    "str": (_is_text, _same),
    "str | None": (_or_none(_is_text), _same),
    "int": (_is_count, _same),
    "int | None": (_or_none(_is_count), _same),
    "float": (_is_number, _same),
    "float | None": (_or_none(_is_number), _same),
    "bool": (lambda value: isinstance(value, bool), _same),
    "tuple[str, ...]": (_all(_is_text), tuple),
    "tuple[float, ...]": (_all(_is_number), tuple),
    "Mapping[str, int]": (_is_counts, MappingProxyType),
    "tuple[CallbackReport, ...]": _each(CallbackReport),
    "tuple[RoutingReport, ...]": _each(RoutingReport),
    "tuple[MessageReport, ...]": _each(MessageReport),
    "tuple[SenderTrace, ...]": _each(SenderTrace),
    "History": (lambda value: True, functools.partial(read, History)),
}


@functools.cache
def _readers(kind: type[Any]) -> dict[str, tuple[Check, Take]]:
    return {each.name: _BY_TYPE[str(each.type)] for each in fields(kind)}
