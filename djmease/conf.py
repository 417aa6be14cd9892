"""Every ``MEASE_*`` setting with its default; read them as ``settings.MEASE_X`` at the moment of use."""

from __future__ import annotations

from os import PathLike
from typing import Any

from appconf import AppConf


class MeaseConf(AppConf):  # type: ignore[misc]
    # What is published and who writes it: {routing or pattern: dotted path, list of them, dict with SENDERS, or None}.
    ROUTES: dict[str, Any] = {}
    # Who hears what clients send, and who is told of a client that comes or goes: dotted paths, or dicts.
    RECEIVERS: list[Any] = []
    OPENERS: list[Any] = []
    CLOSERS: list[Any] = []
    # Groups that clients may join by themselves: {group or pattern: True, or options as those of receivers}.
    GROUPS: dict[str, Any] = {}
    # Groups of which presence() tells who is in them: names, or patterns.
    PRESENCE: list[str] = []
    # Import the mease_registry module of each installed app.
    AUTODISCOVER = True
    # publish() refuses a routing for which no sender is registered.
    STRICT_ROUTING = True

    # Any URL redis-py takes, or embedded://; unset means embedded:// while DEBUG is on.
    REDIS_URL: str | None = None
    # Further arguments for redis-py's connections.
    REDIS_OPTIONS: dict[str, Any] = {}
    # Before every channel and key; one per site and stage.
    KEY_PREFIX = "mease"
    # Where the embedded Valkey lives, if not in the user's runtime directory.
    EMBEDDED_DIR: str | PathLike[str] | None = None

    # Where the server listens.
    HOST = "127.0.0.1"
    PORT = 8001
    # The only path that is a WebSocket; unset, any is.
    PATH: str | None = None
    # Where pages connect to; unset, MEASE_PORT and MEASE_PATH of the host that the browser sees.
    URL: str | None = None
    # Seconds for a handshake, from the first byte to the answer.
    HANDSHAKE_TIMEOUT = 10
    # Seconds over which clients are sent away when the server is asked to stop.
    DRAIN_TIMEOUT = 10

    # Origins that may connect beside the request's own host name and CSRF_TRUSTED_ORIGINS; '*' is any.
    ALLOWED_ORIGINS: list[str] = []
    # Refuse handshakes without an Origin: all browsers send one, scripts and native apps do not.
    REQUIRE_ORIGIN = False
    # Refuse who is not logged in, with 401.
    LOGIN_REQUIRED = False
    # Who is asked, in this order, whose a handshake is: dotted paths of functions that take the request.
    AUTHENTICATORS = ["djmease.authenticators.session", "djmease.authenticators.ticket"]
    # Seconds after which a user and its session are read again at the latest.
    RECHECK_INTERVAL = 60
    # Addresses or networks whose forwarded headers are believed; 'unix' is who comes by a Unix socket.
    TRUSTED_PROXIES: list[str] = []

    # Threads for def callbacks; unset as many as ThreadPoolExecutor would take.
    MAX_WORKERS: int | None = None
    # Bytes of one incoming message.
    MAX_MESSAGE_SIZE = 64 * 1024
    # Bytes of one published message.
    MAX_PUBLISH_SIZE = 1024 * 1024
    # Unsent bytes that may wait for one client that has read nothing for a second; four times as many for any client.
    MAX_CLIENT_BUFFER = 1024 * 1024
    # Messages a second that a client may send, and how many at once before that is counted; None is no limit.
    MAX_MESSAGE_RATE: float | None = 100
    MAX_MESSAGE_BURST = 500
    # Connections of one server in all, of one user and from one address; None is no limit.
    MAX_CONNECTIONS: int | None = 20_000
    MAX_CONNECTIONS_PER_USER: int | None = 100
    MAX_CONNECTIONS_PER_ADDRESS: int | None = 1_000
    # Groups that one client may be in because it joined them by itself.
    MAX_GROUPS = 100
    # Bytes of the headers of a handshake.
    MAX_HEADER_SIZE = 16 * 1024
    # Offer permessage-deflate to the clients that ask for it.
    COMPRESSION = False
    # Seconds between pings to a client, and seconds it has to answer one.
    PING_INTERVAL = 25
    PING_TIMEOUT = 10
    # Seconds after which a callback that still runs is named in the log, with where it is.
    SLOW_CALLBACK_TIMEOUT = 10

    # Seconds between two reports of a server to Redis, of what it counts; None counts and reports nothing.
    REPORT_INTERVAL: float | None = 2
    # Show the beginning of the last messages in the reports.
    REPORT_BODIES = False
    # Addresses or networks that may ask for /metrics; 'unix' is who comes by a Unix socket.
    METRICS_ALLOW = ["127.0.0.1", "::1"]

    class Meta:
        prefix = "mease"
