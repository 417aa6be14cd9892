"""Runs callbacks: ``def`` in a thread, ``async def`` on the loop; order, errors and database connections.

The bridge between synchronous callbacks and the loop. What must stay in order waits in one ``Lane``: the messages of
one routing, or everything of one client. Different lanes do not wait for each other.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import time
from collections import deque
from collections.abc import Callable
from contextvars import Context
from dataclasses import dataclass
from typing import Any, TypeVar

from asgiref.sync import sync_to_async
from tornado.httputil import HTTPServerRequest

from djmease.messages import Message
from djmease.registry import Callback, Received, Registry, Rule
from djmease.server.client import Client
from djmease.server.clients import Clients, ClientsList
from djmease.server.complaints import Complaints
from djmease.server.identity import Identity, identify, session_key_of
from djmease.server.tasks import Tasks
from djmease.server.workers import Step, Workers, tidy_connections

logger = logging.getLogger("djmease.server")
traffic_logger = logging.getLogger("djmease.traffic")

HOP_TIME = 0.005
"""Seconds after which a hop to a thread gives the rest of its lane back."""
MAX_ROUTING_LANE = 10_000
"""Calls that may wait for one routing; what comes on top is dropped, and said."""
MAX_CLIENT_LANE = 100
"""Calls that may wait for one client before it is not read any more."""
ASYNC_HYGIENE_INTERVAL = 1.0
"""Seconds between two looks at the database connections of asynchronous callbacks."""


MAX_IDENTITY_AGE = 30.0
"""Seconds after which a user is read again, so that a right that was revoked does not live as long as the tab."""
Result = TypeVar("Result")
Select = Callable[[], ClientsList]


@dataclass(slots=True)
class Call:
    """A callback with what it will be given; ``clients_list`` is taken when it runs."""

    callback: Callback
    arguments: dict[str, Any]
    """By our names; of this call alone."""
    about: Message | Client
    select: Select
    """Returns the ``clients_list``."""
    refuse: Callable[[], bool] | None = None
    """Asked before, in a thread: whether the call is refused after all."""

    @property
    def needs_thread(self) -> bool:
        return self.refuse is not None or not self.callback.is_async

    @property
    def subject(self) -> str:
        """What log lines name: the routing with the message's id, or the client."""
        about = self.about
        return f"{about.routing} {about.id}" if isinstance(about, Message) else f"client {about.id}"


class Lane:
    """What waits for one routing or one client, done in order, one thing at a time."""

    __slots__ = ("_dispatch", "_entries", "_is_running", "about")

    def __init__(self, dispatch: Dispatch, about: str | Client) -> None:
        self._dispatch = dispatch
        self.about = about
        """The routing or the client."""
        self._entries = _NO_ENTRIES
        self._is_running = False

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, *entries: Call | Step) -> None:
        """Add to the end; on the loop only. A lone entry begins at once."""
        if self._entries:
            self._entries.extend(entries)
        else:
            self._entries = deque(entries)
        if not self._is_running:
            self._is_running = True
            self._advance()

    def _advance(self) -> None:
        while self._entries:
            head = self._entries[0]
            if not isinstance(head, Call):
                self._entries.popleft()
                head()
            elif not head.needs_thread:
                self._entries.popleft()
                self._dispatch.tasks.run(self._dispatch.run_async(head, self._advance))
                return
            else:
                is_closer = head.callback.kind == "closer"
                self._dispatch.workers.run(self._hop, self._advance, is_closer=is_closer)
                return
        # An empty deque is more than all else that a lane is, and most lanes wait for nothing most of the time.
        self._entries = _NO_ENTRIES
        self._is_running = False
        self._dispatch.emptied(self)

    def _hop(self) -> None:
        """In a thread: run what needs one at the head of the lane, for a while."""
        deadline = time.monotonic() + HOP_TIME
        tidy_connections()
        entries = self._entries
        while entries and isinstance(head := entries[0], Call) and head.needs_thread:
            if head.refuse is None or Context().run(self._dispatch.admit, head):
                if head.callback.is_async:
                    break  # It may run now, and the loop is where.
                Context().run(self._dispatch.run, head)
            entries.popleft()
            if time.monotonic() >= deadline:
                break
        tidy_connections()


_NO_ENTRIES: deque[Call | Step] = deque(maxlen=0)


class Dispatch:
    """Brings messages to senders, and what clients do to receivers, openers and closers."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        registry: Registry,
        clients: Clients,
        max_workers: int | None,
    ) -> None:
        self.loop = loop
        self._registry = registry
        self._clients = clients
        self.workers = Workers(loop, clients.outbox, max_workers)
        self.tasks = Tasks(loop, clients.outbox)
        self._routings: dict[str, Lane] = {}
        self._client_lanes: dict[Client, Lane] = {}
        self._tidy_at = 0.0
        self._idle = asyncio.Event()
        self._idle.set()
        self._refusals = Complaints(logger)
        self._strangers = Complaints(logger)
        self.errors = 0
        """Callbacks that raised."""
        self.refused = 0
        """Messages of clients that a receiver was not to hear."""
        self.unheard = 0
        """Messages of clients with a type that no receiver takes."""
        self.dropped = 0
        """Messages that found the lane of their routing full."""

    # What happens

    def publish(self, message: Message) -> None:
        """Run the senders of a message."""
        routing = message.routing
        senders = self._registry.senders_for(routing)
        if not senders:
            traffic_logger.info("%s %s: no sender", routing, message.id)
            return
        lane = self._routings.get(routing)
        if lane is None:
            lane = self._routings[routing] = self._lane(routing)
        elif len(lane) >= MAX_ROUTING_LANE:
            self._drop(message)
            return
        body = message.body
        select = functools.partial(self._clients.select, message.groups, message.users)
        lane.put(*[Call(sender, {"routing": routing, "message": body}, message, select) for sender in senders])

    def opened(self, client: Client) -> None:
        """Run the openers, and count the client among the others behind them."""
        lane = self._lane(client)
        self._client_lanes[client] = lane
        lane.put(*self._calls(self._registry.openers, client), lambda: self._clients.add(client))

    def received(self, client: Client, message: str | bytes) -> None:
        """Run the receivers; a client that sends faster than they run is not read for a while."""
        lane = self._client_lanes.get(client)
        if lane is None:
            return
        received = self._registry.receivers_for(message)
        lane.put(*[self._hearing(receiver, client, value, received) for receiver, value in received.calls])
        if received.kind is not None and received.is_unheard:
            self._note_unheard(client, received.kind)
        if len(lane) >= MAX_CLIENT_LANE and client.ws_connection is not None:
            client.ws_connection.pause_reading()

    def closed(self, client: Client) -> None:
        """Take the client from among the others behind what it has sent, and run the closers."""
        lane = self._client_lanes.get(client)
        if lane is None:
            return
        lane.put(
            lambda: self._clients.discard(client),
            *self._calls(self._registry.closers, client),
            lambda: self._forget_client(client),
        )

    async def identify(self, request: HTTPServerRequest) -> Identity:
        """Read the session of a handshake in a thread, where there is one to read."""
        session_key = session_key_of(request)
        if session_key is None:
            return identify(None)
        return await self._in_thread(functools.partial(identify, session_key))

    async def _in_thread(self, function: Callable[[], Result]) -> Result:
        future: asyncio.Future[Result] = self.loop.create_future()
        outcome: list[Result | BaseException] = []

        def job() -> None:
            tidy_connections()
            try:
                outcome.append(Context().run(function))
            except BaseException as error:
                outcome.append(error)
            tidy_connections()

        def then() -> None:
            (result,) = outcome
            if future.cancelled():
                return
            if isinstance(result, BaseException):
                future.set_exception(result)
            else:
                future.set_result(result)

        self.workers.run(job, then)
        return await future

    def stop(self) -> None:
        """Begin nothing any more."""
        self.workers.stop()
        self.tasks.stop()

    async def wait_until_idle(self) -> None:
        """Wait until nothing waits or runs in any lane."""
        await self._idle.wait()

    # Lanes

    def _lane(self, about: str | Client) -> Lane:
        self._idle.clear()
        return Lane(self, about)

    def emptied(self, lane: Lane) -> None:
        """Forget a routing for which nothing waits; read a client again that had to wait."""
        about = lane.about
        if isinstance(about, str):
            del self._routings[about]
            self._settle()
        elif about.ws_connection is not None:
            about.ws_connection.resume_reading()

    def _calls(self, callbacks: tuple[Callback, ...], client: Client) -> list[Call]:
        return [Call(callback, {"client": client}, client, self._clients.snapshot) for callback in callbacks]

    def _hearing(self, receiver: Callback, client: Client, message: Any, received: Received) -> Call:
        call = Call(receiver, {"client": client, "message": message}, client, self._clients.snapshot)
        if receiver.rule is not None:
            call.refuse = functools.partial(self._refuse, receiver, receiver.rule, client, received)
        return call

    def _refuse(self, receiver: Callback, rule: Rule, client: Client, received: Received) -> bool:
        if time.monotonic() - client.identity.read_at > MAX_IDENTITY_AGE:
            session_key = client.session.session_key if client.session is not None else None
            self._clients.reidentify(client, identify(session_key))
        reason = rule.refusal(client.user)
        if reason is None:
            return False
        self.refused += 1
        self._refusals.say("client %s may not be heard by %s: %s", client.id, receiver.path, reason)
        if received.is_json:
            client.write_message({"type": "mease.refused", "reason": reason, "refused": received.kind})
        return True

    def _note_unheard(self, client: Client, kind: str) -> None:
        self.unheard += 1
        if traffic_logger.isEnabledFor(logging.INFO):
            closest = self._registry.closest_type(kind)
            meant = f"; did you mean {closest!r}?" if closest else ""
            self._strangers.say("client %s sent the type %r, which no receiver takes%s", client.id, kind[:200], meant)

    def _forget_client(self, client: Client) -> None:
        del self._client_lanes[client]
        self._settle()

    def _settle(self) -> None:
        if not self._routings and not self._client_lanes:
            self._idle.set()

    def _drop(self, message: Message) -> None:
        self.dropped += 1
        if self.dropped % MAX_ROUTING_LANE == 1:
            logger.error(
                "%d calls wait for the routing %s, message %s is dropped: its senders are too slow (%d dropped in all)",
                MAX_ROUTING_LANE,
                message.routing,
                message.id,
                self.dropped,
            )

    # Running

    def admit(self, call: Call) -> bool:
        """Ask, in a thread, whether a call may run, and note that it may; a question that fails is a no."""
        assert call.refuse is not None
        try:
            refused = call.refuse()
        except BaseException as error:
            self._report(call, error)
            return False
        call.refuse = None
        return not refused

    def run(self, call: Call) -> None:
        """Run a ``def`` callback, in a thread; whatever it raises is logged and contained."""
        started = time.monotonic()
        clients_list = call.arguments["clients_list"] = call.select()
        try:
            result = call.callback(call.arguments)
            if inspect.iscoroutine(result):
                result.close()
                raise TypeError(f"{call.callback.path} is a def and returned a coroutine: declare it with async def")
        except BaseException as error:
            self._report(call, error)
        self._trace(call, clients_list, started)

    async def run_async(self, call: Call, then: Step) -> None:
        """Run an ``async def`` callback, and ``then`` behind it; whatever it raises is logged and contained."""
        started = time.monotonic()
        clients_list = call.arguments["clients_list"] = call.select()
        try:
            await call.callback(call.arguments)
        except BaseException as error:
            self._report(call, error)
        self._trace(call, clients_list, started)
        if started >= self._tidy_at:
            # Django's asynchronous ORM keeps its connections in one thread of asgiref's.
            self._tidy_at = started + ASYNC_HYGIENE_INTERVAL
            await sync_to_async(tidy_connections)()
        then()

    def _report(self, call: Call, error: BaseException) -> None:
        self.errors += 1
        logger.error("%s raised %r for %s", call.callback.path, error, call.subject, exc_info=error)

    def _trace(self, call: Call, clients_list: ClientsList, started: float) -> None:
        if traffic_logger.isEnabledFor(logging.INFO):
            milliseconds = (time.monotonic() - started) * 1000
            path, clients = call.callback.path, len(clients_list)
            traffic_logger.info("%s: %s, %d clients, %.1f ms", call.subject, path, clients, milliseconds)
