"""``presence`` and ``presence_count``: who is in a group now, on all servers, asked from any process."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from django.conf import settings
from redis import Redis

from djmease import connections, roll
from djmease.messages import check_group
from djmease.publishing import refuse_event_loop
from djmease.registry import matches


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """Somebody who is in a group: a user with all its connections, or one connection of nobody known."""

    key: str
    """The user's primary key as text; of nobody known the id of its client."""
    user: str | None
    """The user's name, ``None`` of nobody known."""
    connections: int
    """How many of its clients are in the group, on all servers."""
    since: float
    """When the first of them came into it, in seconds since the epoch."""
    info: Mapping[str, Any]
    """``client.presence`` of the client that came first."""

    @property
    def user_key(self) -> str | None:
        """The user's primary key as text, ``None`` of nobody known."""
        return None if self.user is None else self.key


sources: list[Callable[[str], list[Person]]] = []
"""Who is asked instead of Redis, the last of them; for djmease.test."""


def presence(group: str) -> list[Person]:
    """Return who is in a group, those first who have been there longest.

    Raises ``ValueError`` for a group that no pattern of ``MEASE_PRESENCE`` covers, redis-py's ``RedisError`` or
    ``OSError`` where Redis does not answer, ``ImproperlyConfigured`` where no Redis is named, or its URL is none, and
    ``SynchronousOnlyOperation`` on an event loop, where ``await apresence(...)`` is meant.
    """
    refuse_event_loop("presence", "apresence")
    return _presence(group)


def presence_count(group: str) -> int:
    """Return how many persons are in a group: the length of ``presence(group)``, in one step. Raises what it raises."""
    refuse_event_loop("presence_count", "apresence_count")
    return _presence_count(group)


async def apresence(group: str) -> list[Person]:
    """Do what ``presence`` does, on an event loop."""
    return await asyncio.to_thread(_presence, group)


async def apresence_count(group: str) -> int:
    """Do what ``presence_count`` does, on an event loop."""
    return await asyncio.to_thread(_presence_count, group)


def _presence(group: str) -> list[Person]:
    _check(group)
    if sources:
        return sources[-1](group)
    return read(_ask("HVALS", [group])[0] or ())


def _presence_count(group: str) -> int:
    _check(group)
    return presence_counts([group])[group]


def presence_counts(groups: Iterable[str]) -> dict[str, int]:
    """Return how many persons are in each of these groups that has presence, all in one step.

    Raises redis-py's ``RedisError`` or ``OSError`` where Redis does not answer.
    """
    covered = [group for group in groups if covers(group)]
    if sources:
        return {group: len(sources[-1](group)) for group in covered}
    return {group: int(count or 0) for group, count in zip(covered, _ask("HLEN", covered), strict=True)}


def covers(group: str) -> bool:
    """Tell whether a group has presence."""
    return any(matches(pattern, group) for pattern in settings.MEASE_PRESENCE)


def _check(group: str) -> None:
    check_group(group)
    if not covers(group):
        raise ValueError(
            f"the group {group!r} has no presence: no pattern of MEASE_PRESENCE, which is {settings.MEASE_PRESENCE!r}, "
            "covers it"
        )


def _ask(command: str, groups: Sequence[str]) -> list[Any]:
    """Return what Redis holds of each group, without what servers that are dead have left; ``None`` is nothing."""
    if not groups:
        return []
    if connections.is_idle():
        return [None] * len(groups)  # It does not run because no server does.
    redis = Redis(connection_pool=connections.publisher_pool())
    prefix = connections.presence_prefix()
    while True:
        pipe = redis.pipeline(transaction=False)
        pipe.time()
        pipe.zrange(f"{prefix}servers", 0, 0, withscores=True)
        for group in groups:
            pipe.execute_command(command, f"{prefix}persons.{group}")
        (seconds, microseconds), longest_silent, *found = pipe.execute()
        oldest = seconds + microseconds / 1e6 - roll.DEAD_AFTER
        dead = [server for server, seen_at in longest_silent if seen_at <= oldest]
        if not dead:
            return found
        # Another server does this when it looks; there may be none.
        arguments = (prefix, connections.group_prefix(), roll.new_seed(), dead[0], roll.DEAD_AFTER, roll.REAPED_AT_ONCE)
        redis.eval(roll.REAP.text, 0, *arguments)


def read(entries: Iterable[bytes]) -> list[Person]:
    """Return the persons of which these are the entries in the roll, in the order in which they came."""
    # Parsing all at once is the quickest: each is five items of an array.
    items = iter(json.loads(b"[%b]" % b",".join(entries)))
    persons = [
        Person(key=key, user=user, connections=connections, since=since, info=info)
        for connections, since, key, user, info in zip(items, items, items, items, items, strict=True)
    ]
    return sorted(persons, key=attrgetter("since"))
