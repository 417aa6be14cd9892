"""``Server``: start, serve, stop. Everything it needs comes by its constructor."""

from __future__ import annotations

import asyncio
import logging
import re
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from redis.asyncio import Connection
from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPServerRequest
from tornado.web import Application, RequestHandler

from djmease.identities import Identity
from djmease.registry import Registry
from djmease.server.client import Client
from djmease.server.clients import Clients
from djmease.server.complaints import Complaints
from djmease.server.dispatch import Dispatch
from djmease.server.identity import Authentication
from djmease.server.listener import Listener
from djmease.server.outbox import Outbox
from djmease.server.pings import Pings
from djmease.server.proxies import Proxies
from djmease.server.readers import Readers

logger = logging.getLogger("djmease.server")

MAX_HEADER_SIZE = 16 * 1024
HANDSHAKE_TIMEOUT = 10.0
STOP_TIMEOUT = 10.0
"""Seconds that closing handshakes and running callbacks have when the server stops."""


class Server:
    """One WebSocket server on sockets that already listen; made, run and stopped on one event loop.

    Without ``connect`` it hears no Redis, and only what ``publish`` is called with.
    """

    def __init__(
        self,
        *,
        registry: Registry,
        sockets: Sequence[socket.socket],
        connect: Callable[[], Connection] | None,
        channel_prefix: str,
        refuse: Callable[[HTTPServerRequest, str | None], str | None],
        proxies: Proxies,
        authentication: Authentication,
        path: str | None,
        max_workers: int | None,
        max_message_size: int,
        max_client_buffer: int,
        compression: bool,
        ping_interval: float,
        ping_timeout: float,
        revive: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        loop = asyncio.get_running_loop()
        self._sockets = sockets
        self._outbox = Outbox(loop, limit=max_client_buffer)
        self._readers = Readers(loop, self._outbox)
        self._pings = Pings(loop, self._outbox, interval=ping_interval, timeout=ping_timeout)
        self._open: set[Client] = set()
        self.clients = Clients(self._outbox)
        self._dispatch = Dispatch(
            loop, registry=registry, clients=self.clients, max_workers=max_workers, authentication=authentication
        )
        self.publish = self._dispatch.publish
        self.received = self._dispatch.received
        self._listener = connect and Listener(
            connect=connect, prefix=channel_prefix, on_message=self._dispatch.publish, revive=revive
        )
        handler = {
            "events": self,
            "outbox": self._outbox,
            "readers": self._readers,
            "refuse": refuse,
            "proxies": proxies,
            "complaints": Complaints(logger),
            "max_message_size": max_message_size,
            "may_deflate": compression,
        }
        application = Application(
            [(re.escape(path) if path else ".*", Client, handler)], log_function=_log_request, compress_response=False
        )
        self._http = HTTPServer(
            application,
            max_header_size=MAX_HEADER_SIZE,
            max_body_size=0,
            max_buffer_size=2 * MAX_HEADER_SIZE + max_message_size,
            idle_connection_timeout=HANDSHAKE_TIMEOUT,
            body_timeout=HANDSHAKE_TIMEOUT,
        )
        self._stopping = asyncio.Event()
        self._no_clients = asyncio.Event()
        self._no_clients.set()

    async def start(self) -> None:
        """Subscribe to Redis, then listen. Raises what connecting to Redis raises."""
        try:
            if self._listener is not None:
                await self._listener.start()
        except BaseException:
            for listening in self._sockets:
                listening.close()
            raise
        self._pings.start()
        self._http.add_sockets(self._sockets)

    async def serve(self) -> None:
        """Serve until ``stop`` is called, then end: clients get 1001, closers run, nothing stays open."""
        stopping = asyncio.create_task(self._stopping.wait())
        listening = asyncio.create_task(self._listener.run()) if self._listener is not None else stopping
        try:
            await asyncio.wait([listening, stopping], return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
            await self._end(listening)

    def stop(self) -> None:
        """Ask ``serve`` to end; on the loop only."""
        self._stopping.set()

    async def _end(self, listening: asyncio.Task[Any]) -> None:
        self._stopping.set()
        self._http.stop()
        self._pings.stop()
        listening.cancel()
        for client in tuple(self._open):
            client.close(1001, "the server stops")
        try:
            async with asyncio.timeout(STOP_TIMEOUT):
                await self._http.close_all_connections()
                await self._no_clients.wait()
                await self._dispatch.wait_until_idle()
        except TimeoutError:
            logger.warning(
                "callbacks still run %s s after the server was asked to stop; it does not wait", STOP_TIMEOUT
            )
        self._dispatch.stop()
        # Those too whose clients have gone, but who are waited for to read why.
        for connection in self._readers.connections:
            connection.abort()
        self._readers.close()
        outcome = (await asyncio.gather(listening, return_exceptions=True))[0]
        if isinstance(outcome, Exception):
            raise outcome

    # What clients tell

    def opened(self, client: Client) -> None:
        assert client.ws_connection is not None
        self._open.add(client)
        self._no_clients.clear()
        self._pings.add(client.ws_connection)
        self._dispatch.opened(client)
        if self._stopping.is_set():
            client.close(1001, "the server stops")

    def join(self, client: Client, group: str) -> None:
        self.clients.join(client, group)

    def leave(self, client: Client, group: str) -> None:
        self.clients.leave(client, group)

    async def identify(self, request: HTTPServerRequest) -> Identity:
        return await self._dispatch.identify(request)

    def closed(self, client: Client) -> None:
        self._open.discard(client)
        if not self._open:
            self._no_clients.set()
        self._dispatch.closed(client)


def _log_request(handler: RequestHandler) -> None:
    request: Any = handler.request
    logger.debug("%s %s %s from %s", handler.get_status(), request.method, request.path, request.remote_ip)
