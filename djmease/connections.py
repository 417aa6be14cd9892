"""Redis clients made from ``MEASE_REDIS_URL``: a pooled one for publishers, one connection for the listener."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from redis import ConnectionPool
from redis.asyncio import Connection
from redis.asyncio import ConnectionPool as AsyncConnectionPool
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

from djmease.embedded import EMBEDDED_URL, check_private, directory, socket_path

CONNECT_TIMEOUT = 0.5
"""Seconds for one attempt to connect."""
RESPONSE_TIMEOUT = 1.0
"""Seconds for the answer to one command."""

_pools: dict[tuple[str, str], ConnectionPool] = {}


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


def connection_url() -> str:
    """Return the URL that redis-py takes: that of the embedded Valkey is its socket's."""
    url = redis_url()
    return _url_of_socket(directory()) if url == EMBEDDED_URL else url


@functools.lru_cache(maxsize=8)
def _url_of_socket(home: Path) -> str:
    return f"unix://{socket_path(home)}"


def check_url(url: str) -> None:
    """Raise ``ImproperlyConfigured`` with the reason for which redis-py does not take the URL, its password masked."""
    try:
        # A connection that is made is not connected; only then does redis-py look at all the options.
        ConnectionPool.from_url(url, **settings.MEASE_REDIS_OPTIONS).make_connection()
    except (ValueError, TypeError, AttributeError) as error:
        # Where a password is not escaped, its beginning may stand as the port.
        reason = str(error).partition(" as '")[0]
        raise ImproperlyConfigured(
            f"MEASE_REDIS_URL is {masked(url)!r}, which redis-py does not take: {reason}"
        ) from None


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
    # A listener waits for as long as nothing is published.
    options = {**_options(AsyncRetry(NoBackoff(), 0)), **settings.MEASE_REDIS_OPTIONS, "socket_timeout": None}
    connection: Connection = AsyncConnectionPool.from_url(connection_url(), **options).make_connection()
    return connection


def channel_prefix() -> str:
    """Return what stands before the routing in the name of a Redis channel."""
    return f"{settings.MEASE_KEY_PREFIX}:"


def ticket_prefix() -> str:
    """Return what stands before a ticket's id in the name of the key that says it was used."""
    return f"{settings.MEASE_KEY_PREFIX}.ticket."


def _make_pool(url: str, options: dict[str, Any], home: Path | None) -> ConnectionPool:
    ours = _options(Retry(NoBackoff(), 0))
    if home is not None:
        ours["redis_connect_func"] = functools.partial(_greet_embedded, home)
    return ConnectionPool.from_url(url, **{**ours, **options})


def _greet_embedded(home: Path, connection: Any) -> None:
    """Begin a connection to the embedded Valkey, once it is sure that nobody but this user can have put it there."""
    try:
        check_private(home)
    except BaseException:
        connection.disconnect()
        raise
    connection.on_connect()


def _options(retry: Any) -> dict[str, Any]:
    # RESP 2 needs no HELLO, so that the oldest and the plainest servers answer; pub/sub reads the same in both.
    return {
        "protocol": 2,
        "retry": retry,
        "socket_connect_timeout": CONNECT_TIMEOUT,
        "socket_timeout": RESPONSE_TIMEOUT,
    }
