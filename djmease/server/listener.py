"""The one reader of Redis: subscribed, supervised, and back again whatever happens to Redis.

It must hear this server's own heartbeat, which goes through Redis: where none comes, it is taken for deaf and connects
anew, whatever the connection looks like.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections import deque
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any, NoReturn

from redis.asyncio import Connection
from redis.exceptions import RedisError

from djmease.messages import Message, decode
from djmease.names import Names
from djmease.server.background import Background
from djmease.server.complaints import Complaints, fields_of
from djmease.server.link import Access, Backoff, Trouble
from djmease.server.pulse import REFUSALS, Pulse
from djmease.server.subscriptions import Subscriptions

logger = logging.getLogger("djmease.listener")

CONNECT_TIMEOUT = 2.0
"""Seconds for connecting and authenticating, and then for each answer of Redis until all is subscribed."""
HEARTBEAT_INTERVAL = 5.0
"""Seconds between two of this server's heartbeats."""
DEAF_AFTER = 60.0
"""Seconds without a heartbeat after which an error says so, and again each time as many have passed."""
OVERDUE = 2.0
"""Intervals after which a heartbeat that has not come is trouble."""
PATIENCE = 2.5
"""Intervals after which the connections are given up for that."""
TICKS = 4
"""How often in an interval that is looked at."""
MAX_BATCH = 1000
"""Channels of one command."""
CONFIRMATIONS = (b"subscribe", b"psubscribe")
RECENT = 1000
"""How many ids are remembered, to drop a message that a publisher has sent twice."""


class Listener:
    """Hears every publication on the channel of a routing, and hands it on as a ``Message``, on the loop.

    What is for groups and users comes on the channels of ``subscriptions``. On two channels beside those it hears
    heartbeats (``on_heartbeat`` gets those of other servers) and orders.
    """

    def __init__(
        self,
        *,
        access: Access,
        names: Names,
        heartbeat: bytes,
        subscriptions: Subscriptions,
        on_message: Callable[[Message], None],
        on_heartbeat: Callable[[bytes], None],
        on_control: Callable[[bytes], None],
        on_gap: Callable[[float], None],
        heartbeat_interval: float = HEARTBEAT_INTERVAL,
        deaf_after: float = DEAF_AFTER,
    ) -> None:
        self._access = access
        self._prefix = names.channel_prefix.encode()
        self._heartbeat_channel = names.heartbeat_channel.encode()
        self._control_channel = names.control_channel.encode()
        self._heartbeat = heartbeat
        self._subscriptions = subscriptions
        self._on_message = on_message
        self._on_heartbeat = on_heartbeat
        self._on_control = on_control
        self._on_gap = on_gap
        """Told how many seconds nothing was heard, when something is again."""
        self._interval = heartbeat_interval
        self._deaf_after = deaf_after
        self._pulse = Pulse(
            access=access,
            channel=names.heartbeat_channel,
            payload=heartbeat,
            interval=heartbeat_interval,
        )
        self._connection: Connection | None = None
        self._reading: asyncio.Timeout | None = None
        self._gone = "this server has not subscribed to Redis yet"
        self._heard_at = 0.0
        # Both count only time in which this loop ran: one that stood still has not been deaf, it has not listened.
        self._waited = 0.0
        """Seconds since this server's own heartbeat was heard, or the connection was made."""
        self._silence = 0.0
        """Seconds since this server's own heartbeat was heard."""
        self._silence_said = 0.0
        self._recent: set[str] = set()
        self._recent_order: deque[str] = deque()
        self._refusals = Complaints(logger, logging.ERROR)
        self.refused = 0
        """Payloads that could not be read."""
        self.reconnects = 0
        self.away = 0.0
        """Seconds, in all, for which nothing could be heard."""

    @property
    def is_hearing(self) -> bool:
        return self.trouble is None

    @property
    def trouble(self) -> str | None:
        """Why this server may not hear what is published, as a sentence; ``None`` where all is well."""
        if self._connection is None:
            return self._gone
        if self._pulse.refusal is not None:
            return self._pulse.refusal
        if self._waited > OVERDUE * self._interval:
            return f"this server's own heartbeat has not come back from Redis for {self._waited:.1f} s"
        return None

    async def start(self) -> None:
        """Connect and subscribe. Raises redis-py's ``RedisError``, ``OSError`` or ``TimeoutError`` where that fails."""
        await self._subscribe()
        try:
            await self._pulse.beat()
        except BaseException:
            await self._drop()
            raise

    async def run(self) -> None:
        """Read until cancelled; a Redis that goes away is waited for."""
        beside = Background(logger)
        beside.keep("the heartbeat", self._pulse.run)
        beside.keep("the watch for the heartbeat", self._watch)
        beside.keep("telling Redis which channels are wanted", self._tell_changes)
        try:
            while True:
                # Outside of the except clause, or what fails later would have this error for its context.
                await self._come_back(await self._read_until_it_fails())
        finally:
            await beside.stop()
            await self._drop()

    async def _subscribe(self) -> None:
        connection = self._access.connect()
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT) as deadline:
                await connection.connect()
                await self._ask(connection, deadline, "SUBSCRIBE", self._heartbeat_channel, self._control_channel)
                # What is for everybody comes first, so that as little of it as can be is missed.
                await self._ask(connection, deadline, "PSUBSCRIBE", _escaped(self._prefix) + b"*")
                # What is joined meanwhile is heard, too, before clients are told to ask for what they missed.
                for find in (self._subscriptions.channels, self._subscriptions.more_channels):
                    for channels in _batches(find()):
                        await self._ask(connection, deadline, "SUBSCRIBE", *channels)
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        self._connection = connection
        self._subscriptions.connected()
        self._waited = 0.0
        self._heard_at = time.monotonic()

    async def _ask(self, connection: Connection, deadline: asyncio.Timeout, *command: bytes | str) -> None:
        """Send one command for channels, and return when Redis has confirmed them; each answer moves the deadline on.

        What comes on other channels meanwhile is taken. One command after another: a Redis that writes faster than it
        is read would close the connection (``client-output-buffer-limit pubsub``).
        """
        await connection.send_command(*command)
        left = len(command) - 1
        while left:
            replies = [await connection.read_response(disable_decoding=True)]
            deadline.reschedule(asyncio.get_running_loop().time() + CONNECT_TIMEOUT)
            for reply in chain(replies, _replies_that_have_come(connection)):
                self._take(reply)
                left -= reply[0] in CONFIRMATIONS
                if not left:
                    break  # What is behind it is for whoever reads next.
        await asyncio.sleep(0)

    async def _drop(self) -> None:
        connection, self._connection = self._connection, None
        self._subscriptions.disconnected()
        if connection is not None:
            await connection.disconnect(nowait=True)
        await self._pulse.drop()

    async def _tell_changes(self) -> None:
        """Subscribe and unsubscribe as the subscriptions want it, until cancelled."""
        while True:
            changes = await self._subscriptions.changes()
            connection = self._connection
            if connection is None:
                continue  # It subscribes to all that is held when it comes back.
            commands = [("UNSUBSCRIBE", *channels) for channels in _batches(changes.unsubscribe)]
            commands += [("SUBSCRIBE", *channels) for channels in _batches(changes.subscribe)]
            try:
                for command in commands:
                    if connection is not self._connection:
                        break  # One that was given up would be connected again by redis-py, and nobody would read it.
                    await connection.send_command(*command)
            except (RedisError, OSError):
                pass  # It ends the reading of this connection too.
            except Exception:
                # Nobody knows what Redis was told: a new connection is told all of it.
                await connection.disconnect(nowait=True)
                raise

    async def _read_until_it_fails(self) -> Exception:
        try:
            await self._read()
        except (RedisError, OSError, TimeoutError) as error:
            return error

    async def _read(self) -> NoReturn:
        """Read replies as they come; those that have come already are taken without a turn of the loop in between."""
        connection = self._connection
        assert connection is not None
        try:
            async with asyncio.timeout(None) as self._reading:
                while True:
                    reply = await connection.read_response(disable_decoding=True)
                    self._heard_at = time.monotonic()
                    self._take(reply)
                    for reply in _replies_that_have_come(connection):
                        self._take(reply)
        except TimeoutError:
            raise TimeoutError(f"this server's own heartbeat has not come for {self._waited:.1f} s") from None
        finally:
            self._reading = None

    async def _watch(self) -> None:
        tick = self._interval / TICKS
        while True:
            await asyncio.sleep(tick)
            self._pass(tick)

    def _pass(self, seconds: float) -> None:
        """Count time that has passed, and give up a connection that does not bring the heartbeat."""
        self._silence += seconds
        # A heartbeat that Redis refuses cannot come, and the listener may still hear.
        if self._reading is not None and self._pulse.refusal is None:
            self._waited += seconds
            if self._waited > PATIENCE * self._interval and not self._reading.expired():
                self._reading.reschedule(0)
        if self._silence - self._silence_said >= self._deaf_after:
            self._silence_said = self._silence
            logger.error(
                "this server has heard no heartbeat of its own for %.0f s, and what is published may not reach its "
                "clients: %s",
                self._silence,
                self.trouble or "it has just connected again",
            )

    def _take(self, reply: Any) -> None:
        if isinstance(reply, RedisError):
            raise reply
        if reply[0] == b"pmessage":
            channel = reply[2]
            self._hear(channel, reply[3], channel[len(self._prefix) :].decode(errors="backslashreplace"))
        elif reply[0] == b"message":
            if reply[1] in (self._heartbeat_channel, self._control_channel):
                self._hear_beside(reply[1], reply[2])
            else:
                self._hear(reply[1], reply[2], None)
        elif reply[0] == b"subscribe" and reply[1] not in (self._heartbeat_channel, self._control_channel):
            self._subscriptions.confirmed(reply[1].decode())

    def _hear(self, channel: bytes, payload: bytes, routing: str | None) -> None:
        try:
            message = decode(routing, payload)
        except ValueError as error:
            self.refused += 1
            self._refusals.say(
                "a payload of %d bytes on %r is refused: %s", len(payload), channel, error, about=routing
            )
            return
        if not self._is_new(message.id):
            return
        try:
            self._on_message(message)
        except Exception:
            extra = fields_of(message)
            logger.exception("message %s on %s could not be handed on", message.id, message.routing, extra=extra)

    def _hear_beside(self, channel: bytes, payload: bytes) -> None:
        if payload == self._heartbeat and channel == self._heartbeat_channel:
            self._waited = self._silence = self._silence_said = 0.0
            return
        try:
            if channel == self._heartbeat_channel:
                self._on_heartbeat(payload)
            elif channel == self._control_channel:
                self._on_control(payload)
        except Exception:
            logger.exception("what came on %r could not be handed on", channel)

    def _is_new(self, message_id: str) -> bool:
        if message_id in self._recent:
            return False
        self._recent.add(message_id)
        self._recent_order.append(message_id)
        if len(self._recent_order) > RECENT:
            self._recent.discard(self._recent_order.popleft())
        return True

    async def _come_back(self, error: BaseException) -> None:
        # A connection that fell silent has been deaf since it was last heard, and nobody knew.
        gone_at = self._heard_at if isinstance(error, TimeoutError) else time.monotonic()
        reason = self._access.explain(error)
        self._gone = f"{'Redis refuses this server' if isinstance(error, REFUSALS) else 'Redis is gone'}: {reason}"
        logger.error("%s; messages published meanwhile are lost; trying to come back", self._gone)
        await self._drop()
        await self._try_again(reason)
        self._pulse.hurry()
        away = time.monotonic() - gone_at
        self.reconnects += 1
        self.away += away
        logger.warning("Redis is back after %.1f s; what was published meanwhile is lost, if anything was", away)
        self._on_gap(away)

    async def _try_again(self, reason: str) -> None:
        """Return when subscribed again; each other reason for which that fails is said."""
        trouble, backoff = Trouble(self._access, logger, "Redis cannot be heard: %s", reason=reason), Backoff()
        while True:
            await asyncio.sleep(backoff.next())
            try:
                if self._access.revive is not None:
                    await self._access.revive()
                return await self._subscribe()
            except Exception as failure:
                trouble.note(failure)
                self._gone = trouble.text


def _replies_that_have_come(connection: Connection) -> Iterator[Any]:
    """Yield what hiredis has already parsed: asking redis-py for each reply would cost more than all else with it."""
    gets = getattr(getattr(connection._parser, "_reader", None), "gets", None)
    # A subscriber is told lists and errors; anything else is redis-py's mark for "not enough data".
    while gets is not None and isinstance(reply := gets(False), (list, RedisError)):
        yield reply


def _batches(channels: list[str]) -> Iterator[list[str]]:
    """Yield the channels in parts that Redis takes in one command each without keeping others waiting."""
    for start in range(0, len(channels), MAX_BATCH):
        yield channels[start : start + MAX_BATCH]


def _escaped(prefix: bytes) -> bytes:
    """Return a prefix in which PSUBSCRIBE finds no pattern (https://redis.io/docs/latest/commands/psubscribe/)."""
    return re.sub(rb"([*?\[\]\\])", rb"\\\1", prefix)
