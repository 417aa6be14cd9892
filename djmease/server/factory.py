"""From settings to a ``Server``: the one place that reads them for it."""

from __future__ import annotations

import functools
import hashlib
import os
import socket
import ssl
from collections.abc import Awaitable, Callable

from django.conf import settings

import djmease
from djmease import connections
from djmease.authenticators import concern
from djmease.loader import authenticators
from djmease.messages import new_id
from djmease.registry import Registry
from djmease.server.client import Client
from djmease.server.identity import ANY_ORIGIN, LOCAL_HOSTS, Authentication, Gate
from djmease.server.limits import Limits
from djmease.server.link import Access
from djmease.server.neighbours import Heartbeat
from djmease.server.options import Options
from djmease.server.proxies import Proxies
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
    return Server(
        registry=registry,
        sockets=sockets,
        access=_access(revive) if hears_redis else None,
        names=connections.names(),
        heartbeat=_heartbeat(registry),
        addresses=addresses(sockets, "ws" if ssl_context is None else "wss"),
        refuse=_gate().refusal,
        proxies=Proxies(settings.MEASE_TRUSTED_PROXIES, trusts_host=settings.USE_X_FORWARDED_HOST),
        authentication=_authentication(),
        limits=_limits(),
        options=_options(),
        ssl_context=ssl_context,
    )


def addresses(sockets: list[socket.socket], scheme: str) -> list[str]:
    """Return where a server on these sockets is reached, as URLs."""
    return [_address(listening, scheme) for listening in sockets]


def _address(listening: socket.socket, scheme: str) -> str:
    name = listening.getsockname()
    path = settings.MEASE_PATH or "/"
    if listening.family == socket.AF_UNIX:
        return f"unix:{name}"
    host = f"[{name[0]}]" if listening.family == socket.AF_INET6 else name[0]
    return f"{scheme}://{host}:{name[1]}{path}"


def _options() -> Options:
    return Options(
        path=settings.MEASE_PATH,
        max_header_size=settings.MEASE_MAX_HEADER_SIZE,
        handshake_timeout=settings.MEASE_HANDSHAKE_TIMEOUT,
        compression=settings.MEASE_COMPRESSION,
        max_message_size=settings.MEASE_MAX_MESSAGE_SIZE,
        max_client_buffer=settings.MEASE_MAX_CLIENT_BUFFER,
        ping_interval=settings.MEASE_PING_INTERVAL,
        ping_timeout=settings.MEASE_PING_TIMEOUT,
        max_workers=settings.MEASE_MAX_WORKERS,
        slow_callback_timeout=settings.MEASE_SLOW_CALLBACK_TIMEOUT,
        max_groups=settings.MEASE_MAX_GROUPS,
        presence=settings.MEASE_PRESENCE,
        recheck_interval=settings.MEASE_RECHECK_INTERVAL,
        drain_timeout=settings.MEASE_DRAIN_TIMEOUT,
        report_interval=settings.MEASE_REPORT_INTERVAL,
        report_bodies=settings.MEASE_REPORT_BODIES,
        metrics_allow=settings.MEASE_METRICS_ALLOW,
    )


def _limits() -> Limits[Client]:
    return Limits(
        connections=settings.MEASE_MAX_CONNECTIONS,
        per_user=settings.MEASE_MAX_CONNECTIONS_PER_USER,
        per_address=settings.MEASE_MAX_CONNECTIONS_PER_ADDRESS,
        message_rate=settings.MEASE_MAX_MESSAGE_RATE,
        message_burst=settings.MEASE_MAX_MESSAGE_BURST,
    )


def _access(revive: Callable[[], Awaitable[None]] | None) -> Access:
    return Access(connect=connections.listener_connection, explain=connections.reason, revive=revive)


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


def _heartbeat(registry: Registry) -> Heartbeat:
    return Heartbeat(
        id=new_id(),
        host=socket.gethostname(),
        pid=os.getpid(),
        settings=os.environ.get("DJANGO_SETTINGS_MODULE", "settings.configure()"),
        registry=_fingerprint(registry),
        version=djmease.__version__,
    )


def _fingerprint(registry: Registry) -> str:
    """Return a short text that differs where the callbacks, or the routings of senders, do."""
    sent = [f"{route.pattern} {sender.path}" for route in registry.routes for sender in route.senders]
    callbacks = (*registry.receivers, *registry.openers, *registry.closers)
    lines = sorted([*sent, *(f"{callback.kind} {callback.path}" for callback in callbacks)])
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]
