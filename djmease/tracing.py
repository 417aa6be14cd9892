"""Follow one message: through the settings, Redis, each server and its senders, to the clients or to where it stops."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from redis.exceptions import RedisError

from djmease import connections, loader, reporting
from djmease.problems import START_COMMAND
from djmease.publishing import Publication, PublishError, UnknownRouting, publish_now
from djmease.registry import Callback
from djmease.reporting import Status
from djmease.reports import NO_SENDER, MessageTrace, SenderTrace, ServerReport, read
from djmease.tables import several

TIMEOUT = 5.0
"""Seconds for which the servers are waited for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """What became of a message."""

    routing: str
    groups: tuple[str, ...]
    users: tuple[str, ...]
    redis: str
    """Where Redis is, with the password masked."""
    timeout: float
    """Seconds for which the servers were waited for at most."""
    senders: tuple[Callback, ...] = ()
    """What would run by the settings of this process."""
    refusal: str | None = None
    """Why these settings do not let it be published."""
    failure: str | None = None
    """Why Redis did not take it, or did not hand on what became of it."""
    id: str | None = None
    channel: str | None = None
    """Where it was published."""
    is_for_all: bool = True
    """Whether all servers hear it; else those that have clients whom it may be for."""
    heard: int | None = None
    """To how many servers Redis handed it; ``None`` where it did not take it."""
    seconds: float = 0.0
    """How long Redis took."""
    is_idle: bool = False
    """Whether Redis is an embedded Valkey that does not run, since no server does."""
    servers: tuple[MessageTrace, ...] = ()
    """What each server told."""
    running: tuple[ServerReport, ...] = ()
    """Servers that report."""
    connected: int = 0
    """Where no server has a client whom it may be for: how many clients there are."""

    @property
    def silent(self) -> tuple[ServerReport, ...]:
        """Servers that run and did not tell."""
        told = {server.server for server in self.servers}
        return tuple(server for server in self.running if server.id not in told)

    @property
    def written(self) -> int:
        """Times that it was written to a client."""
        return sum(sender.reached for sender in self._sender_traces())

    @property
    def failed(self) -> tuple[SenderTrace, ...]:
        """What raised."""
        return tuple(sender for sender in self._sender_traces() if sender.error is not None)

    def _sender_traces(self) -> Iterator[SenderTrace]:
        return (sender for server in self.servers for sender in server.senders)


def follow(
    routing: str,
    message: Any,
    *,
    groups: Sequence[str] = (),
    users: Sequence[str] = (),
    timeout: float = TIMEOUT,
) -> Trace:
    """Publish a message, and wait until all servers that heard it are done with it, ``timeout`` seconds at most.

    Raises ``ValueError`` and ``TypeError`` for what ``publish`` does not take; what happens later is in the answer.
    """
    senders = loader.load().registry.senders_for(routing)
    trace = Trace(
        routing=routing,
        groups=tuple(groups),
        users=tuple(users),
        redis=connections.address(),
        timeout=timeout,
        senders=senders,
    )
    token, began = secrets.token_hex(16), time.monotonic()
    try:
        sent = publish_now(routing, message, group=groups or None, user=users or None, trace=token)
    except UnknownRouting as error:
        return replace(trace, refusal=str(error))
    except PublishError as error:
        return replace(trace, failure=error.reason)
    return follow_up(replace(trace, seconds=time.monotonic() - began), sent, token)


def follow_up(trace: Trace, sent: Publication, token: str) -> Trace:
    """Return a trace with what the servers tell of a message that was published with this token."""
    status = reporting.get_status()
    trace = replace(
        trace,
        id=sent.id,
        channel=sent.channels[0],
        is_for_all=sent.is_for_all,
        heard=sent.heard,
        is_idle=not sent.heard and connections.is_idle(),
        running=status.servers,
    )
    if trace.heard == 0 and not trace.is_for_all:
        return replace(trace, connected=_count_clients(status, trace.timeout))
    return _with_answers(trace, token)


def _count_clients(status: Status, timeout: float) -> int:
    # A report may be older than the last of them.
    with suppress(RedisError, OSError):
        return reporting.list_clients(status, limit=0, timeout=timeout).total
    return status.clients


def _with_answers(trace: Trace, token: str) -> Trace:
    found: list[MessageTrace] = []
    failure = None
    try:
        for answer in reporting.answers(token, expected=trace.heard or 0, timeout=trace.timeout):
            try:
                found.append(read(MessageTrace, answer))
            except ValueError as error:
                failure = f"a server, of another version of django-mease perhaps, told something else ({error})"
    except (RedisError, OSError) as error:
        failure = connections.reason(error)
    servers = tuple(sorted(found, key=lambda server: (server.host, server.pid)))
    return replace(trace, servers=servers, failure=failure)


# Where it stopped


def verdict(trace: Trace) -> str:
    """Return in a sentence or two whether the message came to clients, and where it stopped if not."""
    if trace.written:
        return f"It arrives: {_written(trace)}."
    if trace.refusal is not None:
        return f"It stops at the settings. {trace.refusal}"
    if trace.heard is None:
        return f"It stops at Redis: {trace.failure or 'it was not sent, since a test takes what is published'}."
    if not trace.heard and not trace.is_for_all:
        return f"It stops in front of the clients: {_unwanted(trace)}"
    if not trace.heard:
        return f"It stops behind Redis: {_unheard(trace)}"
    if not trace.servers:
        return f"It stops in the servers: {_untold(trace)}"
    ran = [server for server in trace.servers if server.senders]
    if not ran:
        return f"It stops in the servers: {_dropped(trace)}"
    if trace.failed:
        return f"It stops in the senders: {_raised(trace)}."
    if not any(server.chosen for server in ran):
        return f"It stops in front of the clients: {_nobody(trace, ran)}."
    return f"It stops in the senders: they ran and wrote to nobody, though there {_choice(trace)}."


def notes(trace: Trace) -> Iterator[str]:
    """Yield what else is wrong, while the message came further elsewhere."""
    if trace.written and trace.failed:
        yield f"But {_raised(trace)}."
    if any(server.senders for server in trace.servers):
        for server in trace.servers:
            if not server.senders:
                yield f"The server {server.pid} on {server.host} ran nothing: {server.dropped or NO_SENDER}."
    if trace.servers and trace.failure:
        yield f"Not all of it is known: {trace.failure}."
    if trace.servers:
        yield from _missing(trace)


def _written(trace: Trace) -> str:
    writers = [[sender for sender in server.senders if sender.reached] for server in trace.servers]
    if all(len(each) < 2 and all(sender.reached <= sender.handed for sender in each) for each in writers):
        return f"written to {several(trace.written, 'client')}"
    return f"written {several(trace.written, 'time')} to clients"


def _unwanted(trace: Trace) -> str:
    if not trace.running:
        return f"none {_target(trace)}. If no server runs, start one: {START_COMMAND}"
    if not trace.connected:
        return "none is connected."
    return f"{_connected(trace.connected)}, and none {_target(trace)}."


def _unheard(trace: Trace) -> str:
    if not trace.silent:
        return f"no WebSocket server runs. Start one: {START_COMMAND}"
    return f"no server hears it, though some run: {_named(trace.silent)}."


def _named(servers: Sequence[ServerReport]) -> str:
    return ", ".join(f"{server.pid} on {server.host}{_trouble(server)}" for server in servers)


def _trouble(server: ServerReport) -> str:
    return f" ({server.trouble})" if server.trouble else ""


def _untold(trace: Trace) -> str:
    who = several(trace.heard or 0, "server")
    if trace.failure:
        return f"{who} heard it, and what became of it is not known: {trace.failure}."
    silent = f" ({_named(trace.silent)})" if trace.is_for_all and trace.silent else ""
    return (
        f"{who} heard it{silent}, and none told within {trace.timeout:g} s what became of it. Its senders may still "
        "run, or wait behind slow ones: see mease_status and the log, or let --timeout be longer."
    )


def _dropped(trace: Trace) -> str:
    reasons = dict.fromkeys(server.dropped for server in trace.servers if server.dropped not in (None, NO_SENDER))
    if reasons:
        return f"{' and '.join(map(str, reasons))}."
    if not trace.senders:
        return "no sender is registered for it there, nor here."
    return (
        "no sender is registered for it there, though there is one here: they were started with other settings or "
        "code. Restart them."
    )


def _raised(trace: Trace) -> str:
    # The same in several servers is said once.
    return " and ".join(dict.fromkeys(f"{sender.path} raised {sender.error}" for sender in trace.failed))


def _nobody(trace: Trace, ran: Sequence[MessageTrace]) -> str:
    connected = sum(server.clients for server in ran)
    if not connected:
        return "none is connected"
    return f"{_connected(connected)} there, and none {_target(trace)}"


def _connected(number: int) -> str:
    return f"{several(number, 'client')} {'is' if number == 1 else 'are'} connected"


def _target(trace: Trace) -> str:
    groups = f"is in the {'group' if len(trace.groups) == 1 else 'groups'} {', '.join(trace.groups)}"
    users = f"is of the {'user' if len(trace.users) == 1 else 'users'} {', '.join(trace.users)}"
    if trace.groups and trace.users:
        return f"{groups} and {users}"
    return groups if trace.groups else users if trace.users else "has its openers behind it yet"


def _choice(trace: Trace) -> str:
    chosen = sum(server.chosen for server in trace.servers)
    return f"{'was' if chosen == 1 else 'were'} {several(chosen, 'client')} to write to"


def _missing(trace: Trace) -> Iterator[str]:
    missing = (trace.heard or 0) - len(trace.servers)
    if trace.is_for_all:
        for server in trace.silent:
            told = f"has not told within {trace.timeout:g} s what it did with it" if missing > 0 else "did not hear it"
            yield f"The server {server.pid} on {server.host} {told}{_trouble(server)}."
        missing -= len(trace.silent)
    if missing > 0:
        what = "no server" if missing == 1 else "no servers"
        yield f"Redis handed it to {several(missing, 'listener')} more, which may be {what}, or be slow."
