"""``Server``: start, serve, stop. Everything it needs comes by its constructor."""

from __future__ import annotations

import asyncio
import logging
import random
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict
from typing import Any

from tornado.httputil import HTTPServerRequest

from djmease.identities import Identity
from djmease.messages import Message
from djmease.names import Names
from djmease.registry import Registry
from djmease.server.background import Background
from djmease.server.client import Client, Parts
from djmease.server.clients import Clients
from djmease.server.complaints import Complaints
from djmease.server.dispatch import Dispatch
from djmease.server.forms import header_frame
from djmease.server.http import make_http_server
from djmease.server.identity import Authentication
from djmease.server.joining import Joining
from djmease.server.limits import Limits
from djmease.server.link import Access
from djmease.server.listener import HEARTBEAT_INTERVAL, Listener
from djmease.server.logins import Logins
from djmease.server.metrics import Exporter
from djmease.server.neighbours import Heartbeat, Neighbours, local_callbacks
from djmease.server.observer import Observer
from djmease.server.options import Options
from djmease.server.orders import Orders
from djmease.server.outbox import Outbox
from djmease.server.pings import Pings
from djmease.server.presence import make_presence
from djmease.server.proxies import Peers, Proxies
from djmease.server.readers import Readers
from djmease.server.reporter import Reporter
from djmease.server.state import State
from djmease.server.subscriptions import Subscriptions
from djmease.server.tallies import Tallies

logger = logging.getLogger("djmease.server")

DRAIN_RATE = 100
"""Clients a second that are sent away, where the drain timeout allows as few."""
RESTART = (1012, "the server stops or restarts: connect again")
"""With what clients are sent away (the registry of RFC 6455, section 11.7: service restart)."""


class Server:
    """One WebSocket server on sockets that already listen; made, run and stopped on one event loop.

    Without ``access`` it hears no Redis, and only what ``publish`` is called with.
    """

    def __init__(
        self,
        *,
        registry: Registry,
        sockets: Sequence[socket.socket],
        access: Access | None,
        names: Names,
        heartbeat: Heartbeat,
        addresses: Sequence[str],
        refuse: Callable[[HTTPServerRequest, str | None], str | None],
        proxies: Proxies,
        authentication: Authentication,
        limits: Limits[Client],
        options: Options,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        loop = asyncio.get_running_loop()
        self._sockets = sockets
        self._limits = limits
        self._drain_timeout = options.drain_timeout
        self._no_clients = asyncio.Event()
        self._no_clients.set()
        self._background = Background(logger)

        self._outbox = Outbox(loop, limit=options.max_client_buffer)
        self._readers = Readers(loop, self._outbox)
        self._pings = Pings(loop, self._outbox, interval=options.ping_interval, timeout=options.ping_timeout)

        self._subscriptions = Subscriptions(loop, names=names)
        self._presence = make_presence(
            loop,
            access=access,
            names=names,
            patterns=options.presence,
            server_id=heartbeat.id,
            channels=self._subscriptions,
            publish=lambda message: self.publish(message),  # Which needs the clients.
        )
        self.clients = Clients(self._outbox, self._subscriptions, self._presence)

        tallies = Tallies(registry, is_on=options.report_interval is not None, shows_bodies=options.report_bodies)
        self._dispatch = Dispatch(
            loop,
            registry=registry,
            clients=self.clients,
            max_workers=options.max_workers,
            slow_callback_timeout=options.slow_callback_timeout,
            authentication=authentication,
            tallies=tallies,
            joining=Joining(registry, max_groups=options.max_groups),
            on_traced=self._on_traced,
        )
        self.publish = self._dispatch.publish
        self.received = self._dispatch.received
        self.asked = self._dispatch.asked
        self._logins = Logins(
            loop,
            limits=limits,
            clients=self.clients,
            in_thread=self._dispatch.in_thread,
            interval=options.recheck_interval,
        )

        self.neighbours = Neighbours(heartbeat, local=local_callbacks(registry), interval=HEARTBEAT_INTERVAL)
        self.orders = Orders(self._background)
        self.orders.add(self._logins.orders)
        self._listener = None if access is None else self._make_listener(access, names, heartbeat)
        self._state = State(self._listener)

        self.observer = Observer(
            about={
                **asdict(heartbeat),
                "addresses": list(addresses),
                "started_at": round(time.time(), 3),
                "interval": options.report_interval or 0.0,
            },
            interval=options.report_interval or 1.0,
            tallies=tallies,
            dispatch=self._dispatch,
            outbox=self._outbox,
            readers=self._readers,
            clients=self.clients,
            limits=limits,
            logins=self._logins,
            pings=self._pings,
            listener=self._listener,
            presence=self._presence,
            state=self._state,
        )
        self._reporter = None if access is None else self._make_reporter(access, names, options.report_interval)

        self._http = make_http_server(
            path=options.path,
            clients=Parts(
                events=self,
                outbox=self._outbox,
                readers=self._readers,
                refuse=refuse,
                limits=limits,
                proxies=proxies,
                complaints=Complaints(logger),
                max_message_size=options.max_message_size,
                may_deflate=options.compression,
            ),
            metrics={
                "exporter": Exporter(self.observer),
                "allowed": Peers(options.metrics_allow),
                "proxies": proxies,
                "complaints": Complaints(logger),
            },
            trouble=self._state.trouble,
            max_message_size=options.max_message_size,
            max_header_size=options.max_header_size,
            handshake_timeout=options.handshake_timeout,
            ssl_context=ssl_context,
        )

    def _make_listener(self, access: Access, names: Names, heartbeat: Heartbeat) -> Listener:
        return Listener(
            access=access,
            names=names,
            heartbeat=heartbeat.encode(),
            subscriptions=self._subscriptions,
            on_message=self._dispatch.publish,
            on_heartbeat=self.neighbours.hear,
            on_control=self.orders.hear,
            on_gap=self._on_gap,
            heartbeat_interval=HEARTBEAT_INTERVAL,
        )

    def _make_reporter(self, access: Access, names: Names, interval: float | None) -> Reporter:
        reporter = Reporter(access=access, names=names, observer=self.observer, interval=interval)
        questions = {"list_clients": self.observer.list_clients, "list_groups": self.observer.list_groups}
        self.orders.add_questions(questions, reporter.answer)
        return reporter

    async def start(self) -> None:
        """Subscribe to Redis, then listen. Raises what connecting to Redis raises."""
        try:
            if self._listener is not None:
                await self._listener.start()
        except BaseException:
            for listening in self._sockets:
                listening.close()
            raise
        self._dispatch.start()
        self._pings.start()
        self._logins.start()
        self._http.add_sockets(self._sockets)

    async def serve(self) -> None:
        """Serve until ``drain`` or ``stop`` is called, then end: clients get 1012, closers run, nothing stays open."""
        stopping = asyncio.create_task(self._state.stopping.wait())
        listening = asyncio.create_task(self._listener.run()) if self._listener is not None else stopping
        if self._reporter is not None:
            self._background.keep("the report", self._reporter.run)
        if self._presence is not None:
            self._background.keep("telling who is in groups", self._presence.run)
        try:
            await asyncio.wait([listening, stopping], return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
            await self._end(listening)

    @property
    def trouble(self) -> str | None:
        """Why no more clients should be sent here, in a sentence; ``None`` where all is well."""
        return self._state.trouble()

    def roll(self, group: str) -> list[bytes]:
        """Return the entries of a group, where no Redis holds them; any thread may ask."""
        return [] if self._presence is None else self._presence.roll(group)

    def drain(self) -> None:
        """Ask ``serve`` to end, clients being sent away one after another; once more hurries it. On the loop only."""
        if self._state.is_stopping:
            self._state.hurrying.set()
        self._state.stopping.set()

    def stop(self) -> None:
        """Ask ``serve`` to end, all clients being sent away at once; on the loop only."""
        self._state.stopping.set()
        self._state.hurrying.set()

    def _on_traced(self, message: Message, *what: Any) -> None:
        if self._reporter is not None:
            self._reporter.answer(message.trace, self.observer.traced(message, *what))

    def _on_gap(self, seconds: float) -> None:
        """Let clients that take headers know that something may have been missed, which they can ask for."""
        frame = header_frame({"type": "gap", "seconds": round(seconds, 1)})
        for client in tuple(self._limits.clients.values()):
            if client.takes_headers and client.ws_connection is not None:
                self._outbox.write(client.ws_connection, frame)

    async def _end(self, listening: asyncio.Task[Any]) -> None:
        self._state.stopping.set()
        self._http.stop()
        await self._send_away()
        self._pings.stop()
        await self._logins.stop()
        listening.cancel()
        for client in tuple(self._limits.clients.values()):
            client.close(*RESTART)
        self._dispatch.hurry(self._drain_timeout / 2)
        await self._wait_for_callbacks()
        self._dispatch.stop()
        await self._stop_telling()
        # Those too whose clients have gone, but who are waited for to read why.
        for connection in self._readers.connections:
            connection.abort()
        self._readers.close()
        outcome = (await asyncio.gather(listening, return_exceptions=True))[0]
        if isinstance(outcome, Exception):
            raise outcome

    async def _stop_telling(self) -> None:
        """Tell Redis of this server to the end, and be gone from the list of servers and from the roll then."""
        await self._background.stop()
        if self._reporter is not None:
            await self._reporter.leave()
        if self._presence is not None:
            await self._presence.leave()

    async def _send_away(self) -> None:
        """Close clients one after another, at times that chance has, so that they do not all come back at once."""
        clients = tuple(self._limits.clients.values())
        spread = min(self._drain_timeout, len(clients) / DRAIN_RATE)
        times = sorted(random.uniform(0, spread) for _ in clients)
        began = asyncio.get_running_loop().time()
        for due, client in zip(times, clients, strict=True):
            pause = began + due - asyncio.get_running_loop().time()
            if pause > 0:
                await _first_of(self._state.hurrying.wait(), timeout=pause)
            if self._state.hurrying.is_set():
                break
            client.close(*RESTART)
        self._state.hurrying.clear()

    async def _wait_for_callbacks(self) -> None:
        """Wait for the closing handshakes and for the callbacks, though not for ever."""
        if not await _first_of(self._settle(), self._state.hurrying.wait(), timeout=self._drain_timeout):
            logger.warning(
                "callbacks still run %s s after the last client was sent away; the server does not wait for them",
                self._drain_timeout,
            )

    async def _settle(self) -> None:
        await self._http.close_all_connections()
        await self._no_clients.wait()
        await self._dispatch.wait_until_idle()

    # What clients tell

    def opened(self, client: Client) -> None:
        assert client.ws_connection is not None
        self.observer.opened += 1
        self._limits.enter(client)
        self._no_clients.clear()
        self.clients.enter(client)
        self._pings.add(client.ws_connection)
        self._logins.add(client)
        self._dispatch.opened(client)
        if self._state.is_stopping:
            client.close(*RESTART)

    def join(self, client: Client, group: str) -> None:
        self.clients.join(client, group)

    async def ajoin(self, client: Client, group: str) -> None:
        await self.clients.join_on_loop(client, group)

    def leave(self, client: Client, group: str) -> None:
        self.clients.leave(client, group)

    async def identify(self, request: HTTPServerRequest) -> Identity:
        return await self._dispatch.identify(request)

    async def expect(self, user_key: str) -> None:
        """Return when what is published to a user comes here, and go on hearing it for a while."""
        await self._subscriptions.expect(self._subscriptions.of_user(user_key))

    def closed(self, client: Client) -> None:
        self.observer.closed[str(client.close_code or "none")] += 1
        self._limits.leave(client)
        if not self._limits.clients:
            self._no_clients.set()
        self._dispatch.closed(client)


async def _first_of(*awaitables: Awaitable[Any], timeout: float) -> bool:
    """Wait until one of them is done, and return whether one is; the others are cancelled."""
    tasks = [asyncio.ensure_future(awaitable) for awaitable in awaitables]
    done, pending = await asyncio.wait(tasks, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    for task in done:
        task.result()
    return bool(done)
