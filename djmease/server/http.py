"""What is on the port: WebSockets, whether the server is well, and metrics; and a bound on handshakes."""

from __future__ import annotations

import logging
import re
import ssl
from collections import Counter
from collections.abc import Callable
from typing import Any

from tornado.httpserver import HTTPServer
from tornado.iostream import IOStream
from tornado.web import Application, RequestHandler

from djmease.server.client import Client, Parts
from djmease.server.complaints import Complaints
from djmease.server.health import Health, no_trouble
from djmease.server.limits import Limits, counted_as
from djmease.server.metrics import Metrics
from djmease.server.proxies import Proxies

logger = logging.getLogger("djmease.server")

MAX_HANDSHAKES = 4096
"""Connections that may be in the middle of their handshake; more are closed as they come."""


def make_http_server(
    *,
    path: str | None,
    clients: Parts,
    metrics: dict[str, Any],
    trouble: Callable[[], str | None],
    max_message_size: int,
    max_header_size: int,
    handshake_timeout: float,
    ssl_context: ssl.SSLContext | None,
) -> HTTPServer:
    """Make what answers on the sockets that it is given.

    ``metrics`` is what ``Metrics.initialize`` takes. Without a ``path`` every other one is that of WebSockets.
    """
    routes: list[tuple[str, type[RequestHandler], dict[str, Any]]] = [
        ("/healthz", Health, {"trouble": no_trouble}),
        ("/readyz", Health, {"trouble": trouble}),
        ("/metrics", Metrics, metrics),
        (re.escape(path) if path else ".*", Client, {"parts": clients}),
    ]
    return _HTTPServer(
        Application(routes, log_function=_log_request, compress_response=False),
        ssl_options=ssl_context,
        max_header_size=max_header_size,
        max_body_size=0,
        max_buffer_size=2 * max_header_size + max_message_size,
        limits=clients.limits,
        proxies=clients.proxies,
        idle_connection_timeout=handshake_timeout,
        body_timeout=handshake_timeout,
    )


class _HTTPServer(HTTPServer):
    """Tornado's, with a bound on the connections that are not WebSockets yet: in all, and of one address."""

    def initialize(self, *args: Any, **kwargs: Any) -> None:
        self._limits: Limits[Client] = kwargs.pop("limits")
        self._proxies: Proxies = kwargs.pop("proxies")
        super().initialize(*args, **kwargs)
        self._unfinished: Counter[str] = Counter()
        self._too_many = Complaints(logger)

    def handle_stream(self, stream: IOStream, address: Any) -> None:
        peer = self._counted(address)
        if len(self._connections) >= MAX_HANDSHAKES:
            self._too_many.say("%d handshakes are unfinished, and one more is refused", len(self._connections))
            stream.close()
        elif peer is not None and self._unfinished[peer] >= self._limits.per_address:
            self._too_many.say(
                "%d handshakes from %s are unfinished, as many as MEASE_MAX_CONNECTIONS_PER_ADDRESS, and one more is "
                "refused",
                self._unfinished[peer],
                peer,
                kind="address",
            )
            stream.close()
        else:
            if peer is not None:
                self._unfinished[peer] += 1
            super().handle_stream(stream, address)

    def on_close(self, server_conn: Any) -> None:
        super().on_close(server_conn)
        peer = self._counted(server_conn.context.address)
        if peer is not None:
            self._unfinished[peer] -= 1
            if not self._unfinished[peer]:
                del self._unfinished[peer]

    def _counted(self, address: Any) -> str | None:
        """Return as what the other side of a connection is counted, if it is: a proxy stands for many."""
        # That of a Unix socket is text.
        if not isinstance(address, tuple) or self._proxies.trusts(address[0]):
            return None
        return counted_as(address[0])


def _log_request(handler: RequestHandler) -> None:
    request: Any = handler.request
    logger.debug("%s %s %s from %s", handler.get_status(), request.method, request.path, request.remote_ip)
