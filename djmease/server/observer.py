"""What this server tells of itself: its report, its clients, and what became of a message that is traced."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from operator import attrgetter
from typing import Any

from djmease.messages import Message
from djmease.reports import MessageTrace, SenderTrace
from djmease.server.calls import Sending
from djmease.server.client import Client
from djmease.server.clients import Clients
from djmease.server.complaints import error_text
from djmease.server.dispatch import Dispatch
from djmease.server.limits import Limits
from djmease.server.listener import Listener
from djmease.server.logins import Logins
from djmease.server.outbox import Outbox
from djmease.server.pings import Pings
from djmease.server.presence import Members
from djmease.server.readers import Readers
from djmease.server.tallies import Durations, Record, Tallies, Tally

HISTORY = 150
"""Values of each plot."""
RECENT = 60.0
"""Seconds of which recent errors and losses are."""
MAX_CLIENTS = 300
"""Clients that one answer tells of."""
MAX_GROUPS = 300
"""Groups that one answer tells of."""
TURN = 2000
"""Groups that are looked at in one turn of the loop."""
MAX_SEARCH = 200
"""Characters of what is searched for."""
MAX_NAMES = 10
"""Clients that a trace names."""
_PAGE_SIZE = os.sysconf("SC_PAGE_SIZE")


class Observer:
    """Reads the counters of all parts of a server; on the loop only, but for what says otherwise."""

    def __init__(
        self,
        *,
        about: Mapping[str, Any],
        interval: float,
        tallies: Tallies,
        dispatch: Dispatch,
        outbox: Outbox,
        readers: Readers,
        clients: Clients,
        limits: Limits[Client],
        logins: Logins,
        pings: Pings,
        listener: Listener | None,
        presence: Members | None,
        trouble: Callable[[], str | None],
        is_draining: Callable[[], bool],
    ) -> None:
        self.about = about
        """What never changes: ``id``, ``host``, ``pid`` and so on."""
        self._interval = interval
        self.tallies = tallies
        self._dispatch = dispatch
        self._outbox = outbox
        self._readers = readers
        self._clients = clients
        self._limits = limits
        self._logins = logins
        self._pings = pings
        self._listener = listener
        self._presence = presence
        self._trouble = trouble
        self._is_draining = is_draining
        self.opened = 0
        self.closed: Counter[str] = Counter()
        """Connections that have ended, by their close code."""
        self._plots: dict[str, deque[float]] = {
            name: deque(maxlen=HISTORY) for name in ("clients", "received", "sent", "lag", "loop_delay")
        }
        self._past: deque[tuple[float, int, int]] = deque()
        """Of the last minute: when, and how many errors and losses there were in all."""
        self._before = (time.monotonic(), time.process_time(), 0, 0)
        """At the last report: when, processor time, messages received and sent."""
        self._cpu_share = 0.0
        self._counts: dict[Tally, int] = {}

    @property
    def loop_delays(self) -> Durations:
        """By how much the loop came late to timers."""
        return self._dispatch.watch.loop_delays

    @property
    def server_id(self) -> str:
        server_id: str = self.about["id"]
        return server_id

    # The report

    def described(self) -> bytes:
        """Return what the counts in a report are about, in JSON; it never changes."""
        return json.dumps([_description(tally) for tally in self.tallies.all]).encode()

    def report(self) -> dict[str, Any]:
        """Return the fields of a ``ServerReport``, but for the callbacks, of which only counts are in it, by place."""
        now = time.monotonic()
        lags = self.tallies.lags.recent(now)
        errors, lost = self._recently(now)
        return {
            **self.about,
            "reported_at": round(time.time(), 3),
            **self.state(),
            "recent_errors": errors,
            "recent_lost": lost,
            "cpu_share": round(self._cpu_share, 4),
            "lag_p50": _rounded(lags.quantile(0.5)),
            "lag_p99": _rounded(lags.quantile(0.99)),
            **self.counts(),
            "callbacks": self._callbacks(now),
            "unrouted": [
                {"routing": routing, "count": count, "last_at": round(last_at, 3)}
                for routing, (count, last_at) in reversed(self.tallies.unrouted.items())
            ],
            "messages": [_message(record) for record in self.tallies.records],
            "history": {"interval": self._interval, **{name: list(plot) for name, plot in self._plots.items()}},
        }

    def state(self) -> dict[str, Any]:
        """Return whether it is well, and what came of Redis, as fields of a ``ServerReport``."""
        return {
            "is_draining": self._is_draining(),
            "trouble": self._trouble(),
            "presence_trouble": None if self._presence is None else self._presence.trouble,
            "reconnects": 0 if self._listener is None else self._listener.reconnects,
            "away": 0.0 if self._listener is None else round(self._listener.away, 3),
        }

    def counts(self) -> dict[str, Any]:
        """Return what is counted, as fields of a ``ServerReport``."""
        dispatch, outbox = self._dispatch, self._outbox
        return {
            "clients": len(self._limits.clients),
            "opened": self.opened,
            "closed": dict(self.closed),
            "refused": self._refused(),
            "lost": self._lost(),
            "received": dispatch.received_count,
            "published": dispatch.published_count,
            "sent": outbox.written,
            "bytes_in": self._readers.bytes_in,
            "bytes_out": outbox.written_bytes,
            "errors": dispatch.errors,
            "slow": dispatch.watch.slow,
            "blocked": dispatch.watch.blocked,
            "waiting_calls": dispatch.workers.queue().waiting,
            "waiting_published": dispatch.published.size,
            "waiting_heard": dispatch.heard.size,
            "unsent": sum(len(connection.backlog) for connection in outbox.behind),
            "loop_delay": round(dispatch.watch.loop_delay, 6),
            "memory": resident_memory(),
            "cpu": round(time.process_time(), 3),
            "threads": threading.active_count(),
        }

    def _refused(self) -> dict[str, int]:
        found = Counter(self._limits.refused)
        found["turned_away"] = self._dispatch.turned_away
        found["not_permitted"] = self._dispatch.refused
        found["login_ended"] = self._logins.ended
        return {reason: count for reason, count in found.items() if count}

    def _lost(self) -> dict[str, int]:
        """Return what was lost: publications, calls, and what clients had still to read, or to say."""
        found = {
            "dropped": self._dispatch.dropped,
            "overtaken": self._dispatch.overtaken,
            "slow_clients": self._outbox.slow,
            "given_up": self._dispatch.given_up,
            "silent_clients": self._pings.timed_out,
            "unreadable": 0 if self._listener is None else self._listener.refused,
        }
        return {reason: count for reason, count in found.items() if count}

    def sample(self) -> None:
        """Take one value more of each plot; once in an interval."""
        now, cpu = time.monotonic(), time.process_time()
        received, sent = self._dispatch.received_count, self._outbox.written
        before, cpu_before, received_before, sent_before = self._before
        self._before = (now, cpu, received, sent)
        seconds = max(now - before, 1e-3)
        self._cpu_share = (cpu - cpu_before) / seconds
        values = {
            "clients": float(len(self._limits.clients)),
            "received": round((received - received_before) / seconds, 1),
            "sent": round((sent - sent_before) / seconds, 1),
            "lag": round(self.tallies.lags.take_longest(), 6),
            "loop_delay": round(self._dispatch.watch.take_longest_delay(), 6),
        }
        for name, value in values.items():
            self._plots[name].append(value)
        self.tallies.turn(now)
        self._past.append((now, self._dispatch.errors, self._loss()))
        while self._past[0][0] < now - RECENT:
            self._past.popleft()

    def _loss(self) -> int:
        return self._dispatch.dropped + self._dispatch.overtaken

    def _recently(self, now: float) -> tuple[int, int]:
        """Return how many errors and losses there were in the last minute."""
        errors, loss = self._dispatch.errors, self._loss()
        at, errors_before, loss_before = self._past[0] if self._past else (now, 0, 0)
        if len(self._past) < RECENT / self._interval:
            errors_before = loss_before = 0  # It has not run for a minute.
        return errors - errors_before, loss - loss_before

    def _callbacks(self, now: float) -> dict[str, dict[str, Any]]:
        """Return what became of those that were ever called for, by their place in the description."""
        found = {}
        for index, tally in enumerate(self.tallies.all):
            count = tally.durations.count
            if count != self._counts.get(tally, 0):
                self._counts[tally] = count
                tally.last_at = time.time()
            if tally.last_at is not None:
                found[str(index)] = _counts_of(tally, count, now)
        return found

    # Clients and groups

    async def list_clients(self, order: Mapping[str, Any]) -> dict[str, Any]:
        """Return the newest clients that match, as ``ClientReport`` fields, and how many do."""
        wanted, count = _wanted(order), _count(order, MAX_CLIENTS)
        found = self._newest_first(order.get("group"))
        if wanted:
            # Reading a user's name may take a query, and reading thousands takes a while.
            found = await self._dispatch.in_thread(lambda: [each for each in found if _matches(each, wanted)])
        return {"total": len(found), "clients": [_client(self.server_id, each) for each in found[:count]]}

    def _newest_first(self, group: object) -> Sequence[Client]:
        """Return the clients of a group; if it is no name, all of them."""
        if not isinstance(group, str):
            return tuple(self._limits.clients.values())[::-1]
        return sorted(self._clients.in_groups([group]), key=attrgetter("connected_at"), reverse=True)

    async def list_groups(self, order: Mapping[str, Any]) -> dict[str, Any]:
        """Return the biggest groups that match, as ``GroupReport`` fields, and how many do; or those with ``names``."""
        names = order.get("names")
        if isinstance(names, list):
            asked = dict.fromkeys(name for name in names if isinstance(name, str))
            total, biggest = await self._biggest(tuple(asked), "", MAX_GROUPS)
        else:
            total, biggest = await self._biggest(self._clients.group_names(), _wanted(order), _count(order, MAX_GROUPS))
        return {"total": total, "groups": [{"name": name, "connections": -less} for less, name in biggest]}

    async def _biggest(self, names: Sequence[str], wanted: str, count: int) -> tuple[int, list[tuple[int, str]]]:
        """Return how many of these groups match, and the biggest: minus how many are in it, and its name."""
        total, least, biggest = 0, 0, list[tuple[int, str]]()
        for start in range(0, len(names), TURN):
            found = names[start : start + TURN]
            if wanted:
                found = [name for name in found if wanted in name.casefold()]
            total += len(found)
            sizes = self._clients.group_sizes(found)
            biggest += [(-size, name) for size, name in zip(sizes, found, strict=True) if size > least]
            biggest = sorted(biggest)[:count]
            if biggest and len(biggest) == count:
                least = -biggest[-1][0]
            # They are endless: others get their turn in between.
            await asyncio.sleep(0)
        return total, biggest

    # Messages that are traced

    def traced(self, message: Message, record: Record | None, calls: Sequence[Sending], dropped: str | None) -> Any:
        """Return the fields of a ``MessageTrace``."""
        chosen = self._dispatch.chosen(message)
        came_at = time.monotonic() if record is None else record.came_at
        heard_at = time.time() if record is None else record.heard_at
        return asdict(
            MessageTrace(
                server=self.server_id,
                host=self.about["host"],
                pid=self.about["pid"],
                clients=len(self._limits.clients),
                chosen=len(chosen),
                lag=heard_at - message.published_at,
                waited=calls[0].started - came_at if calls else 0.0,
                senders=tuple(_sender(call, len(chosen)) for call in calls),
                names=tuple(_named(client) for client in chosen[:MAX_NAMES]),
                dropped=dropped,
            )
        )


def resident_memory() -> int:
    """Return how many bytes of this process are in memory; where the system does not say, how many were at most."""
    try:
        with open("/proc/self/statm", "rb") as statm:
            return int(statm.read().split()[1]) * _PAGE_SIZE
    except OSError:
        return _peak_memory()


def _peak_memory() -> int:
    # Bytes on macOS, and kilobytes elsewhere (man 2 getrusage).
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)


def _description(tally: Tally) -> dict[str, Any]:
    callback = tally.callback
    return {
        "kind": callback.kind,
        "path": callback.path,
        "source": callback.source,
        "is_async": callback.is_async,
        "routing": tally.routing,
    }


def _counts_of(tally: Tally, count: int, now: float) -> dict[str, Any]:
    recent = tally.durations.recent(now)
    error_at, error = tally.last_error or (None, None)
    counts = {
        "heard": tally.heard,
        "calls": count,
        "rate": round(recent.rate, 3),
        "delivered": tally.delivered,
        "errors": tally.errors,
        "last_at": _rounded(tally.last_at),
        "last_error": error,
        "last_error_at": _rounded(error_at),
        "p50": _rounded(recent.quantile(0.5)),
        "p99": _rounded(recent.quantile(0.99)),
    }
    return {name: value for name, value in counts.items() if value}


def _message(record: Record) -> dict[str, Any]:
    return {
        "id": record.id,
        "routing": record.routing,
        "size": record.size,
        "published_at": record.published_at,
        "senders": [tally.callback.path for tally in record.tallies],
        "reached": record.reached,
        "errors": record.errors,
        "lag": _rounded(record.lag),
        "body": record.body,
    }


def _wanted(order: Mapping[str, Any]) -> str:
    """Return what an order searches for; nothing is everything."""
    search = order.get("search")
    return search[:MAX_SEARCH].casefold() if isinstance(search, str) else ""


def _count(order: Mapping[str, Any], most: int) -> int:
    limit = order.get("limit")
    return max(0, min(limit, most)) if isinstance(limit, int) else most


def _client(server_id: str, client: Client) -> dict[str, Any]:
    """Return the fields of a ``ClientReport``, which itself would take three times as long: there are hundreds."""
    connection = client.ws_connection
    return {
        "server": server_id,
        "id": client.id,
        "user": client.identity.name,
        "user_key": client.user_key,
        "address": client.address,
        "groups": sorted(client.groups),
        "connected_at": client.connected_at,
        "received": client.received,
        "unsent": 0 if connection is None else len(connection.backlog),
    }


def _matches(client: Client, wanted: str) -> bool:
    texts = (client.identity.name, client.user_key, client.id, client.address, *client.groups)
    return any(wanted in text.casefold() for text in texts if text)


def _named(client: Client) -> str:
    name = client.identity.name
    return client.id if name is None else f"{client.id} ({name})"


def _sender(call: Sending, chosen: int) -> SenderTrace:
    handed = call.arguments.get("clients_list")
    return SenderTrace(
        path=call.callback.path,
        source=call.callback.source,
        seconds=call.seconds,
        handed=chosen if handed is None else len(handed),
        reached=call.reached,
        error=None if call.error is None else error_text(call.error),
    )
