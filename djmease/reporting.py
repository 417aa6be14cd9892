"""``get_status``: what all servers on this prefix report, put together; and what they tell where they are asked."""

from __future__ import annotations

import json
import secrets
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from django.core.exceptions import ImproperlyConfigured
from redis import Redis
from redis.exceptions import NoPermissionError, RedisError

from djmease import connections
from djmease.attendance import presence_counts
from djmease.problems import Problem, find_problems, no_redis, no_server
from djmease.publishing import publish_control
from djmease.reports import CallbackReport, ClientReport, GroupReport, MessageReport, ServerReport, read, read_server

MAX_MESSAGES = 50
"""How many of the last messages a status has."""
MAX_CLIENTS = 300
"""How many clients are told at once."""
MAX_GROUPS = 300
"""How many groups are told at once."""
MAX_SLICE = connections.RESPONSE_TIMEOUT / 2
"""Seconds that one question to Redis waits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """All servers on this prefix at one time."""

    taken_at: float
    """In seconds since the epoch."""
    redis: str
    """Where Redis is, with the password masked."""
    prefix: str
    servers: tuple[ServerReport, ...] = ()
    """In the order in which they started."""
    problems: tuple[Problem, ...] = ()
    """The worst first."""
    callbacks: tuple[CallbackReport, ...] = field(default=())
    """Of all servers together: senders by their routes, then receivers, openers and closers."""
    messages: tuple[MessageReport, ...] = field(default=())
    """The last ones, of all servers together, the newest first."""

    @property
    def is_well(self) -> bool:
        return not any(problem.is_error for problem in self.problems)

    @property
    def clients(self) -> int:
        return sum(server.clients for server in self.servers)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientsReport:
    """Some of the clients of all servers."""

    clients: tuple[ClientReport, ...]
    """The newest first, ``MAX_CLIENTS`` at most."""
    total: int
    """How many there are that match."""
    silent: tuple[str, ...] = ()
    """The ids of servers that did not answer in time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupsReport:
    """Some of the groups of all servers."""

    groups: tuple[GroupReport, ...]
    """The biggest first, ``MAX_GROUPS`` at most, each with its connections on all servers."""
    total: int
    """How many there are that match. Where servers have more than they tell, at least: some may be on several."""
    silent: tuple[str, ...] = ()
    """The ids of servers that did not answer in time."""


def get_status() -> Status:
    """Return what all servers report, and what is wrong.

    It reads Redis, and blocks for a second or two at most; a Redis that does not answer is one of the problems, and no
    error. Raises ``ImproperlyConfigured`` where ``MEASE_REDIS_URL`` is not set and ``DEBUG`` is off.
    """
    nothing = Status(taken_at=time.time(), redis=connections.address(), prefix=connections.key_prefix())
    try:
        if connections.is_idle():
            return replace(nothing, problems=(no_server(),))
        found, unread = _read_servers()
    except (RedisError, OSError, ImproperlyConfigured) as error:
        return replace(nothing, problems=(no_redis(error),))
    servers = tuple(sorted(found, key=lambda server: (server.started_at, server.id)))
    return replace(
        nothing,
        servers=servers,
        problems=find_problems(servers, unread, nothing.taken_at),
        callbacks=_put_together(servers),
        messages=_last_messages(servers),
    )


def list_clients(
    status: Status, *, search: str = "", group: str | None = None, limit: int = MAX_CLIENTS, timeout: float = 1.0
) -> ClientsReport:
    """Ask the servers of a status for their clients, and wait ``timeout`` seconds for their answers at most.

    ``search`` is a part of the user's name, its primary key, a client's id, an address or a group; nothing is
    everybody. ``group`` is a name: of its members only. Raises redis-py's ``RedisError`` or ``OSError`` where Redis
    does not answer.
    """
    limit = max(0, min(limit, MAX_CLIENTS))
    narrowed = {} if group is None else {"group": group}
    told = _ask_each(status, "clients", ClientReport, timeout, search=search, limit=limit, **narrowed)
    clients = [client for _total, found in told.values() for client in found]
    clients.sort(key=lambda client: client.connected_at, reverse=True)
    return ClientsReport(
        clients=tuple(clients[:limit]),
        total=sum(total for total, _found in told.values()),
        silent=_silent(status, told),
    )


def list_groups(status: Status, *, search: str = "", limit: int = MAX_GROUPS, timeout: float = 1.0) -> GroupsReport:
    """Ask the servers of a status for their groups, and wait ``timeout`` seconds for their answers at most.

    ``search`` is a part of the name; nothing is every group. Several servers that have more than they tell are asked
    once more, for the sizes of the biggest. Then a group that is among the biggest of no server may be missed, though
    it is on many. Raises redis-py's ``RedisError`` or ``OSError`` where Redis does not answer.
    """
    limit = max(0, min(limit, MAX_GROUPS))
    told = _ask_each(status, "groups", GroupReport, timeout, search=search, limit=limit)
    sizes = {server: _sizes(groups) for server, (_total, groups) in told.items()}
    if len(told) > 1 and any(total > len(groups) for total, groups in told.values()):
        names = list(_biggest(sizes.values(), MAX_GROUPS))
        for server, (_total, groups) in _ask_each(status, "groups", GroupReport, timeout, names=names).items():
            sizes[server] = {**sizes.get(server, {}), **_sizes(groups)}
    biggest = _biggest(sizes.values(), limit)
    persons = _persons(biggest)
    return GroupsReport(
        groups=tuple(
            GroupReport(name=name, connections=count, persons=persons.get(name)) for name, count in biggest.items()
        ),
        total=max(len(set().union(*sizes.values())), *(total for total, _found in told.values()), 0),
        silent=_silent(status, told),
    )


def _sizes(groups: Iterable[GroupReport]) -> dict[str, int]:
    return {group.name: group.connections for group in groups}


def _biggest(of_servers: Iterable[dict[str, int]], limit: int) -> dict[str, int]:
    """Return the biggest groups of all servers together, with their sizes, in order."""
    total: Counter[str] = Counter()
    for sizes in of_servers:
        total.update(sizes)
    return dict(sorted(total.items(), key=lambda item: (-item[1], item[0]))[:limit])


def _persons(groups: Iterable[str]) -> dict[str, int]:
    """Return how many persons are in those of the groups that have presence, as far as Redis tells."""
    with suppress(RedisError, OSError, ValueError):  # A name that is none came from no server of ours.
        return presence_counts(groups)
    return {}


Report = TypeVar("Report")


def _ask_each(
    status: Status, what: str, kind: type[Report], timeout: float, **order: Any
) -> dict[str, tuple[int, tuple[Report, ...]]]:
    """Ask all servers to list something, and return how many each has, and those that it tells of."""
    told = {}
    for answer in ask({"order": f"list_{what}", **order}, expected=len(status.servers), timeout=timeout):
        with suppress(ValueError):
            # A server of another version that tells something else counts as one that is silent.
            told[str(answer.get("server"))] = _listed(answer, what, kind)
    return told


def _listed(answer: dict[str, Any], what: str, kind: type[Report]) -> tuple[int, tuple[Report, ...]]:
    total, found = answer.get("total"), answer.get(what)
    if type(total) is not int or not isinstance(found, list):
        raise ValueError(f"it tells of no {what}")
    return total, tuple(read(kind, each) for each in found)


def _silent(status: Status, told: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted({server.id for server in status.servers}.difference(told)))


def ask(order: dict[str, Any], *, expected: int, timeout: float) -> list[dict[str, Any]]:
    """Send an order to all servers, and return so many answers, or as many as come in time.

    Each answer is what the server says, with its id as ``server``. Raises redis-py's ``RedisError`` or ``OSError``
    where Redis does not answer, and nothing where it did not take the order.
    """
    token = secrets.token_hex(16)
    if not expected or not publish_control({**order, "reply": token}):
        return []
    return list(answers(token, expected=expected, timeout=timeout))


def answers(token: str, *, expected: int, timeout: float) -> Iterator[dict[str, Any]]:
    """Yield what servers answer to a token, which nobody else can guess: so many, or as many as come in time."""
    key = f"{connections.reply_prefix()}{token}"
    deadline = time.monotonic() + timeout
    redis = _redis()
    longest = _longest_wait(redis)
    while expected and (left := deadline - time.monotonic()) > 0:
        # Redis takes 0 for "as long as it takes", and must answer before its connection is given up.
        found = redis.blpop([key], timeout=max(0.01, min(left, longest)))
        answer = None if found is None else _parsed(found[1])
        if isinstance(answer, dict):
            expected -= 1
            yield answer


def _longest_wait(redis: Any) -> float:
    """Return the seconds for which Redis may keep us waiting, which is less than those after which it is given up."""
    timeout = redis.connection_pool.connection_kwargs.get("socket_timeout")
    return min(MAX_SLICE, timeout / 2) if timeout else MAX_SLICE


def _parsed(payload: bytes) -> Any:
    with suppress(ValueError, RecursionError):
        return json.loads(payload)
    return None


def _redis() -> Any:
    return Redis(connection_pool=connections.publisher_pool())


def _read_servers() -> tuple[list[ServerReport], list[tuple[str, str]]]:
    """Return the reports that can be read, and the ids of the others, each with the reason."""
    redis = _redis()
    ids = [each.decode(errors="replace") for each in redis.zrange(connections.servers_key(), 0, -1)]
    with redis.pipeline(transaction=False) as pipe:
        for server_id in ids:
            pipe.hmget(f"{connections.server_prefix()}{server_id}", "report", "callbacks")
        replies = pipe.execute(raise_on_error=False)
    found: list[ServerReport] = []
    unread: list[tuple[str, str]] = []
    for server_id, reply in zip(ids, replies, strict=True):
        if isinstance(reply, list) and None in reply:
            continue  # It is gone, and the others take its name out of the list; or it comes just now.
        try:
            found.append(_read_server(server_id, reply))
        except ValueError as error:
            unread.append((server_id, str(error)))
    return found, unread


def _read_server(server_id: str, reply: Any) -> ServerReport:
    if isinstance(reply, NoPermissionError):
        raise reply
    if isinstance(reply, Exception):
        raise ValueError(str(reply))
    server = read_server(*reply)
    if server.id != server_id:
        raise ValueError(f"it is of the server {server.id!r:.80}")
    return server


# All servers together


def _put_together(servers: Iterable[ServerReport]) -> tuple[CallbackReport, ...]:
    found: dict[tuple[str, str | None, str, str], list[CallbackReport]] = defaultdict(list)
    for server in servers:
        for callback in server.callbacks:
            found[callback.kind, callback.routing, callback.path, callback.source].append(callback)
    return tuple(_sum(same) for same in found.values())


def _sum(same: list[CallbackReport]) -> CallbackReport:
    first = same[0]
    if len(same) == 1:
        return first
    last_error = max(same, key=lambda each: each.last_error_at or 0.0)
    return replace(
        first,
        # Every server hears every message.
        heard=max(each.heard for each in same),
        calls=sum(each.calls for each in same),
        rate=sum(each.rate for each in same),
        delivered=sum(each.delivered for each in same),
        errors=sum(each.errors for each in same),
        last_at=_most(each.last_at for each in same),
        last_error=last_error.last_error,
        last_error_at=last_error.last_error_at,
        # Of the slowest server: those of all calls together cannot be told from these.
        p50=_most(each.p50 for each in same),
        p99=_most(each.p99 for each in same),
    )


def _most(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def _last_messages(servers: Iterable[ServerReport]) -> tuple[MessageReport, ...]:
    found: dict[str, MessageReport] = {}
    for server in servers:
        for message in server.messages:
            before = found.get(message.id)
            found[message.id] = message if before is None else _together(before, message)
    newest_first = sorted(found.values(), key=lambda message: message.published_at, reverse=True)
    return tuple(newest_first[:MAX_MESSAGES])


def _together(first: MessageReport, second: MessageReport) -> MessageReport:
    return replace(
        first,
        reached=first.reached + second.reached,
        errors=first.errors + second.errors,
        lag=_most((first.lag, second.lag)),
    )
