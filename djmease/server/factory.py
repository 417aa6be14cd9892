"""From settings to a ``Server``: the one place that reads them for it."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Awaitable, Callable

from django.conf import settings

from djmease import connections
from djmease.registry import Registry
from djmease.server.identity import LOCAL_HOSTS, Gate
from djmease.server.server import Server


def make_server(
    registry: Registry,
    sockets: list[socket.socket],
    *,
    revive: Callable[[], Awaitable[None]] | None = None,
    hears_redis: bool = True,
    ssl_context: ssl.SSLContext | None = None,
) -> Server:
    """Make a server on sockets that listen, as the settings want it; on its event loop. With a context it talks TLS."""
    gate = Gate(
        allowed_hosts=settings.ALLOWED_HOSTS or (LOCAL_HOSTS if settings.DEBUG else ()),
        allowed_origins=[*settings.MEASE_ALLOWED_ORIGINS, *settings.CSRF_TRUSTED_ORIGINS],
    )
    return Server(
        registry=registry,
        sockets=sockets,
        connect=connections.listener_connection if hears_redis else None,
        channel_prefix=connections.channel_prefix(),
        refuse=gate.refusal,
        path=settings.MEASE_PATH,
        max_workers=settings.MEASE_MAX_WORKERS,
        max_message_size=settings.MEASE_MAX_MESSAGE_SIZE,
        max_client_buffer=settings.MEASE_MAX_CLIENT_BUFFER,
        compression=settings.MEASE_COMPRESSION,
        ping_interval=settings.MEASE_PING_INTERVAL,
        ping_timeout=settings.MEASE_PING_TIMEOUT,
        revive=revive,
        ssl_context=ssl_context,
    )
