"""``/metrics``: what this server counts, in the text formats of Prometheus and OpenMetrics, for those who may ask.

The package ``prometheus-client`` is imported when somebody asks, and need not be there.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import resource
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

from tornado.web import RequestHandler

from djmease.server.complaints import Complaints
from djmease.server.observer import Observer
from djmease.server.proxies import UNIX, UNIX_PEER, Peers, Proxies
from djmease.server.tallies import BOUNDS, Durations, Tallies, Tally

CURE = "metrics need the package prometheus-client: pip install 'django-mease[metrics]'"
EDGES = range(12, 53, 2)
"""Which of the ``BOUNDS`` are buckets: from 64 microseconds to 67 seconds, each twice the one before."""
COARSE_EDGES = range(12, 49, 4)
"""For each callback: from 64 microseconds to 17 seconds, each four times the one before."""
TURN = 100
"""Callbacks that are written in one turn of the loop."""


@dataclass(frozen=True, slots=True)
class Family:
    """A metric of the server as a whole."""

    name: str
    kind: str
    help: str
    field: str
    """What it is in the values of the ``Collector``; left out where that has no value."""
    label: str | None = None
    known: tuple[str, ...] = ()
    """Values of the label that are there before anything is counted, so that a rate sees the first time too."""


REFUSALS = (
    *("address", "connections", "forbidden", "login_ended", "messages"),
    *("not_permitted", "turned_away", "unauthenticated", "user"),
)
LOSSES = ("dropped", "given_up", "overtaken", "silent_clients", "slow_clients", "unreadable")
FAMILIES = (
    Family("mease_ready", "gauge", "1 where clients may be sent here, as /readyz says, else 0.", "ready"),
    Family("mease_draining", "gauge", "1 while the server stops and sends its clients away, else 0.", "is_draining"),
    Family(
        "mease_presence_ready",
        "gauge",
        "0 where Redis could not be told who is in groups with presence, else 1.",
        "presence_ready",
    ),
    Family("mease_clients", "gauge", "Clients that are connected.", "clients"),
    Family("mease_opened_connections_total", "counter", "Connections that were opened.", "opened"),
    Family("mease_closed_connections_total", "counter", "Connections that ended.", "closed", "code", ("1000", "1001")),
    Family(
        "mease_refused_total",
        "counter",
        "Handshakes and messages that were refused, and clients that were closed.",
        "refused",
        "reason",
        REFUSALS,
    ),
    Family(
        "mease_lost_total",
        "counter",
        "Messages and calls that were dropped, and clients that were given up.",
        "lost",
        "reason",
        LOSSES,
    ),
    Family("mease_received_messages_total", "counter", "Messages that came from clients.", "received"),
    Family("mease_published_messages_total", "counter", "Messages that came from Redis.", "published"),
    Family("mease_sent_messages_total", "counter", "Messages written to clients, one for each client.", "sent"),
    Family("mease_unrouted_messages_total", "counter", "Messages from Redis that no sender is for.", "unrouted"),
    Family("mease_received_bytes_total", "counter", "Bytes read from clients, behind the handshake.", "bytes_in"),
    Family("mease_sent_bytes_total", "counter", "Bytes of frames for clients, before compression.", "bytes_out"),
    Family("mease_unsent_bytes", "gauge", "Bytes that clients have not read yet.", "unsent"),
    Family("mease_waiting_calls", "gauge", "Calls of callbacks that wait for a thread.", "waiting_calls"),
    Family("mease_waiting_bytes", "gauge", "Bytes of messages that wait for callbacks.", "waiting_bytes", "callbacks"),
    Family("mease_slow_calls_total", "counter", "Calls that took over MEASE_SLOW_CALLBACK_TIMEOUT.", "slow"),
    Family("mease_loop_blocked_total", "counter", "Times that the event loop stood still.", "blocked"),
    Family("mease_threads", "gauge", "Threads of the process.", "threads"),
    Family("mease_redis_reconnects_total", "counter", "Times that the server came back to Redis.", "reconnects"),
    Family("mease_redis_away_seconds_total", "counter", "Seconds without Redis, when it came back.", "away"),
    Family("process_resident_memory_bytes", "gauge", "Resident memory.", "memory"),
    Family("process_cpu_seconds_total", "counter", "Processor time, of the user and of the system.", "cpu"),
    Family("process_start_time_seconds", "gauge", "When the server started, since the epoch.", "started_at"),
    Family("process_open_fds", "gauge", "Open file descriptors.", "open_fds"),
    Family("process_max_fds", "gauge", "File descriptors that may be open.", "max_fds"),
)


class Collector:
    """A custom collector of prometheus-client: all that is not counted by callback."""

    def __init__(self, prometheus: Any, observer: Observer) -> None:
        self._core = prometheus.metrics_core
        self._observer = observer

    def collect(self) -> Iterator[Any]:
        """Yield metric families of prometheus-client."""
        about, core = self._observer.about, self._core
        labels = {name: str(about[name]) for name in ("version", "registry")}
        yield core.InfoMetricFamily("mease", "What runs: a version, and a fingerprint of the callbacks.", labels)
        values = self._values()
        for family in FAMILIES:
            if values[family.field] is not None:
                yield self._family(family, values[family.field])
        yield self._histogram(
            "mease_delivery_lag_seconds",
            "From the publishing of a message to its first writing to a client.",
            self._observer.tallies.lags,
        )
        yield self._histogram(
            "mease_loop_delay_seconds",
            "By how much the event loop comes late to a timer.",
            self._observer.loop_delays,
        )

    def _values(self) -> dict[str, Any]:
        counts, state = self._observer.counts(), self._observer.state()
        return {
            **counts,
            **state,
            "ready": state["trouble"] is None,
            "presence_ready": state["presence_trouble"] is None,
            "closed": by_known_code(counts["closed"]),
            "unrouted": self._observer.tallies.unrouted_count,
            "waiting_bytes": {"senders": counts["waiting_published"], "others": counts["waiting_heard"]},
            "started_at": self._observer.about["started_at"],
            "open_fds": _open_files(),
            "max_fds": _max_files(),
        }

    def _family(self, family: Family, value: Any) -> Any:
        make = self._core.CounterMetricFamily if family.kind == "counter" else self._core.GaugeMetricFamily
        if family.label is None:
            return make(family.name, family.help, value=value)
        made = make(family.name, family.help, labels=[family.label])
        for name, count in sorted({**dict.fromkeys(family.known, 0), **value}.items()):
            made.add_metric([name], count)
        return made

    def _histogram(self, name: str, about: str, durations: Durations) -> Any:
        counts = cumulated(durations.counts.copy(), EDGES)
        buckets = list(zip(_ends(EDGES), counts, strict=True))
        return self._core.HistogramMetricFamily(name, about, buckets=buckets, sum_value=durations.seconds)


# By callback


class Series:
    """Callbacks that have the same labels: the same kind, path and route, once or more often."""

    def __init__(self, kind: str, path: str, route: str, tallies: Sequence[Tally]) -> None:
        labels = {"callback": path, "kind": kind, "route": route}
        self.labels = ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items())
        self.kind = kind
        self._tallies = tallies

    def total(self, field: str) -> int:
        return sum(getattr(tally, field) for tally in self._tallies)

    def durations(self) -> tuple[list[int], float]:
        """Return how many calls ended in each class, and the seconds of all together."""
        copies = [tally.durations.counts.copy() for tally in self._tallies]
        counts = copies[0] if len(copies) == 1 else [sum(each) for each in zip(*copies, strict=True)]
        return counts, sum(tally.durations.seconds for tally in self._tallies)


def series_of(tallies: Tallies) -> list[Series]:
    """Return what is counted, in order, with no labels twice: that would spoil the whole answer."""
    found: dict[tuple[str, str, str], list[Tally]] = {}
    for tally in tallies.all:
        found.setdefault((tally.callback.kind, tally.callback.path, tally.routing or ""), []).append(tally)
    return [Series(*labels, same) for labels, same in found.items()]


@dataclass(frozen=True, slots=True)
class CallbackFamily:
    """A metric that each callback has; prometheus-client would take fifteen times as long to write these."""

    name: str
    kind: str
    help: str
    write: Callable[[str, Series], str]


def _counter(field: str, *, is_of_senders: bool = False) -> Callable[[str, Series], str]:
    def write(name: str, series: Series) -> str:
        if is_of_senders and series.kind != "sender":
            return ""
        return f"{name}{{{series.labels}}} {series.total(field)}\n"

    return write


def _histogram(name: str, series: Series) -> str:
    counts, seconds = series.durations()
    numbers = cumulated(counts, COARSE_EDGES)
    if not numbers[-1]:
        return ""  # Of a thousand routes most are not used most of the time.
    return (_HISTOGRAM % (*numbers, numbers[-1], seconds)).replace("@", series.labels).replace("~", name)


def _ends(edges: Sequence[int]) -> list[str]:
    return [*(repr(BOUNDS[edge]) for edge in edges), "+Inf"]


_HISTOGRAM = "".join(f'~_bucket{{@,le="{end}"}} %d\n' for end in _ends(COARSE_EDGES)) + "~_count{@} %d\n~_sum{@} %r\n"
CALLBACK_FAMILIES = (
    CallbackFamily("mease_callback_duration_seconds", "histogram", "How long calls took that have ended.", _histogram),
    CallbackFamily("mease_callback_errors_total", "counter", "Calls that raised.", _counter("errors")),
    CallbackFamily(
        "mease_route_messages_total",
        "counter",
        "Messages of a sender's route that came from Redis.",
        _counter("heard", is_of_senders=True),
    ),
    CallbackFamily(
        "mease_route_sent_messages_total",
        "counter",
        "Messages that a sender wrote, one for each client.",
        _counter("delivered", is_of_senders=True),
    ),
)


class Exporter:
    """Writes what a server counts, a part in each turn of the loop; on the loop only."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._prometheus: Any = None
        self._series: list[Series] = []

    async def write(self, accept: str) -> tuple[bytes, str]:
        """Return the text in the format that an Accept header asks for, and its content type.

        Raises ``ModuleNotFoundError`` where prometheus-client is not installed.
        """
        if self._prometheus is None:
            # It imports so much that the loop would stand still.
            self._prometheus = await asyncio.to_thread(importlib.import_module, "prometheus_client")
            self._series = series_of(self._observer.tallies)
        encode, content_type = _encoder(self._prometheus.exposition, accept)
        end = encode(_Families(()))
        parts = [encode(Collector(self._prometheus, self._observer)).removesuffix(end)]
        for family in CALLBACK_FAMILIES:
            head = self._prometheus.metrics_core.Metric(family.name.removesuffix("_total"), family.help, family.kind)
            parts.append(encode(_Families((head,))).removesuffix(end))
            for start, stop in pairwise([*range(0, len(self._series), TURN), len(self._series)]):
                parts.append("".join(family.write(family.name, each) for each in self._series[start:stop]).encode())
                await asyncio.sleep(0)
        return b"".join([*parts, end]), content_type


def _encoder(exposition: Any, accept: str) -> Any:
    try:
        return exposition.choose_encoder(accept)
    except TypeError:  # It was asked for a version that is no number.
        return exposition.choose_encoder("")


@dataclass(frozen=True, slots=True)
class _Families:
    families: Iterable[Any]

    def collect(self) -> Iterable[Any]:
        return self.families


class Metrics(RequestHandler):
    """Answers with the metrics, or 403 and 501 with a sentence; whatever the Host says, as the health pages do."""

    def initialize(self, *, exporter: Exporter, allowed: Peers, proxies: Proxies, complaints: Complaints) -> None:
        self._exporter = exporter
        self._allowed = allowed
        self._proxies = proxies
        self._complaints = complaints

    async def get(self) -> None:
        refusal = self._refusal()
        if refusal is not None:
            self._complaints.say("refused /metrics to %s: %s", _name(self.request.remote_ip or ""), refusal)
            self._answer(403, f"{refusal}\n", "text/plain; charset=utf-8")
            return
        try:
            text, content_type = await self._exporter.write(self.request.headers.get("Accept", ""))
        except ModuleNotFoundError:
            self._answer(501, f"{CURE}\n", "text/plain; charset=utf-8")
        else:
            self._answer(200, text, content_type)

    head = get

    def compute_etag(self) -> None:
        """Nobody asks for the same text again."""

    def _refusal(self) -> str | None:
        peer = self.request.remote_ip or ""
        caller = self._proxies.caller(peer, self.request.headers)
        if caller is None:
            return (
                f"a proxy passed this request on, and who asks cannot be told: {_name(peer)} is not in "
                "MEASE_TRUSTED_PROXIES, or sends no X-Forwarded-For"
            )
        if caller not in self._allowed:
            return f"{_name(caller)} is not in MEASE_METRICS_ALLOW"
        return None

    def _answer(self, status: int, text: str | bytes, content_type: str) -> None:
        self.set_status(status)
        self.set_header("Content-Type", content_type)
        self.set_header("Cache-Control", "no-store")
        self.finish(text)


def cumulated(counts: Sequence[int], edges: Sequence[int]) -> list[int]:
    """Return how many there are up to each edge, and how many in all."""
    reached = list(accumulate(counts))
    return [*(reached[edge] for edge in edges), reached[-1]]


_KNOWN_CODES = {"none", *map(str, range(1000, 1016)), "4401", "4403", "4429"}


def by_known_code(closed: Mapping[str, int]) -> dict[str, int]:
    """Put close codes together that a client may have made up: there are thousands of them."""
    found: Counter[str] = Counter()
    for code, count in closed.items():
        found[code if code in _KNOWN_CODES else f"{code[:1]}xxx"] += count
    return dict(found)


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _name(peer: str) -> str:
    return f"a Unix socket ({UNIX!r})" if peer == UNIX_PEER else peer


def _open_files() -> int | None:
    """Return how many files are open, where Linux 6.2 or newer says it at once: counting thousands takes long."""
    try:
        return os.stat("/proc/self/fd").st_size or None
    except OSError:
        return None


def _max_files() -> float:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return float("inf") if limit == resource.RLIM_INFINITY else limit
