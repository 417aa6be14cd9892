"""The roll: who is in which group, as Redis holds it, and the scripts that keep it.

For each group there is a hash of persons, with an entry for each: five items of a JSON array, each on a line, which are
connections, since when, key, user and info. For each server and group there is a hash of that server's connections of
persons, for each server a set of its groups, and one sorted set has the servers by when they last said that they live,
in the time of Redis. What a server says is its state and no change, so that saying it again does no harm. Persons come
and go, and that is published, in one step: messages are in the order of what happened, and agree with it.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from djmease.messages import Message, new_id, to_json

ROUTING = "mease.presence"
"""On which joins and leaves are published."""
DEAD_AFTER = 7.0
"""Seconds after which a server that has not said that it lives is taken for dead."""
MAX_INFO = 1024
"""Bytes of what a client may tell of itself, as JSON."""


@dataclass(frozen=True, slots=True)
class Script:
    """A script for Redis, whose first arguments are the prefix of keys, that of the groups' channels, and a seed."""

    text: str

    @property
    def sha(self) -> str:
        """By what ``EVALSHA`` knows it."""
        return hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()


def new_seed() -> str:
    """Return the beginning of the ids of what one run of a script publishes, which appends five digits."""
    return os.urandom(6).hex()[:11]


def person_key(user_key: str | None, client_id: str) -> str:
    """Return what stands for a person in Redis: a user is one, with all its connections, and each stranger another."""
    return f"c{client_id}" if user_key is None else f"u{user_key}"


def describe(*, name: str | None, user_key: str | None, client_id: str, info: str) -> str:
    """Return what is told of a person: the last three items of its entry. ``info`` is JSON already."""
    # No JSON of ours has a line break in it.
    key = client_id if user_key is None else user_key
    return ",\n".join((to_json(key), to_json(None if user_key is None else name), info))


def entry_of(connections: int, since: float, described: str) -> bytes:
    """Return the entry of a person, where no script makes it."""
    return f"{connections},\n{since:.3f},\n{described}".encode()


def message_of(group: str, event: str, since: float, described: str) -> Message:
    """Return what is published of a ``join`` or ``leave``, where no script does it."""
    key, user, info = json.loads(f"[{described}]")
    body = {
        "type": ROUTING,
        "group": group,
        "event": event,
        "since": round(since, 3),
        "key": key,
        "user": user,
        "info": info,
    }
    return Message(
        routing=ROUTING, body=body, id=new_id(), published_at=time.time(), size=len(to_json(body)), groups=(group,)
    )


def encode_info(info: Any) -> str:
    """Return what a client tells of itself as JSON, or raise ``TypeError`` or ``ValueError`` with what is wrong."""
    if not isinstance(info, Mapping):
        raise TypeError(f"client.presence is {info!r:.80}, and should be a dict that JSON can hold")
    encoded = to_json(dict(info))
    size = len(encoded.encode())
    if size > MAX_INFO:
        raise ValueError(
            f"client.presence has {size} bytes as JSON, and may have {MAX_INFO}: every message of a join carries it"
        )
    return encoded


_COMMON = r"""
local keys, channels, seed = ARGV[1], ARGV[2], ARGV[3]
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local servers = keys .. 'servers'
local said = 0

local function say(group, event, since, described)
    said = said + 1
    local key, user, info = string.match(described, '^([^\n]+),\n([^\n]+),\n(.+)$')
    redis.call('PUBLISH', channels .. group, '\0mease1 j ' .. seed .. string.format('%05x %.6f', said, now)
        .. ' routing=mease.presence group=' .. group .. '\n{"type":"mease.presence","group":"' .. group
        .. '","event":"' .. event .. '","since":' .. since .. ',"key":' .. key .. ',"user":' .. user
        .. ',"info":' .. info .. '}')
end

-- A server has so many connections of a person in a group.
local function count(server, group, person, connections, since, described, is_quiet)
    local groups, here = keys .. 'groups.' .. server, keys .. 'of.' .. server .. '.' .. group
    local before = tonumber(redis.call('HGET', here, person) or 0)
    if connections == before then return end
    if connections > 0 then
        redis.call('HSET', here, person, connections)
        redis.call('SADD', groups, group)
    else
        redis.call('HDEL', here, person)
        if redis.call('EXISTS', here) == 0 then redis.call('SREM', groups, group) end
    end
    local persons = keys .. 'persons.' .. group
    local known = redis.call('HGET', persons, person)
    local total = 0
    if known then
        local total_before, since_before, described_before = string.match(known, '^(%d+),\n([^\n]+),\n(.+)$')
        total, described = tonumber(total_before), described_before
        -- After Redis has lost everything the one who came last may be the first to say so.
        if connections == 0 or tonumber(since_before) < tonumber(since) then since = since_before end
    end
    total = total + connections - before
    if total > 0 then
        redis.call('HSET', persons, person, string.format('%d,\n', total) .. since .. ',\n' .. described)
        if not known and not is_quiet then say(group, 'join', since, described) end
    elseif known then
        redis.call('HDEL', persons, person)
        say(group, 'leave', since, described)
    end
end
"""

BEAT = Script(
    _COMMON
    + r"""
-- A server lives. Returns the name of this life of Redis, whether the server was taken for dead or never known, and
-- the servers that seem dead. Arguments: the server, and after how many seconds one is dead.
local server, dead_after = ARGV[4], tonumber(ARGV[5])
redis.call('SET', keys .. 'epoch', time[1] .. '.' .. time[2], 'NX')
local seen = tonumber(redis.call('ZSCORE', servers, server) or 0)
redis.call('ZADD', servers, string.format('%.6f', now), server)
local dead = redis.call('ZRANGEBYSCORE', servers, '-inf', string.format('%.6f', now - dead_after))
return {redis.call('GET', keys .. 'epoch'), seen > 0 and 0 or 1, unpack(dead)}
"""
)

TELL = Script(
    _COMMON
    + r"""
-- What a server has now; returns 0, and does nothing, where it is not among the living. Arguments: the server, and for
-- each change six: group, person, connections, since when, what is told of the person, whether nothing is published.
local server = ARGV[4]
if tonumber(redis.call('ZSCORE', servers, server) or 0) == 0 then return 0 end
for place = 5, #ARGV, 6 do
    count(server, ARGV[place], ARGV[place + 1], tonumber(ARGV[place + 2]), ARGV[place + 3], ARGV[place + 4],
        ARGV[place + 5] == '1')
end
return 1
"""
)

AUDIT = Script(
    _COMMON
    + r"""
-- What Redis holds of a server: group, person, connections, group, ... Argument: the server.
local found = {}
for _, group in ipairs(redis.call('SMEMBERS', keys .. 'groups.' .. ARGV[4])) do
    local here = redis.call('HGETALL', keys .. 'of.' .. ARGV[4] .. '.' .. group)
    for place = 1, #here, 2 do
        found[#found + 1] = group
        found[#found + 1] = here[place]
        found[#found + 1] = here[place + 1]
    end
end
return found
"""
)

REAP = Script(
    _COMMON
    + r"""
-- Takes a server that is dead off the roll, so many persons at least; returns 0 where more are left. Arguments: the
-- server, after how many seconds it is dead, and how many persons.
local server, dead_after, limit = ARGV[4], tonumber(ARGV[5]), tonumber(ARGV[6])
local seen = redis.call('ZSCORE', servers, server)
if not seen or tonumber(seen) > now - dead_after then return 1 end
-- Should it live after all, it has to begin anew.
redis.call('ZADD', servers, 0, server)
for _, group in ipairs(redis.call('SMEMBERS', keys .. 'groups.' .. server)) do
    if limit <= 0 then return 0 end
    for _, person in ipairs(redis.call('HKEYS', keys .. 'of.' .. server .. '.' .. group)) do
        count(server, group, person, 0, '0', '')
        limit = limit - 1
    end
end
redis.call('ZREM', servers, server)
return 1
"""
)

SCRIPTS = (BEAT, TELL, AUDIT, REAP)
REAPED_AT_ONCE = 1000
"""Persons that one run of ``REAP`` takes away, after which others get their turn at Redis."""
