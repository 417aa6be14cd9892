"""Runs callbacks: ``def`` in a thread, ``async def`` on the loop; order, errors and database connections.

The bridge between synchronous callbacks and the loop. What must stay in order waits in one ``Lane``: the messages of
one routing, or everything of one client. Different lanes do not wait for each other.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from contextvars import Context, Token
from dataclasses import dataclass
from typing import Any, TypeVar

from asgiref.sync import sync_to_async
from django.core.exceptions import PermissionDenied
from tornado.httputil import HTTPServerRequest

from djmease.identities import TURNED_AWAY, Identity, reread
from djmease.messages import Message, told_back
from djmease.registry import Callback, Received, Registry, Rule
from djmease.reports import NO_SENDER
from djmease.server.client import Client
from djmease.server.clients import Clients, ClientsList
from djmease.server.complaints import Complaints, Lazily, error_repr, fields_of, said_by
from djmease.server.identity import Authentication
from djmease.server.joining import Joining
from djmease.server.tallies import AUTHOR, Author, Record, Tallies, Tally
from djmease.server.tasks import Tasks
from djmease.server.watch import Watch
from djmease.server.workers import Step, Workers, tidy_connections

logger = logging.getLogger("djmease.server")
traffic_logger = logging.getLogger("djmease.traffic")

HOP_TIME = 0.005
"""Seconds after which a hop to a thread gives the rest of its lane back."""
CALL_SIZE = 1000
"""Bytes that a call which waits is counted with beside its message."""
MAX_ROUTING_WAITING = 32 * 1024 * 1024
"""Bytes that may wait for the senders of one routing; what comes on top is dropped, and said."""
MAX_WAITING = 128 * 1024 * 1024
"""Bytes that may wait for the senders of all routings: their names are endless."""
MAX_CLIENT_LANE = 100
"""Calls that may wait for one client before it is not read any more."""
MAX_CLIENT_WAITING = 1024 * 1024
"""Bytes that may wait for one client before it is not read any more."""
MAX_HEARD = 64 * 1024 * 1024
"""Bytes that may wait for all clients before those for whom something waits are not read any more."""
MAX_PAUSE = 60.0
"""Seconds that a client is not read because its receivers do not keep up, before it is closed."""
ASYNC_HYGIENE_INTERVAL = 1.0
"""Seconds between two looks at the database connections of asynchronous callbacks."""


MAX_IDENTITY_AGE = 30.0
"""Seconds after which a user is read again, so that a right that was revoked does not live as long as the tab."""
FAILED = "error"
"""Why a client may not have what could not be asked: the question raised."""
Result = TypeVar("Result")
Select = Callable[[], ClientsList]


@dataclass(frozen=True, slots=True)
class Question:
    """Whether a client may have a call after all."""

    ask: Callable[[], str | None]
    """Returns what the client does not meet, if there is anything; it may query."""
    refuse: Callable[[str], None]
    """Tells the client."""


class Call:
    """A callback with what it will be given; ``clients_list`` is taken when it runs."""

    __slots__ = ("about", "arguments", "callback", "question", "select", "size", "tally")

    def __init__(
        self,
        tally: Tally,
        arguments: dict[str, Any],
        about: Message | Client,
        select: Select,
        size: int = CALL_SIZE,
    ) -> None:
        self.tally = tally
        self.callback = tally.callback
        self.arguments = arguments
        """By our names; of this call alone."""
        self.about = about
        self.select = select
        """Returns the ``clients_list``."""
        self.size = size
        """Bytes that it counts with as long as it waits."""
        self.question: Question | None = None
        """Asked before, in a thread."""

    @property
    def needs_thread(self) -> bool:
        return self.question is not None or not self.callback.is_async

    @property
    def is_left_out(self) -> bool:
        """Whether an opener before it did not let the client in; its closers run all the same."""
        return isinstance(self.about, Client) and self.about.is_turned_away and self.callback.kind != "closer"

    @property
    def subject(self) -> str:
        """What log lines name: the routing with the message's id, or the client."""
        about = self.about
        return f"{about.routing} {about.id}" if isinstance(about, Message) else f"client {about.id}"


class Sending(Call):
    """A call of a sender, and what becomes of its message."""

    __slots__ = ("error", "header", "reached", "record", "seconds", "started")

    def __init__(
        self, tally: Tally, message: Message, select: Select, *, size: int, record: Record | None, header: bytes | None
    ) -> None:
        super().__init__(tally, {"routing": message.routing, "message": message.body}, message, select, size)
        self.record = record
        """Of its message, if those are counted."""
        self.header = header
        """What goes before its messages where a client takes headers."""
        self.error: BaseException | None = None
        self.reached = 0
        """Times that it has written to a client, as far as the loop knows."""
        self.started = self.seconds = 0.0
        """When it began, and how long it took."""

    @property
    def signs(self) -> bool:
        """Whether what it writes has to be known for its own."""
        return self.record is not None or self.header is not None

    def wrote(self, count: int) -> None:
        """Note that what it has written was handed on so many times more; on the loop only."""
        self.reached += count
        self.tally.delivered += count
        if self.record is not None:
            self.record.wrote(count)


@dataclass(slots=True)
class Waiting:
    """What waits in many lanes together."""

    size: int = 0
    """Bytes."""


class Closing:
    """The end of a client's lane: it is done once, in this lane or in the one that takes over from it."""

    __slots__ = ("_begun", "_lock", "entries", "is_abandoned", "is_for_thread", "timer")

    def __init__(self, entries: tuple[Call | Step, ...]) -> None:
        self.entries = entries
        """What goes last, in order: out of the list, the closers, and the client is forgotten."""
        self.is_abandoned = False
        self.is_for_thread = False
        """Whether what is next waits for a thread, which may be long and is nobody's fault."""
        self.timer: asyncio.TimerHandle | None = None
        self._begun: Call | None = None
        self._lock = threading.Lock()

    def may_begin(self, call: Call) -> bool:
        """Claim a call in a thread; from then on it is not given to another lane."""
        with self._lock:
            if not self.is_abandoned:
                self._begun = call
                self.is_for_thread = False
            return not self.is_abandoned

    def abandon(self, waiting: deque[Call | Step]) -> tuple[list[Call | Step], list[Call]] | None:
        """Return what is left to do of ``waiting``, and what is not done; ``None`` where a closer waits its turn."""
        with self._lock:
            # A copy, since the thread that hangs may return just now.
            left = [entry for entry in list(waiting) if entry is not self._begun]
            rest = [entry for entry in left if entry in self.entries]
            if self.is_for_thread and len(rest) == len(left):
                return None
            self.is_abandoned = True
            return rest, [entry for entry in left if isinstance(entry, Call) and entry not in self.entries]


class Lane:
    """What waits for one routing or one client, done in order, one thing at a time."""

    __slots__ = ("_dispatch", "_entries", "_is_running", "_taken", "_waiting", "about", "closing", "pause", "size")

    def __init__(self, dispatch: Dispatch, about: str | Client, waiting: Waiting) -> None:
        self._dispatch = dispatch
        self.about = about
        """The routing or the client."""
        self._entries = _NO_ENTRIES
        self._is_running = False
        self.size = 0
        """Bytes that wait."""
        self._waiting = waiting
        self._taken = 0
        """Bytes that a thread has taken, and that the loop has still to count as gone."""
        self.pause: asyncio.TimerHandle | None = None
        """While the client is not read: when it is given up."""
        self.closing: Closing | None = None
        """Of a client that has gone."""

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, *entries: Call | Step, size: int = 0) -> None:
        """Add to the end what counts with so many bytes; on the loop only. A lone entry begins at once."""
        self.size += size
        self._waiting.size += size
        if self._entries:
            self._entries.extend(entries)
        else:
            self._entries = deque(entries)
        if not self._is_running:
            self._is_running = True
            self._advance()

    @property
    def is_abandoned(self) -> bool:
        return self.closing is not None and self.closing.is_abandoned

    def take_over(self) -> tuple[list[Call | Step], list[Call]] | None:
        """Give up what hangs, and return what ``abandon`` does; on the loop only."""
        assert self.closing is not None
        found = self.closing.abandon(self._entries)
        if found is not None:
            # The thread that hangs has the old deque in its hands, and finds there that it shall not go on.
            self._entries = _NO_ENTRIES
            self._release(self.size)
        return found

    def _advance(self) -> None:
        if self.is_abandoned:
            self._dispatch.returned()
            return
        if self._taken:
            self._release(self._taken)
            self._taken = 0
        if self.pause is not None and len(self._entries) < MAX_CLIENT_LANE / 2 and self.size < MAX_CLIENT_WAITING / 2:
            self._dispatch.resume(self)
        while self._entries:
            head = self._entries[0]
            if not isinstance(head, Call):
                self._entries.popleft()
                self._dispatch.step(head)
            elif not head.needs_thread:
                self._entries.popleft()
                self._release(head.size)
                if self.closing is not None:
                    self.closing.is_for_thread = False
                self._dispatch.tasks.run(self._dispatch.run_async(head, self._advance))
                return
            else:
                is_closer = head.callback.kind == "closer"
                if self.closing is not None:
                    self.closing.is_for_thread = True
                self._dispatch.workers.run(self._hop, self._advance, is_closer=is_closer)
                return
        # An empty deque is more than all else that a lane is, and most lanes wait for nothing most of the time.
        self._entries = _NO_ENTRIES
        self._is_running = False
        self._dispatch.emptied(self)

    def _release(self, size: int) -> None:
        self.size -= size
        self._waiting.size -= size

    def _hop(self) -> None:
        """In a thread: run what needs one at the head of the lane, for a while."""
        deadline = time.monotonic() + HOP_TIME
        tidy_connections()
        entries = self._entries
        while entries and isinstance(head := entries[0], Call) and head.needs_thread:
            # Read behind the head: closers come into a lane after this is set.
            if (closing := self.closing) is not None and not closing.may_begin(head):
                break
            try:
                if head.question is None or Context().run(self._dispatch.admit, head):
                    if head.callback.is_async or self.is_abandoned:
                        break  # It may run now, and the loop is where; or closers have run while that was asked.
                    Context().run(self._dispatch.run, head)
            except BaseException:
                logger.exception("what the server does around a callback failed")
            entries.popleft()
            self._taken += head.size
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
        self.watch = Watch(
            loop,
            timeout=slow_callback_timeout,
            queue=self.workers.queue,
            ours=[function.__code__ for function in (Dispatch.admit, Dispatch.run, Dispatch.run_async)],
        )
        self._running = self.watch.running
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
        self._tidy_at = 0.0
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
        if lane.size and lane.pause is None:
            is_full = len(lane) >= MAX_CLIENT_LANE or lane.size >= MAX_CLIENT_WAITING or self.heard.size >= MAX_HEARD
            if is_full and client.ws_connection is not None:
                client.ws_connection.pause_reading()
                lane.pause = self.loop.call_later(MAX_PAUSE, self._give_up, lane, client)

    def asked(self, client: Client, fields: dict[str, Any], size: int) -> None:
        """Do what a client asks for by a header of ``mease.v1`` of so many bytes, behind what it has sent before."""
        lane = self._client_lanes.get(client)
        if lane is None:
            return
        size += CALL_SIZE
        call = Call(self._joining.tally, {"client": client, "message": fields}, client, self._clients.snapshot, size)
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
        self.given_up += 1
        self._overrun.say(
            "client %s has sent %d messages that its receivers did not come to in %d s; it is closed with 1013",
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
        self._refusals.say("client %s may not be heard by %s: %s", client.id, receiver.path, reason, about=client)
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

    def step(self, step: Step) -> None:
        """Do what is no call, and let what is behind it come whatever happens."""
        try:
            step()
        except Exception:
            logger.exception("what the server does between callbacks failed")

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

    # Running

    def admit(self, call: Call) -> bool:
        """Ask, in a thread, whether a call may run, and note that it may; a question that fails is a no."""
        question = call.question
        assert question is not None
        if call.is_left_out:
            return False
        started = time.monotonic()
        self._running[call] = (started, threading.get_ident())
        try:
            reason = question.ask()
        except BaseException as error:
            self._report(call, error)
            reason = FAILED
        finally:
            self._ended(call, started)
        if reason is not None:
            question.refuse(reason)
            return False
        call.question = None
        return True

    def run(self, call: Call) -> None:
        """Run a ``def`` callback, in a thread and in a context of its own; what it raises is logged and contained."""
        if call.is_left_out:
            return
        author = self._sign(call) if isinstance(call, Sending) and call.signs else None
        if call.callback.binding.wants_clients:
            call.arguments["clients_list"] = call.select()
        started = time.monotonic()
        self._running[call] = (started, threading.get_ident())
        try:
            result = call.callback(call.arguments)
            if inspect.iscoroutine(result):
                result.close()
                raise TypeError(f"{call.callback.path} is a def and returned a coroutine: declare it with async def")
        except BaseException as error:
            self._report(call, error)
        if author is not None:
            self._clients.outbox.end_run()
        self._count(call, started)

    async def run_async(self, call: Call, then: Step) -> None:
        """Run an ``async def`` callback, and ``then`` behind it; whatever it raises is logged and contained."""
        if call.is_left_out:
            then()
            return
        author = self._sign(call) if isinstance(call, Sending) and call.signs else None
        if call.callback.binding.wants_clients:
            call.arguments["clients_list"] = call.select()
        started = time.monotonic()
        try:
            try:
                awaited = call.callback(call.arguments)
                self._running[call] = (started, awaited)
                await awaited
            except BaseException as error:
                self._report(call, error)
            if author is not None:
                AUTHOR.reset(author)  # Its task may be that of others too.
                self._clients.outbox.end_run()
            self._count(call, started)
        finally:
            then()  # Whatever happens: all that is behind it waits for this.
        if started >= self._tidy_at:
            # Django's asynchronous ORM keeps its connections in one thread of asgiref's, which may hang; nobody waits
            # for it, and there is one at a time.
            self._tidy_at = math.inf
            await sync_to_async(tidy_connections)()
            self._tidy_at = time.monotonic() + ASYNC_HYGIENE_INTERVAL

    def _sign(self, call: Sending) -> Token[Author | None]:
        """Let what is written in this context be known for a sender's."""
        self._clients.outbox.end_run()  # Or it would write in the name of another call.
        return AUTHOR.set(call)

    def _count(self, call: Call, started: float) -> None:
        """Note that a call has ended, and how long it took."""
        seconds = time.monotonic() - started
        self._ended(call, started)
        if self._tallies.is_on:
            durations = call.tally.durations
            if call.callback.is_async:
                durations.note(seconds)
            else:
                durations.add(seconds)
        if isinstance(call, Sending):
            call.started, call.seconds = started, seconds
        if traffic_logger.isEnabledFor(logging.INFO):
            clients = len(call.arguments.get("clients_list") or call.select())
            traffic_logger.info(
                "%s: %s, %d clients, %.1f ms",
                call.subject,
                call.callback.path,
                clients,
                seconds * 1000,
                extra=fields_of(call.about),
            )

    def _ended(self, call: Call, started: float) -> None:
        if self._running.pop(call, None) is None:
            self.watch.ended(call, started)  # It was found slow.

    def _report(self, call: Call, error: BaseException) -> None:
        if isinstance(error, PermissionDenied) and call.callback.kind == "opener":
            assert not isinstance(call.about, Message)
            self._turn_away(call.about, call.callback.path, said_by(error))
            return
        call.tally.failed(error)
        if isinstance(call, Sending):
            call.error = error
            if call.record is not None:
                call.record.errors += 1
        extra = fields_of(call.about)
        what = error_repr(error)
        logger.error("%s raised %s for %s", call.callback.path, what, call.subject, exc_info=error, extra=extra)

    @property
    def errors(self) -> int:
        """Callbacks that raised."""
        return sum(tally.errors for tally in self._tallies.all)
