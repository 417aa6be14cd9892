"""From settings to a ``Server``: the one place that reads them for it."""

from __future__ import annotations

import functools
import socket
from collections.abc import Awaitable, Callable

from django.conf import settings

from djmease import connections
from djmease.authenticators import concern
from djmease.loader import authenticators
from djmease.registry import Registry
from djmease.server.identity import ANY_ORIGIN, LOCAL_HOSTS, Authentication, Gate
from djmease.server.proxies import Proxies
from djmease.server.server import Server


def make_server(
    registry: Registry,
    sockets: list[socket.socket],
    *,
    revive: Callable[[], Awaitable[None]] | None = None,
    hears_redis: bool = True,
) -> Server:
    """Make a server on sockets that listen, as the settings want it; on its event loop."""
    return Server(
        registry=registry,
        sockets=sockets,
        connect=connections.listener_connection if hears_redis else None,
        channel_prefix=connections.channel_prefix(),
        refuse=_gate().refusal,
        proxies=Proxies(settings.MEASE_TRUSTED_PROXIES, trusts_host=settings.USE_X_FORWARDED_HOST),
        authentication=_authentication(),
        path=settings.MEASE_PATH,
        max_workers=settings.MEASE_MAX_WORKERS,
        max_message_size=settings.MEASE_MAX_MESSAGE_SIZE,
        max_client_buffer=settings.MEASE_MAX_CLIENT_BUFFER,
        compression=settings.MEASE_COMPRESSION,
        ping_interval=settings.MEASE_PING_INTERVAL,
        ping_timeout=settings.MEASE_PING_TIMEOUT,
        revive=revive,
    )


def _gate() -> Gate:
    # Django refuses a star among its own, and it opens nothing here.
    djangos = [origin for origin in settings.CSRF_TRUSTED_ORIGINS if origin != ANY_ORIGIN]
    return Gate(
        allowed_hosts=settings.ALLOWED_HOSTS or (LOCAL_HOSTS if settings.DEBUG else ()),
        allowed_origins=[*settings.MEASE_ALLOWED_ORIGINS, *djangos],
        requires_origin=settings.MEASE_REQUIRE_ORIGIN,
    )


def _authentication() -> Authentication:
    asked = authenticators()
    return Authentication(
        authenticators=asked,
        concerns=functools.partial(concern, asked),
        login_required=settings.MEASE_LOGIN_REQUIRED,
    )
