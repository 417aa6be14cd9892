"""What is counted: calls and their durations by callback, and the last messages with what became of each."""

from __future__ import annotations

import functools
import json
import threading
import time
from bisect import bisect_left
from collections import deque
from contextvars import ContextVar
from itertools import accumulate
from typing import Any, Protocol

from djmease.messages import Message
from djmease.registry import Callback, Registry, matches
from djmease.server.complaints import error_text

MAX_MESSAGES = 50
"""The last messages that are remembered."""
MAX_UNROUTED = 50
"""Routings without a sender that are remembered: their names are endless."""
MAX_BODY = 200
"""Characters of a message's body that are shown, where the setting says so."""
WINDOWS = 6
"""Parts of the minute of which recent values are."""
WINDOW = 10.0
"""Seconds of each."""
BOUNDS = tuple(1e-6 * 2 ** (step / 2) for step in range(61))
"""Upper ends of the classes of durations, in seconds: from a microsecond to 18 minutes, each 1.41 times the one
before."""


class Author(Protocol):
    """Who is told how often what it has written was handed on."""

    @property
    def header(self) -> bytes | None:
        """What goes before its messages where a client takes headers."""

    def wrote(self, count: int) -> None: ...


AUTHOR: ContextVar[Author | None] = ContextVar("djmease_author", default=None)
"""Who writes to clients in this context, if that is counted."""


class Durations:
    """How long things took, by classes. Either threads add, with ``add``, or the loop alone does, with ``note``."""

    __slots__ = ("_lock", "_past", "counts", "seconds")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.counts = [0] * (len(BOUNDS) + 1)
        self.seconds = 0.0
        """All together."""
        self._past: deque[tuple[float, list[int]]] = deque(maxlen=WINDOWS)

    def add(self, seconds: float) -> None:
        with self._lock:
            self.note(seconds)

    def note(self, seconds: float) -> None:
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.seconds += seconds

    @property
    def count(self) -> int:
        return sum(self.counts)

    def turn(self, now: float) -> None:
        """Begin another part of the minute."""
        self._past.append((now, self.counts.copy()))

    def recent(self, now: float) -> Recent:
        """Return what came in the last minute."""
        since, before = self._past[0] if self._past else (now, self.counts)
        return Recent([count - old for count, old in zip(self.counts, before, strict=True)], now - since)


class Recent:
    """What came in a while."""

    __slots__ = ("_counts", "count", "seconds")

    def __init__(self, counts: list[int], seconds: float) -> None:
        self._counts = counts
        self.count = sum(counts)
        self.seconds = max(seconds, 1.0)

    @property
    def rate(self) -> float:
        """How many came in a second."""
        return self.count / self.seconds

    def quantile(self, part: float) -> float | None:
        """Return the seconds within which this part of them was done, a fifth more or less; ``None`` of nothing."""
        if not self.count:
            return None
        wanted = part * self.count
        index = next(index for index, reached in enumerate(accumulate(self._counts)) if reached >= wanted)
        # The middle of the class, by the factor that there is between its ends.
        return BOUNDS[min(index, len(BOUNDS) - 1)] / 2**0.25


class Lags(Durations):
    """How long messages took from their publishing to their writing."""

    __slots__ = ("_longest",)

    def __init__(self) -> None:
        super().__init__()
        self._longest = 0.0

    def note(self, seconds: float) -> None:
        super().note(seconds)
        self._longest = max(self._longest, seconds)

    def take_longest(self) -> float:
        """Return the longest since this was last asked."""
        longest, self._longest = self._longest, 0.0
        return longest


class Tally:
    """One callback, and for a sender one route of it, with what is counted of it."""

    __slots__ = ("callback", "delivered", "durations", "errors", "heard", "last_at", "last_error", "routing")

    def __init__(self, callback: Callback, routing: str | None = None) -> None:
        self.callback = callback
        self.routing = routing
        """Of a sender: the routing or pattern."""
        self.durations = Durations()
        self.heard = 0
        """Of a sender: messages of its route."""
        self.delivered = 0
        """Of a sender: messages that were written, one for each client."""
        self.errors = 0
        self.last_at: float | None = None
        """When it was last called for, in seconds since the epoch."""
        self.last_error: tuple[float, str] | None = None
        """When it last raised, and what."""

    def failed(self, error: BaseException) -> None:
        with self.durations._lock:
            self.errors += 1
            self.last_error = (time.time(), error_text(error))


class Record:
    """One of the last messages."""

    __slots__ = (
        "_lags",
        "body",
        "came_at",
        "errors",
        "heard_at",
        "id",
        "lag",
        "published_at",
        "reached",
        "routing",
        "size",
        "tallies",
    )

    def __init__(self, message: Message, tallies: tuple[Tally, ...], lags: Lags, body: str | None) -> None:
        self.id = message.id
        self.routing = message.routing
        self.size = message.size
        self.published_at = message.published_at
        self.tallies = tallies
        self.body = body
        self.heard_at = time.time()
        self.came_at = time.monotonic()
        self.reached = 0
        self.errors = 0
        self.lag: float | None = None
        """Seconds from its publishing to its first writing."""
        self._lags = lags

    def wrote(self, count: int) -> None:
        """Note that it was handed on so many times more; on the loop only."""
        self.reached += count
        if self.lag is None:
            # Two machines have two clocks.
            self.lag = max(0.0, time.time() - self.published_at)
            self._lags.note(self.lag)


class Tallies:
    """Everything that is counted by callback; on the loop, but for what says otherwise."""

    def __init__(self, registry: Registry, *, is_on: bool, shows_bodies: bool) -> None:
        self.is_on = is_on
        """Whether calls are timed and messages remembered."""
        self._shows_bodies = shows_bodies
        self._routes = [
            (route.pattern, Tally(sender, route.pattern)) for route in registry.routes for sender in route.senders
        ]
        others = (*registry.receivers, *registry.openers, *registry.closers)
        self.by_callback = {id(callback): Tally(callback) for callback in others}
        """Of receivers, openers and closers, by ``id``: the hash of a ``Callback`` is that of all its fields."""
        self.all = (*(tally for _, tally in self._routes), *self.by_callback.values())
        """In an order that stays: senders by their routes, receivers, openers, closers."""
        # Bounded, because names come from outside and are endless.
        self.for_routing = functools.lru_cache(maxsize=1024)(self._for_routing)
        self.records: deque[Record] = deque(maxlen=MAX_MESSAGES)
        self.unrouted: dict[str, tuple[int, float]] = {}
        """Routings without a sender: how often each came, and when last; the one that came last is last."""
        self.unrouted_count = 0
        """Messages for which there was no sender, in all."""
        self.lags = Lags()
        self._turned_at = 0.0

    def _for_routing(self, routing: str) -> tuple[Tally, ...]:
        """Return every sender that matches, in order, each function once."""
        found: dict[int, Tally] = {}
        for pattern, tally in self._routes:
            if matches(pattern, routing):
                found.setdefault(id(tally.callback.function), tally)
        return tuple(found.values())

    def heard(self, message: Message, tallies: tuple[Tally, ...]) -> Record | None:
        """Note a message that came for these senders, and return what becomes of it."""
        if not self.is_on and message.trace is None:
            return None
        record = Record(message, tallies, self.lags, _beginning(message.body) if self._shows_bodies else None)
        for tally in tallies:
            tally.heard += 1
            tally.last_at = record.heard_at
        self.records.append(record)
        return record

    def unheard(self, routing: str) -> None:
        """Note a message for which there is no sender."""
        self.unrouted_count += 1
        count, _ = self.unrouted.pop(routing, (0, 0.0))
        self.unrouted[routing] = (count + 1, time.time())
        if len(self.unrouted) > MAX_UNROUTED:
            del self.unrouted[next(iter(self.unrouted))]

    def turn(self, now: float) -> None:
        """Begin another part of the minute of which recent values are, if it is time."""
        if now - self._turned_at < WINDOW:
            return
        self._turned_at = now
        self.lags.turn(now)
        for tally in self.all:
            tally.durations.turn(now)


_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


def _beginning(body: Any) -> str:
    if isinstance(body, bytes):
        return body[: MAX_BODY // 2].hex(" ")
    if isinstance(body, str):
        return body[:MAX_BODY]
    # Piece by piece: the rest of a long one is not encoded. What other programs publish may have NaN in it.
    size, pieces = 0, []
    for piece in _ENCODER.iterencode(body):
        pieces.append(piece)
        size += len(piece)
        if size >= MAX_BODY:
            break
    return "".join(pieces)[:MAX_BODY]
