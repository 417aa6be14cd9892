"""Brings what happens to the callbacks: messages to senders, and what clients do to receivers, openers and closers.

``lanes.py`` has the order, ``running.py`` what runs a call, ``workers.py`` and ``tasks.py`` where it runs.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Callable
from contextvars import Context
from typing import Any, TypeVar

from tornado.httputil import HTTPServerRequest

from djmease.identities import TURNED_AWAY, Identity, reread
from djmease.messages import Message, told_back
from djmease.registry import Callback, Received, Registry, Rule
from djmease.reports import NO_SENDER
from djmease.server.calls import CALL_SIZE, Asking, Call, Question, Sending
from djmease.server.client import Client
from djmease.server.clients import Clients, ClientsList
from djmease.server.complaints import Complaints, Lazily, fields_of
from djmease.server.identity import Authentication
from djmease.server.joining import Joining
from djmease.server.lanes import Closing, Lane, Waiting
from djmease.server.running import Runner
from djmease.server.tallies import Record, Tallies
from djmease.server.tasks import Tasks
from djmease.server.workers import Step, Workers, tidy_connections

logger = logging.getLogger("djmease.server")
traffic_logger = logging.getLogger("djmease.traffic")

MAX_ROUTING_WAITING = 32 * 1024 * 1024
"""Bytes that may wait for the senders of one routing; what comes on top is dropped, and said."""
MAX_WAITING = 128 * 1024 * 1024
"""Bytes that may wait for the senders of all routings: their names are endless."""
MAX_HEARD = 64 * 1024 * 1024
"""Bytes that may wait for all clients before those for whom something waits are not read any more."""
MAX_PAUSE = 60.0
"""Seconds in which receivers come to nothing of a client that is not read for that, before it is closed."""
MAX_IDENTITY_AGE = 30.0
"""Seconds after which a user is read again, so that a right that was revoked does not live as long as the tab."""
Result = TypeVar("Result")


class Dispatch:
    """Brings messages to senders, and what clients do to receivers, openers and closers."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        registry: Registry,
        clients: Clients,
        max_workers: int | None,
        slow_callback_timeout: float,
        authentication: Authentication,
        tallies: Tallies,
        joining: Joining,
        on_traced: Callable[[Message, Record | None, list[Sending], str | None], None],
    ) -> None:
        self.loop = loop
        self._registry = registry
        self._clients = clients
        self._tallies = tallies
        self._joining = joining
        self._on_traced = on_traced
        """Told of a message that somebody traces: what became of it, its calls, or why there are none."""
        self.workers = Workers(loop, clients.outbox, max_workers, slow_after=slow_callback_timeout)
        self._authentication = authentication
        self.tasks = Tasks(loop, clients.outbox)
        self.runner = Runner(
            loop,
            outbox=clients.outbox,
            tallies=tallies,
            turn_away=self._turn_away,
            slow_callback_timeout=slow_callback_timeout,
            queue=self.workers.queue,
        )
        self.watch = self.runner.watch
        self.published = Waiting()
        """What waits for senders."""
        self.heard = Waiting()
        """What waits for receivers, openers and closers."""
        self._routings: dict[str, Lane] = {}
        self._client_lanes: dict[Client, Lane] = {}
        self._abandoned = 0
        """Lanes of clients whose closers did not wait for what hangs in there."""
        self._patience = slow_callback_timeout
        """Seconds that closers wait for other callbacks of their client."""
        self._idle = asyncio.Event()
        self._idle.set()
        self._refusals = Complaints(logger)
        self._denials = Complaints(logger)
        self._strangers = Complaints(logger)
        self._drops = Complaints(logger, logging.ERROR)
        self._overrun = Complaints(logger)
        self._overtakings = Complaints(logger)
        self.published_count = 0
        """Messages that came for senders."""
        self.received_count = 0
        """Messages that came from clients."""
        self.refused = 0
        """Messages of clients that a receiver was not to hear."""
        self.turned_away = 0
        """Clients whom an opener did not let in."""
        self.unheard = 0
        """Messages of clients with a type that no receiver takes."""
        self.dropped = 0
        """Messages that found too much waiting already."""
        self.given_up = 0
        """Clients whose receivers did not keep up with them for too long."""
        self.overtaken = 0
        """Calls that were dropped, because something before them hung and their client had gone."""

    # What happens

    def publish(self, message: Message) -> None:
        """Run the senders of a message."""
        routing = message.routing
        self.published_count += 1
        tallies = self._tallies.for_routing(routing)
        if not tallies:
            self._tallies.unheard(routing)
            if traffic_logger.isEnabledFor(logging.INFO):
                traffic_logger.info("%s %s: no sender", routing, message.id, extra=fields_of(message))
            self._tell(message, None, [], NO_SENDER)
            return
        record = self._tallies.heard(message, tallies)
        each = CALL_SIZE + message.size
        size = each * len(tallies)
        lane = self._routings.get(routing)
        if self.published.size + size > MAX_WAITING:
            self._drop(message, self.published.size, "all routings together")
            return
        if lane is None:
            lane = self._routings[routing] = self._lane(routing, self.published)
        elif lane.size + size > MAX_ROUTING_WAITING:
            self._drop(message, lane.size, "the routing")
            return
        select = functools.partial(self._clients.select, message.groups, message.users)
        header = None if message.groups is None else self._joining.header(message.groups)
        calls = [Sending(tally, message, select, size=each, record=record, header=header) for tally in tallies]
        if message.trace is None:
            lane.put(*calls, size=size)
        else:
            lane.put(*calls, functools.partial(self._tell_behind, message, record, calls), size=size)

    def _tell_behind(self, message: Message, record: Record | None, calls: list[Sending]) -> None:
        # What the senders have written is handed on before this.
        self._clients.outbox.run_on_loop(self._tell, message, record, calls)

    def _tell(self, message: Message, record: Record | None, calls: list[Sending], dropped: str | None = None) -> None:
        if message.trace is not None:
            self._on_traced(message, record, calls, dropped)

    def chosen(self, message: Message) -> ClientsList:
        """Return whom a message is for."""
        return self._clients.select(message.groups, message.users)

    def opened(self, client: Client) -> None:
        """Run the openers, and count the client among the others behind them."""
        lane = self._lane(client, self.heard)
        self._client_lanes[client] = lane
        calls = self._calls(self._registry.openers, client)
        lane.put(*calls, lambda: self._let_in(client), size=CALL_SIZE * len(calls))

    def received(self, client: Client, message: str | bytes) -> None:
        """Run the receivers; a client that sends faster than they run is not read for a while."""
        self.received_count += 1
        lane = self._client_lanes.get(client)
        if lane is None:
            return
        received = self._registry.receivers_for(message)
        size = CALL_SIZE + len(message)
        snapshot, tallies = self._clients.snapshot, self._tallies.by_callback
        calls = []
        for receiver, value in received.calls:
            call = Call(tallies[id(receiver)], {"client": client, "message": value}, client, snapshot, size)
            if receiver.rule is not None:
                call.question = Question(
                    functools.partial(self._refusal, receiver.rule, client),
                    functools.partial(self._refuse, receiver, client, received),
                )
            calls.append(call)
        lane.put(*calls, size=size * len(calls))
        if received.kind is not None and received.is_unheard:
            self._note_unheard(client, received.kind)
        self._pause_if_full(lane, client)

    def _pause_if_full(self, lane: Lane, client: Client) -> None:
        if not lane.size or lane.pause is not None or not (lane.is_full or self.heard.size >= MAX_HEARD):
            return
        if client.ws_connection is not None:
            client.ws_connection.pause_reading()
            self._pause(lane, client)

    def _pause(self, lane: Lane, client: Client) -> None:
        lane.moves = False
        lane.pause = self.loop.call_later(MAX_PAUSE, self._give_up, lane, client)

    def asked(self, client: Client, fields: dict[str, Any], size: int) -> None:
        """Do what a client asks for by a header of ``mease.v1`` of so many bytes, behind what it has sent before."""
        lane = self._client_lanes.get(client)
        if lane is None:
            return
        size += CALL_SIZE
        call = Asking(self._joining.tally, {"client": client, "message": fields}, client, self._clients.snapshot, size)
        if self._joining.needs_thread(fields):
            call.question = Question(
                functools.partial(self._join_refusal, client, fields),
                functools.partial(self._joining.refuse, client, fields),
            )
        lane.put(call, size=size)
        self._pause_if_full(lane, client)

    def _join_refusal(self, client: Client, fields: dict[str, Any]) -> str | None:
        self._reread(client)
        return self._joining.refusal(client, fields)

    def closed(self, client: Client) -> None:
        """Take the client from among the others behind what it has sent, and run the closers."""
        lane = self._client_lanes.get(client)
        if lane is None:
            return
        if lane.pause is not None:
            lane.pause.cancel()
            lane.pause = None
        calls = self._calls(self._registry.closers, client)
        entries: tuple[Call | Step, ...] = (
            lambda: self._clients.discard(client),
            *calls,
            lambda: self._forget_client(client),
        )
        self._close(lane, client, entries)

    def hurry(self, seconds: float) -> None:
        """Let closers wait no longer than so many seconds from now on."""
        self._patience = min(self._patience, seconds)
        for client, lane in self._client_lanes.items():
            if lane.closing is not None:
                self._wait_for(lane, lane.closing, client)

    async def identify(self, request: HTTPServerRequest) -> Identity:
        """Ask whose a handshake is, in a thread where there is anything to read."""
        identify = self._authentication.identify
        if not self._authentication.concerns(request):
            return identify(request)
        return await self.in_thread(functools.partial(identify, request))

    async def in_thread(self, function: Callable[[], Result]) -> Result:
        """Run what may block in a thread, and return what it returns, or raise what it raises."""
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

    def start(self) -> None:
        """Begin to watch what runs."""
        self.watch.start()

    def stop(self) -> None:
        """Begin nothing any more."""
        self.watch.stop()
        self.workers.stop()
        self.tasks.stop()

    async def wait_until_idle(self) -> None:
        """Wait until nothing waits or runs in any lane."""
        await self._idle.wait()

    # Lanes

    def _lane(self, about: str | Client, waiting: Waiting) -> Lane:
        self._idle.clear()
        return Lane(self, about, waiting)

    def emptied(self, lane: Lane) -> None:
        """Forget a routing for which nothing waits."""
        if isinstance(lane.about, str):
            del self._routings[lane.about]
            self._settle()

    def resume(self, lane: Lane) -> None:
        """Read a client again that had to wait."""
        assert lane.pause is not None and not isinstance(lane.about, str)
        lane.pause.cancel()
        lane.pause = None
        if lane.about.ws_connection is not None:
            lane.about.ws_connection.resume_reading()

    def _give_up(self, lane: Lane, client: Client) -> None:
        lane.pause = None
        if lane.moves:
            # Many may have come at once, and each be served a little: to send them away would bring them all again.
            self._pause(lane, client)
            return
        self.given_up += 1
        self._overrun.say(
            "client %s has sent %d messages, and its receivers came to none in %d s; it is closed with 1013",
            client.id,
            len(lane),
            MAX_PAUSE,
            about=client,
        )
        if client.ws_connection is not None:
            client.ws_connection.cut_off(1013, "what you send is not handled in time")

    def _calls(self, callbacks: tuple[Callback, ...], client: Client) -> list[Call]:
        tallies = self._tallies.by_callback
        return [
            Call(tallies[id(callback)], {"client": client}, client, self._clients.snapshot) for callback in callbacks
        ]

    def _refusal(self, rule: Rule, client: Client) -> str | None:
        self._reread(client)
        return rule.refusal(client.user)

    def _refuse(self, receiver: Callback, client: Client, received: Received, reason: str) -> None:
        self.refused += 1
        told = (client.id, receiver.path, reason)
        self._refusals.say("client %s may not be heard by %s: %s", *told, about=client, kind=reason)
        if received.is_json:
            client.write_message({"type": "mease.refused", "reason": reason, "refused": told_back(received.kind)})

    def _reread(self, client: Client) -> None:
        """Read a client's user again, in a thread, if that was some time ago."""
        if time.monotonic() - client.identity.read_at > MAX_IDENTITY_AGE:
            self._clients.reidentify(client, reread(client.identity))

    def _note_unheard(self, client: Client, kind: str) -> None:
        self.unheard += 1
        if traffic_logger.isEnabledFor(logging.INFO):
            meant = Lazily(functools.partial(self._meant, kind))
            self._strangers.say(
                "client %s sent the type %r, which no receiver takes%s", client.id, kind[:200], meant, about=client
            )

    def _meant(self, kind: str) -> str:
        closest = self._registry.closest_type(kind)
        return f"; did you mean {closest!r}?" if closest else ""

    def _close(self, lane: Lane, client: Client, entries: tuple[Call | Step, ...]) -> None:
        closing = lane.closing = Closing(entries)
        lane.put(*entries, size=CALL_SIZE * sum(isinstance(entry, Call) for entry in entries))
        if client in self._client_lanes:
            self._wait_for(lane, closing, client)

    def _wait_for(self, lane: Lane, closing: Closing, client: Client) -> None:
        if closing.timer is not None:
            closing.timer.cancel()
        closing.timer = self.loop.call_later(self._patience, self._overtake, lane, closing, client)

    def _overtake(self, lane: Lane, closing: Closing, client: Client) -> None:
        """Do in a new lane what is left for a client that has gone, since something hangs in its lane."""
        found = lane.take_over()
        if found is None:
            self._wait_for(lane, closing, client)
            return
        rest, calls = found
        dropped = sum(not self.watch.is_running(call) for call in calls)
        self._abandoned += 1
        self.overtaken += dropped
        self._overtakings.say(
            "the closers of client %s wait no longer for a callback of it that has not returned; %d calls behind that "
            "are dropped (%d so far)",
            client.id,
            dropped,
            self.overtaken,
            about=client,
        )
        successor = self._client_lanes[client] = self._lane(client, self.heard)
        self._close(successor, client, tuple(rest))

    def returned(self) -> None:
        """Note that something has returned whose client's closers did not wait for it."""
        self._abandoned -= 1
        self._settle()

    def _let_in(self, client: Client) -> None:
        if not client.is_turned_away:
            self._clients.add(client)
            client.write_header({"type": "ready"})

    def _turn_away(self, client: Client, path: str, reason: str) -> None:
        client.is_turned_away = True
        self.turned_away += 1
        self._denials.say("client %s is turned away by %s: %s", client.id, path, reason, about=client)
        self._clients.discard(client)  # It hears no more of a group that an opener has put it into.
        client.close(TURNED_AWAY, reason)

    def _forget_client(self, client: Client) -> None:
        closing = self._client_lanes.pop(client).closing
        if closing is not None and closing.timer is not None:
            closing.timer.cancel()
        self._settle()

    def _settle(self) -> None:
        if not self._routings and not self._client_lanes and not self._abandoned:
            self._idle.set()

    def _drop(self, message: Message, waiting: int, where: str) -> None:
        self.dropped += 1
        self._drops.say(
            "%d bytes wait for the senders of %s, and the message %s of the routing %s is dropped: they are too slow "
            "(%d dropped so far)",
            waiting,
            where,
            message.id,
            message.routing,
            self.dropped,
            about=message,
        )
        self._tell(message, None, [], f"too much waits for the senders of {where}, and it was dropped")

    @property
    def errors(self) -> int:
        """Callbacks that raised."""
        return sum(tally.errors for tally in self._tallies.all)
