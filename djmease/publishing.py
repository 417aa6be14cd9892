"""``publish`` and ``apublish``: how any Django code reaches the clients."""

from __future__ import annotations

import asyncio
import enum
import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, TypeVar
from uuid import UUID

from asgiref.sync import sync_to_async
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured, SynchronousOnlyOperation
from django.db import transaction
from django.db.models import Model
from redis import ConnectionPool
from redis.connection import Connection
from redis.exceptions import AuthenticationError, RedisError, ResponseError

from djmease import connections, loader, messages
from djmease.messages import Message

logger = logging.getLogger("djmease.publishing")

CONNECT_DEADLINE = 1.0
"""Seconds in all for which a publish tries to connect."""
CONNECT_PAUSE = 0.05
"""Seconds between two attempts."""
MAX_CHANNELS = 100
"""Groups or users, with more of whom a message goes by the channel that every server hears."""


class Everybody(enum.Enum):
    """Whom a message is for where nobody is named. ``None`` is nobody: a field without a user must not mean all."""

    EVERYBODY = "everybody"

    def __repr__(self) -> str:
        return self.name


EVERYBODY: Final = Everybody.EVERYBODY

Result = TypeVar("Result")
Outlet = Callable[[Message], None]
captures: list[Outlet] = []
"""Who takes what is published, at once and whatever the transaction does; nothing is sent then."""
wires: list[Outlet] = []
"""Who takes what would be sent to Redis. Both lists are for djmease.test."""
control_wires: list[Callable[[dict[str, Any]], None]] = []
"""Who takes the orders to servers that would be sent to Redis; for djmease.test too."""

counts: Counter[str] = Counter()
"""What happened in this process: ``published``, ``unheard`` and ``lost_after_commit``."""


class UnknownRouting(LookupError):  # noqa: N818 (it reads better where it is caught)
    """A routing for which no sender is registered."""

    def __init__(self, routing: str, closest: list[str]) -> None:
        super().__init__(routing, closest)
        self.routing = routing
        self.closest = closest

    def __str__(self) -> str:
        meant = f" Did you mean {' or '.join(map(repr, self.closest))}?" if self.closest else ""
        return (
            f"No sender is registered for the routing {self.routing!r}.{meant} Routings are registered in MEASE_ROUTES "
            "or by @djmease.sender in an app's mease_registry; MEASE_STRICT_ROUTING = False lets any pass."
        )


class PublishError(Exception):
    """Redis did not take a message; ``address`` is where it should be, with the password masked."""

    def __init__(self, routing: str, address: str, reason: str) -> None:
        super().__init__(routing, address, reason)
        self.routing = routing
        self.address = address
        self.reason = reason

    def __str__(self) -> str:
        return f"The message on {self.routing!r} could not be published to Redis at {self.address}: {self.reason}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """A message that was published."""

    id: str
    heard: int | None
    """How often Redis handed it to a server, on all channels; ``None`` where ``djmease.test`` has taken it instead."""
    channels: tuple[str, ...]
    """Where it was published: on that of its routing, which all servers hear, or on those of groups or users."""
    is_for_all: bool
    """Whether all servers hear it; else those that have clients whom it may be for."""


def publish(
    routing: str,
    message: Any,
    *,
    group: str | Iterable[str] | Everybody = EVERYBODY,
    user: Any = EVERYBODY,
    on_commit: bool = True,
    using: str | None = None,
    fail_silently: bool = False,
) -> str:
    """Send ``message`` to the senders of ``routing`` in every server, and return the message's id.

    ``str`` arrives as that text, ``bytes`` as bytes, anything else as what JSON makes of it. It is encoded here, so
    that errors show here. Inside a transaction on the database ``using`` it is sent after the commit, and dropped by
    a rollback; ``on_commit=False`` sends it at once.

    ``group`` is a group or several, ``user`` a user, a primary key, or several: then the senders get just those
    clients, each once; with both, the clients of those users that are in those groups. ``None`` is refused, so that a
    field without a user does not send to everybody.

    Raises ``UnknownRouting`` where no sender is registered for the routing, ``ValueError`` for a name that is not one,
    for ``None``, a user that is not saved and what can be no primary key of one, and for a message over
    ``MEASE_MAX_PUBLISH_SIZE``, ``TypeError`` or ``ValueError`` for what JSON cannot hold, ``PublishError`` where Redis
    does not answer (``fail_silently`` logs it instead), and ``SynchronousOnlyOperation`` on an event loop, where
    ``await apublish(...)`` is meant.
    """
    refuse_event_loop("publish", "apublish")
    return _publish(
        routing,
        message,
        group=_named("group", group),
        user=_named("user", user),
        using=using,
        on_commit=on_commit,
        fail_silently=fail_silently,
    )


async def apublish(
    routing: str,
    message: Any,
    *,
    group: str | Iterable[str] | Everybody = EVERYBODY,
    user: Any = EVERYBODY,
    fail_silently: bool = False,
) -> str:
    """Do what ``publish`` does, on an event loop, at once: asynchronous code is never in a transaction."""
    group, user = _named("group", group), _named("user", user)
    return await asyncio.to_thread(
        _publish,
        routing,
        message,
        group=None if group is None else await read_by_loop(_groups, group),
        user=None if user is None else await read_by_loop(_users, user),
        using=None,
        on_commit=False,
        fail_silently=fail_silently,
    )


def publish_now(
    routing: str,
    message: Any,
    *,
    group: str | Iterable[str] | None = None,
    user: Any = None,
    trace: str | None = None,
) -> Publication:
    """Publish at once, also inside a transaction, and return who heard it; that nobody did is not logged.

    With a token as ``trace`` each server that heard it answers, as ``reporting.answers`` reads, with what became of
    the message; it goes by one channel then, that of its routing where it is for several groups or users. Raises what
    ``publish`` does.
    """
    refuse_event_loop("publish", "apublish")
    outgoing = _encode(routing, message, group=group, user=user, trace=trace)
    if captures:
        _hand_over(captures, outgoing)
        heard = None
    else:
        heard = _hand_to_redis(outgoing)
    is_for_all = outgoing.channels is None
    return Publication(id=outgoing.id, heard=heard, channels=tuple(outgoing.all_channels), is_for_all=is_for_all)


def publish_control(order: dict[str, Any]) -> bool:
    """Send an order, which JSON can hold, to all servers on this prefix, and tell whether Redis took it.

    It is tried once, blocks for a second or two at most, and waits for no transaction. Where it fails that is logged,
    and not raised: an order hastens what happens anyway. No server that runs is no failure.
    """
    try:
        send_control(order)
    except PublishError as error:
        logger.warning("an order could not be published: %s", error)
        return False
    return True


def send_control(order: dict[str, Any]) -> None:
    """Send an order as ``publish_control`` does, and raise ``PublishError`` where Redis does not take it."""
    payload = messages.to_json(order)
    if control_wires:
        for wire in tuple(control_wires):
            wire(json.loads(payload))
        return
    try:
        _send_control(payload)
    except ImproperlyConfigured as error:
        raise PublishError(order["order"], "an address that is not known", str(error)) from error
    except (RedisError, OSError) as error:
        raise PublishError(order["order"], connections.address(), connections.reason(error)) from error


def _send_control(payload: str) -> None:
    pool = connections.publisher_pool()
    try:
        connection = pool.get_connection()
    except (RedisError, OSError):
        if connections.is_idle():
            return
        raise
    _exchange(pool, connection, [connections.names().control_channel], payload)


def is_on_event_loop() -> bool:
    """Tell whether this thread runs an event loop now."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def refuse_event_loop(name: str, asynchronous: str) -> None:
    """Raise ``SynchronousOnlyOperation`` on a running event loop, which ``djmease.<name>`` would block."""
    if is_on_event_loop():
        raise SynchronousOnlyOperation(
            f"djmease.{name} would block the event loop: use  await djmease.{asynchronous}(...)  in asynchronous code."
        )


AT_HAND = (str, bytes, int, UUID, Model)
"""Types of what is read without a query."""


async def read_by_loop(read: Callable[[Any], Result], value: Any) -> Result:
    """Return ``read(value)``, on an event loop.

    A lazy object or a query set is read in the thread in which Django's own asynchronous code queries: there it closes
    the connections, and in a test it is the test's own. All else does not wait for that thread, which is one for all.
    """
    return read(value) if _is_at_hand(value) else await sync_to_async(read)(value)


def _is_at_hand(value: Any) -> bool:
    # isinstance() would look into a lazy object, and so query.
    if type(value) in (list, tuple, set, frozenset):
        return all(issubclass(type(each), AT_HAND) for each in value)
    return issubclass(type(value), AT_HAND)


def _named(parameter: str, value: Any) -> Any:
    """Return whom an argument names, ``None`` for everybody."""
    if value is None:
        raise ValueError(f"{parameter} is None, which is nobody: leave it out to publish to everybody")
    return None if value is EVERYBODY else value


def _publish(
    routing: str,
    message: Any,
    *,
    group: str | Iterable[str] | None,
    user: Any,
    using: str | None,
    on_commit: bool,
    fail_silently: bool,
) -> str:
    outgoing = _encode(routing, message, group=group, user=user)
    if captures:
        _hand_over(captures, outgoing)
        return outgoing.id
    if on_commit and transaction.get_connection(using).in_atomic_block:
        transaction.on_commit(lambda: _send_after_commit(outgoing), using=using, robust=True)
        return outgoing.id
    try:
        _send(outgoing)
    except PublishError as error:
        if not fail_silently:
            raise
        logger.error("%s", error, extra=outgoing.fields)
    return outgoing.id


@dataclass(frozen=True, slots=True, kw_only=True)
class Outgoing:
    """A message on its way to Redis."""

    routing: str
    id: str
    channels: list[str] | None
    """Those of the groups or users that it is for; ``None`` where it goes by that of its routing."""
    payload: bytes

    @property
    def all_channels(self) -> list[str]:
        return [connections.names().routing_channel(self.routing)] if self.channels is None else self.channels

    @property
    def fields(self) -> dict[str, str]:
        """What a log record about it gets beside its text."""
        return {"routing": self.routing, "message_id": self.id}


def _encode(
    routing: str, message: Any, *, group: str | Iterable[str] | None, user: Any, trace: str | None = None
) -> Outgoing:
    """Return a message as it is sent, or raise what ``publish`` does for one that it does not take."""
    check_routing(routing)
    kind, body = _encode_body(routing, message)
    message_id = messages.new_id()
    groups = None if group is None else _groups(group)
    users = None if user is None else _users(user)
    channels = _channels(groups, users)
    if trace is not None and channels is not None and len(channels) > 1:
        channels = None  # A server may hear several channels and tells once: how many tell could not be known.
    payload = messages.encode(
        kind=kind,
        body=body,
        message_id=message_id,
        published_at=time.time(),
        groups=groups,
        users=users,
        trace=trace,
        routing=None if channels is None else routing,
    )
    return Outgoing(routing=routing, id=message_id, channels=channels, payload=payload)


def _channels(groups: list[str] | None, users: list[str] | None) -> list[str] | None:
    """Return the channels of those whom a message is for, ``None`` where it goes by that of its routing.

    Whoever is meant by groups and users together is in one of either.
    """
    names = connections.names()
    targets = [
        [names.group_channel(group) for group in dict.fromkeys(groups)] if groups is not None else None,
        [names.user_channel(user) for user in dict.fromkeys(users)] if users is not None else None,
    ]
    fewest = min((channels for channels in targets if channels is not None), key=len, default=None)
    return None if fewest is None or len(fewest) > MAX_CHANNELS else fewest


def _hand_over(outlets: list[Outlet], outgoing: Outgoing) -> None:
    message = messages.decode(outgoing.routing, outgoing.payload)
    for outlet in tuple(outlets):
        outlet(message)


def _groups(group: str | Iterable[str]) -> list[str]:
    return [messages.check_group(name) for name in ([group] if isinstance(group, str) else group)]


def _users(user: Any) -> list[str]:
    """Return the primary keys, as text, of a user, a primary key, or several of either."""
    is_several = isinstance(user, Iterable) and not isinstance(user, (str, bytes)) and not hasattr(user, "pk")
    return [messages.primary_key(each) for each in (user if is_several else [user])]


def check_routing(routing: str) -> None:
    """Raise ``ValueError`` or ``UnknownRouting``, as ``publish`` does, for a name that it does not take."""
    messages.check_routing(routing)
    if not hasattr(settings, "MEASE_STRICT_ROUTING"):
        raise ImproperlyConfigured("'djmease' is not in INSTALLED_APPS: add it; its settings have no defaults without.")
    if settings.MEASE_STRICT_ROUTING and not loader.is_sent(routing):
        raise UnknownRouting(routing, loader.closest_routings(routing))


def _encode_body(routing: str, message: Any) -> tuple[bytes, bytes]:
    try:
        kind, body = messages.encode_body(message)
    except (TypeError, ValueError) as error:
        error.add_note(f"This was the message that djmease.publish was given for the routing {routing!r}.")
        raise
    if len(body) > settings.MEASE_MAX_PUBLISH_SIZE:
        raise ValueError(
            f"The message on {routing!r} has {len(body)} bytes, more than the {settings.MEASE_MAX_PUBLISH_SIZE} of "
            "MEASE_MAX_PUBLISH_SIZE: publish less (a URL or a primary key), or raise the setting."
        )
    return kind, body


def _send_after_commit(outgoing: Outgoing) -> None:
    # Django would log a failing hook too, and then could not say which message it was.
    try:
        _send(outgoing)
    except PublishError as error:
        counts["lost_after_commit"] += 1
        logger.error("message %s is lost after the commit: %s", outgoing.id, error, extra=outgoing.fields)


def _send(outgoing: Outgoing) -> None:
    heard = _hand_to_redis(outgoing)
    if heard == 0 and outgoing.channels is None:  # Else it may just be that nobody is there whom it is for.
        _warn_unheard(outgoing)


def _hand_to_redis(outgoing: Outgoing) -> int | None:
    """Return how many servers heard it, ``None`` where ``djmease.test`` has taken it."""
    if wires:
        _hand_over(wires, outgoing)
        return None
    try:
        heard = _execute(outgoing)
    except ImproperlyConfigured as error:
        raise PublishError(outgoing.routing, "an address that is not known", str(error)) from error
    counts["published"] += 1
    return heard


def _warn_unheard(outgoing: Outgoing) -> None:
    counts["unheard"] += 1
    if counts["unheard"] == 1:
        logger.warning(
            "nobody hears %r: no WebSocket server is connected to %s; start one with: python manage.py "
            "run_websocket_server (said once)",
            outgoing.routing,
            connections.address(),
            extra=outgoing.fields,
        )


def _execute(outgoing: Outgoing) -> int:
    """Publish to its channels, and never again what may have been sent: only connecting is tried more than once."""
    channels = outgoing.all_channels
    pool = connections.publisher_pool()
    connection = _connect(outgoing.routing, pool) if channels else None
    if connection is None:
        return 0
    try:
        return _exchange(pool, connection, channels, outgoing.payload)
    except (RedisError, OSError) as error:
        doubt = "" if isinstance(error, ResponseError) else " (it may have arrived)"
        raise PublishError(outgoing.routing, connections.address(), f"{connections.reason(error)}{doubt}") from error


def _exchange(pool: ConnectionPool, connection: Connection, channels: list[str], payload: bytes | str) -> int:
    """Publish to the channels in one go, give the connection back, and return how many heard it, on all of them."""
    try:
        if len(channels) == 1:
            connection.send_command("PUBLISH", channels[0], payload)
        else:
            connection.send_packed_command(
                connection.pack_commands([("PUBLISH", channel, payload) for channel in channels])
            )
        return sum([connection.read_response() for _ in channels])
    except BaseException:
        # Also what a signal raises, such as a task's time limit: the answer would be the next message's.
        connection.disconnect()
        raise
    finally:
        pool.release(connection)


def _connect(routing: str, pool: ConnectionPool) -> Connection | None:
    """Return a connection, or ``None`` where the embedded Valkey does not run because no server does."""
    deadline = time.monotonic() + CONNECT_DEADLINE
    while True:
        try:
            return pool.get_connection()
        except AuthenticationError as error:
            raise PublishError(routing, connections.address(), connections.reason(error)) from error
        except (RedisError, OSError) as error:
            if connections.is_idle():
                return None
            if time.monotonic() + CONNECT_PAUSE > deadline:
                raise PublishError(routing, connections.address(), connections.reason(error)) from error
            time.sleep(CONNECT_PAUSE)
