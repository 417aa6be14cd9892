"""Redis clients made from ``MEASE_REDIS_URL``: a pooled one for publishers, one connection for the listener."""

from __future__ import annotations

import builtins
import functools
import os
import re
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from redis import ConnectionPool
from redis.asyncio import Connection
from redis.asyncio import ConnectionPool as AsyncConnectionPool
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    AuthenticationWrongNumberOfArgsError,
    AuthorizationError,
    BusyLoadingError,
    ConnectionError,
    InvalidResponse,
    NoPermissionError,
    RedisError,
    TimeoutError,
)
from redis.retry import Retry

from djmease.embedded import EMBEDDED_URL, check_private, directory, has_users, socket_path

CONNECT_TIMEOUT = 0.5
"""Seconds for one attempt to connect."""
RESPONSE_TIMEOUT = 1.0
"""Seconds for the answer to one command."""
AS_WE_READ = {"protocol": 2, "decode_responses": False}
"""What options and URL do not change. RESP 2 needs no HELLO, so that the oldest and the plainest servers answer."""
MAX_CONNECTIONS = 2**31
"""Of a process that publishes, which has one for each thread that does at once; redis-py allows 100."""

COMMANDS = (
    "+publish +subscribe +psubscribe +set +hset +hmget +expire +pexpire +del +zadd +zrem +zremrangebyscore +zrange "
    "+rpush +blpop +eval +evalsha +script|load +time +get +exists +hget +hgetall +hkeys +hlen +hvals +hdel +sadd +srem "
    "+smembers +zscore +zrangebyscore"
)
"""What the user of an ACL needs: for messages, for tickets (``SET``), for reports (up to ``BLPOP``), for presence."""

_pools: dict[tuple[str, str], ConnectionPool] = {}
# A pool sees by itself that it is in another process, and then waits for its lock: for ever, if a thread had it in the
# moment of the fork.
os.register_at_fork(after_in_child=_pools.clear)


def redis_url() -> str:
    """Return the URL that the settings name, ``embedded://`` where ``DEBUG`` stands in for one.

    Raises ``ImproperlyConfigured`` that names the cures where neither is set.
    """
    url: str | None = settings.MEASE_REDIS_URL
    if url:
        return url
    if settings.DEBUG:
        return EMBEDDED_URL
    raise ImproperlyConfigured(
        "MEASE_REDIS_URL is not set, and DEBUG is off: set it to the URL of a Redis or Valkey that all processes "
        "reach, such as 'redis://localhost:6379/0', or to 'embedded://' for a site on one machine."
    )


def is_embedded() -> bool:
    """Tell whether the settings ask for the embedded Valkey."""
    return redis_url() == EMBEDDED_URL


def is_idle() -> bool:
    """Tell whether Redis is an embedded Valkey that does not run because no server does."""
    return is_embedded() and not has_users(directory())


def connection_url() -> str:
    """Return the URL that redis-py takes: that of the embedded Valkey is its socket's."""
    url = redis_url()
    return _url_of_socket(directory()) if url == EMBEDDED_URL else url


@functools.lru_cache(maxsize=8)
def _url_of_socket(home: Path) -> str:
    return f"unix://{socket_path(home)}"


def check_url(url: str) -> None:
    """Raise ``ImproperlyConfigured`` with the reason for which redis-py does not take the URL, its password masked."""
    options = settings.MEASE_REDIS_OPTIONS
    reason = _refusal(url, options)
    if reason is None:
        return
    if options and _refusal(url, {}) is None:
        # Their values may be passwords.
        raise ImproperlyConfigured(
            f"MEASE_REDIS_OPTIONS has {', '.join(map(repr, options))}, which redis-py does not take: {reason}"
        )
    raise ImproperlyConfigured(f"MEASE_REDIS_URL is {masked(url)!r}, which redis-py does not take: {reason}")


def _refusal(url: str, options: dict[str, Any]) -> str | None:
    """Return why redis-py does not take a URL with these options, ``None`` where it does."""
    try:
        # A connection that is made is not connected; only then does redis-py look at all the options.
        ConnectionPool.from_url(url, **options).make_connection()
        AsyncConnectionPool.from_url(url, **options).make_connection()
    except (ValueError, TypeError, AttributeError, RedisError) as error:
        # Where a password is not escaped, its beginning may stand as the port.
        return str(error).partition(" as '")[0]
    return None


def masked(url: str) -> str:
    """Return ``url`` with its password replaced by asterisks, also where it is a query argument.

    A password that should have been escaped, or that stands in a URL that is none, is replaced too.
    """
    hidden = re.sub(r"(?<=://)([^:@/?#]*):.+@", r"\1:***@", url, count=1)
    return re.sub(r"(?<=[?&]password=)[^&]+", "***", hidden)


def address() -> str:
    """Return where Redis is, for people: the URL with its password masked."""
    return masked(connection_url())


def publisher_pool() -> ConnectionPool:
    """Return this process's pool for publishing: one for each URL and set of options, safe across threads and forks."""
    url, options = connection_url(), settings.MEASE_REDIS_OPTIONS
    key = (url, repr(options))
    try:
        return _pools[key]
    except KeyError:
        return _pools.setdefault(key, _make_pool(url, options, directory() if is_embedded() else None))


def listener_connection() -> Connection:
    """Return a new connection for the listener's event loop, without any retries of redis-py's own.

    They would hide a gap, and the listener supervises itself.
    """
    options = {**_options(AsyncRetry(NoBackoff(), 0)), **settings.MEASE_REDIS_OPTIONS}
    pool = AsyncConnectionPool.from_url(connection_url(), **options)
    # A listener waits for as long as nothing is published.
    pool.connection_kwargs.update(AS_WE_READ, socket_timeout=None)
    connection: Connection = pool.make_connection()
    return connection


def channel_prefix() -> str:
    """Return what stands before the routing in the name of a Redis channel."""
    return f"{settings.MEASE_KEY_PREFIX}:"


def group_prefix() -> str:
    """Return what stands before the group in the name of the channel of what is published to it."""
    return f"{settings.MEASE_KEY_PREFIX}.group:"


def user_prefix() -> str:
    """Return what stands before the user's primary key, which is quoted, in the name of the user's channel."""
    return f"{settings.MEASE_KEY_PREFIX}.user:"


def heartbeat_channel() -> str:
    """Return the channel of the servers' heartbeats, which the pattern of what is published does not match."""
    return f"{settings.MEASE_KEY_PREFIX}.heartbeat"


def control_channel() -> str:
    """Return the channel of orders to the servers, which the pattern of what is published does not match."""
    return f"{settings.MEASE_KEY_PREFIX}.control"


def reason(error: BaseException) -> str:
    """Return what is wrong with Redis, which the sentence calls "it", and the cure; there is no password in it."""
    chain = list(_chain(error))
    for kinds, tell in _REASONS:
        found = next((each for each in chain if isinstance(each, kinds)), None)
        if found is not None:
            return tell(_told(found))
    # The text of anything else may hold what it choked on, a password for one.
    return _told(error) if isinstance(error, (RedisError, ImproperlyConfigured)) else type(error).__name__


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and what caused it: redis-py wraps what the socket and TLS say.

    The context of anything else may be what the site was just about when it called us.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (error.__context__ if isinstance(error, RedisError) else None)


def _told(error: BaseException) -> str:
    # An old Redis that does not know a command repeats its arguments, which those of AUTH must not be.
    return " ".join(str(error).partition(", with args")[0].split()).rstrip(".") or type(error).__name__


def _no_tls(told: str) -> str:
    if "WRONG_VERSION_NUMBER" in told or "RECORD_LAYER_FAILURE" in told:
        return f"it does not speak TLS there ({told}): use redis:// in MEASE_REDIS_URL, or the port on which it does"
    return (
        f"TLS with it fails ({told}): name the authority of its certificate (ssl_ca_certs), or your own certificate "
        "where it wants one (ssl_certfile, ssl_keyfile), in MEASE_REDIS_URL or MEASE_REDIS_OPTIONS"
    )


def _wrong_password(told: str) -> str:
    return f"it refuses the user or password ({told}): set the right ones in MEASE_REDIS_URL or MEASE_REDIS_OPTIONS"


def _no_permission(told: str) -> str:
    prefix = settings.MEASE_KEY_PREFIX
    return (
        f"it does not permit its user that ({told}): give the user of MEASE_REDIS_URL, by ACL SETUSER, the channels "
        f"&{prefix}:* and &{prefix}.*, the keys ~{prefix}.* and the commands {COMMANDS}"
    )


def _loading(told: str) -> str:
    return f"it is still loading its data ({told}), which passes"


def _silent(told: str) -> str:
    # What a Redis that expects no TLS does with its greeting is to wait for more.
    return (
        f"it does not answer in time ({told}): see whether it hangs, or the network to it, or whether it speaks TLS on "
        "that port if MEASE_REDIS_URL says rediss://"
    )


def _absent(told: str) -> str:
    if "Protocol error, got" in told:
        return (
            f"it does not speak as a Redis ({told}): use rediss:// in MEASE_REDIS_URL if it wants TLS, or set another "
            "host and port"
        )
    if told == "Too many connections":
        return (
            f"this process has as many connections to it as it may, and all are in use ({told}): raise max_connections "
            "in MEASE_REDIS_URL or MEASE_REDIS_OPTIONS"
        )
    if "max number of clients" in told:
        return f"it takes no more connections ({told}): raise its maxclients, or close some"
    if any(sign in told.lower() for sign in ("closed by server", "reset by peer", "connection lost", "broken pipe")):
        return (
            f"it has closed the connection ({told}): see whether it was stopped or has closed this client, or use "
            "rediss:// in MEASE_REDIS_URL if it wants TLS"
        )
    return f"it does not answer ({told}): start it, or set MEASE_REDIS_URL to one that runs"


# In this order: the first kind that an error, or what caused it, is.
_REASONS: tuple[tuple[tuple[type[BaseException], ...], Callable[[str], str]], ...] = (
    ((ssl.SSLError,), _no_tls),
    ((AuthenticationError, AuthorizationError, AuthenticationWrongNumberOfArgsError), _wrong_password),
    ((NoPermissionError,), _no_permission),
    ((BusyLoadingError,), _loading),
    ((TimeoutError, builtins.TimeoutError), _silent),
    ((InvalidResponse, ConnectionError, OSError), _absent),
)


def key_prefix() -> str:
    """Return what stands before every channel and key, for people."""
    prefix: str = settings.MEASE_KEY_PREFIX
    return prefix


def servers_key() -> str:
    """Return the key of the sorted set of the servers that report, by the time of their last report."""
    return f"{settings.MEASE_KEY_PREFIX}.servers"


def server_prefix() -> str:
    """Return what stands before a server's id in the name of the key of its report."""
    return f"{settings.MEASE_KEY_PREFIX}.server."


def reply_prefix() -> str:
    """Return what stands before the keys to which servers add their answers."""
    return f"{settings.MEASE_KEY_PREFIX}.reply."


def presence_prefix() -> str:
    """Return what stands before the keys of who is in which group."""
    return f"{settings.MEASE_KEY_PREFIX}.presence."


def ticket_prefix() -> str:
    """Return what stands before a ticket's id in the name of the key that says it was used."""
    return f"{settings.MEASE_KEY_PREFIX}.ticket."


def _make_pool(url: str, options: dict[str, Any], home: Path | None) -> ConnectionPool:
    check_url(url)
    ours = {
        **_options(Retry(NoBackoff(), 0)),
        "redis_connect_func": functools.partial(_greet, home),
        "max_connections": MAX_CONNECTIONS,
    }
    pool = ConnectionPool.from_url(url, **{**ours, **options})
    pool.connection_kwargs.update(AS_WE_READ)
    return pool


def _greet(home: Path | None, connection: Any) -> None:
    """Begin a connection; to an embedded Valkey once it is sure that nobody but this user can have put it there."""
    try:
        if home is not None:
            check_private(home)
        connection.on_connect()
    except BaseException:
        # Redis-py does it for errors of its own alone, and the pool hands out what a time limit left half made.
        connection.disconnect()
        raise


def _options(retry: Any) -> dict[str, Any]:
    return {
        **AS_WE_READ,
        "retry": retry,
        "socket_connect_timeout": CONNECT_TIMEOUT,
        "socket_timeout": RESPONSE_TIMEOUT,
    }
