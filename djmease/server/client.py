"""``Client``: one connection, as callbacks hold it."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Awaitable, Callable, Generator
from dataclasses import dataclass
from typing import Any, Protocol

from django.core.exceptions import PermissionDenied
from tornado.httputil import HTTPServerRequest
from tornado.websocket import WebSocketHandler

from djmease.identities import NOBODY, TICKET_SUBPROTOCOL, Identity, Unauthenticated
from djmease.messages import check_group, new_id
from djmease.roll import encode_info
from djmease.server.complaints import Complaints, error_repr, said_by
from djmease.server.forms import MARK, header_frame, read_header
from djmease.server.limits import Limits
from djmease.server.outbox import Outbox
from djmease.server.protocol import (
    HEADED_SUBPROTOCOL,
    SENDABLE_CLOSE_CODES,
    WebSocketProtocol,
    is_sendable_close_code,
)
from djmease.server.proxies import Proxies
from djmease.server.readers import Readers
from djmease.server.tallies import AUTHOR

CHALLENGE = 'Mease realm="websocket"'
"""HTTP wants a 401 to say how to log in (RFC 9110, section 15.5.2); no browser asks for a password by this."""
IDENTIFY_TIMEOUT = 10.0
"""Seconds that a handshake waits for its session; callbacks that hang may keep all threads busy."""


class Events(Protocol):
    """What a client tells of itself."""

    def opened(self, client: Client) -> None: ...

    def received(self, client: Client, message: str | bytes) -> None: ...

    def asked(self, client: Client, fields: dict[str, Any], size: int) -> None: ...

    def closed(self, client: Client) -> None: ...

    def join(self, client: Client, group: str) -> None: ...

    def leave(self, client: Client, group: str) -> None: ...

    async def ajoin(self, client: Client, group: str) -> None: ...

    async def identify(self, request: HTTPServerRequest) -> Identity: ...

    async def expect(self, user_key: str) -> None: ...


NO_GROUPS: frozenset[str] = frozenset()


class _Finished:
    """An awaitable that has nothing to wait for."""

    def __await__(self) -> Generator[None, None, None]:
        return
        yield


_FINISHED = _Finished()


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What all clients of a server share."""

    events: Events
    outbox: Outbox
    readers: Readers
    refuse: Callable[[HTTPServerRequest, str | None], str | None]
    """Given a handshake and the host that a proxy says was asked for: why it is refused with 403."""
    proxies: Proxies
    limits: Limits[Client]
    complaints: Complaints
    max_message_size: int
    may_deflate: bool


class Client(WebSocketHandler):
    """One connection: a Tornado ``WebSocketHandler`` whose every method may be called from any thread.

    Beside Tornado's it has ``id``, ``storage`` and ``send``. It differs from Tornado's in what it writes: ``bytes`` go
    as a binary frame, anything that is neither text nor bytes as its JSON, and a client that has gone is no error.
    """

    ws_connection: WebSocketProtocol | None

    def initialize(self, *, parts: Parts) -> None:
        self._parts = parts
        # What each message asks for is at hand.
        self._events = parts.events
        self._outbox = parts.outbox
        self._message_cost = parts.limits.message_cost
        self._message_allowance = parts.limits.message_allowance
        self._spent_until = 0.0
        """Up to when what it has sent uses up its time, in the time of the loop."""
        self.id = new_id()
        self.connected_at = time.time()
        """In seconds since the epoch."""
        self.received = 0
        """Messages that it has sent."""
        self.storage: dict[str, Any] = {}
        self.in_groups = NO_GROUPS
        """The ``groups``; who changes them looks after all that depends on them."""
        self.is_present = False
        """Whether it may join groups: from its handshake until it has gone."""
        self.own_groups = NO_GROUPS
        """The groups that it has joined by itself."""
        self.heard_as: str | None = None
        """The user whose channel is heard for it."""
        self.identity = NOBODY
        self.is_turned_away = False
        self.takes_headers = False
        """Whether ``mease.v1`` was agreed on."""
        self.presence_json = "{}"
        """What it tells of itself in groups with presence."""

    def __repr__(self) -> str:
        return f"<Client {self.id} from {self.request.remote_ip}>"

    # What callbacks call

    @property
    def user(self) -> Any:
        """Whom the authenticators say this is; ``AnonymousUser`` else, ``None`` where the site has no users."""
        return self.identity.user

    @property
    def groups(self) -> frozenset[str]:
        """The groups that it is in: ``join`` and ``leave`` change them."""
        return self.in_groups

    @property
    def session(self) -> Any:
        """Django's session of the handshake's cookie, ``None`` where the site has no sessions."""
        return self.identity.session

    @property
    def presence(self) -> dict[str, Any]:
        """What others are told of it in groups with presence: set it in an opener, or before ``join``.

        It is a dict, of a kilobyte as JSON at most: setting anything else raises ``TypeError`` or ``ValueError``. It is
        taken as it is when it is set, and what is set later counts in groups that are joined later.
        """
        presence: dict[str, Any] = json.loads(self.presence_json)
        return presence

    @presence.setter
    def presence(self, info: dict[str, Any]) -> None:
        self.presence_json = encode_info(info)

    @property
    def user_key(self) -> str | None:
        """The user's primary key as text, ``None`` for nobody."""
        return self.identity.key

    @property
    def person_key(self) -> str:
        """Whom it belongs to in groups with presence: the user's primary key as text; its own id for nobody."""
        # As the user was heard of: one that is deleted has no key any more.
        return self.id if self.heard_as is None else self.heard_as

    @property
    def address(self) -> str:
        """Where it comes from: an IP address; ``0.0.0.0`` for a Unix socket."""
        return self.request.remote_ip or ""

    def join(self, group: str) -> None:
        """Put this client into a group. Raises ``ValueError`` for a name that is not one.

        In a thread it returns when what is published to the group reaches this client; on the loop ``ajoin`` does.
        """
        self._events.join(self, check_group(group))

    async def ajoin(self, group: str) -> None:
        """Do what ``join`` does, in an ``async def``: it is in the group, and hears of it, when this returns."""
        await self._events.ajoin(self, check_group(group))

    def leave(self, group: str) -> None:
        """Take this client out of a group; it is no error where it is in none."""
        self._events.leave(self, check_group(group))

    def write_message(self, message: Any, binary: bool = False) -> Awaitable[None]:  # type: ignore[override]
        """Send ``str`` as text (binary if ``binary``), ``bytes`` as a binary frame, anything else as JSON text.

        Returns a finished awaitable. Writing to a client that has gone is no error. Raises ``TypeError`` or
        ``ValueError`` for what JSON cannot hold.
        """
        connection = self.ws_connection
        if connection is None:
            return _FINISHED
        outbox = self._outbox
        known, known_binary, frame = outbox.framed
        if known is message and known_binary is binary:
            # The loop over all clients: one more of the run that is open. A lock would cost as much as all of this.
            run = outbox.run
            if run.frame is frame and (not outbox.heading or run.author is AUTHOR.get()):
                run.connections.append(connection)
                if outbox.run is not run:
                    outbox.rescue(run)
                return _FINISHED
        outbox.write_message(connection, message, binary)
        return _FINISHED

    send = write_message

    def close(self, code: int | None = None, reason: str | None = None) -> None:
        """Close the connection behind what has been written to it (RFC 6455, section 7.4, lists the codes).

        Raises ``ValueError`` for a code that may not be sent.
        """
        if not isinstance(code, int | None) or not isinstance(reason, str | None):
            raise TypeError(f"close takes a number and a text, not {code!r} and {reason!r}")
        if code is not None and not is_sendable_close_code(code):
            raise ValueError(f"close code {code!r} may not be sent: it should be one of {SENDABLE_CLOSE_CODES}")
        connection = self.ws_connection
        if connection is not None:
            self._outbox.run_on_loop(connection.close, code, reason)

    def ping(self, data: str | bytes = b"") -> None:
        """Send a ping with at most 125 bytes."""
        payload = data.encode() if isinstance(data, str) else bytes(data)
        if len(payload) > 125:
            raise ValueError(f"a ping carries at most 125 bytes, not {len(payload)}")
        connection = self.ws_connection
        if connection is not None:
            self._outbox.run_on_loop(connection.write_ping, payload)

    def set_nodelay(self, value: bool) -> None:
        """Nagle's algorithm is off from the handshake on, and stays so: what waits is joined before it is sent."""

    @property
    def selected_subprotocol(self) -> str | None:
        """What was agreed on in the handshake, ``None`` where nothing was, or the client has gone."""
        connection = self.ws_connection
        return None if connection is None else connection.selected_subprotocol

    # What Tornado and the protocol call

    async def prepare(self) -> None:
        host = self._name_sender()
        if self.request.headers.get("Upgrade", "").lower() != "websocket":
            self.set_header("Upgrade", "websocket")
            self._answer(426, "This is a WebSocket server of django-mease: connect to it with ws:// or wss://.\n")
            return
        refusal = self._parts.refuse(self.request, host)
        if refusal is not None:
            # Behind the first quote stands what the client sent.
            self._turn_away(403, refusal, kind=re.split("['\"]", refusal)[0])
            return
        if self.request.method != "GET" or self.request.headers.get("Sec-WebSocket-Version") != "13":
            return  # Tornado answers it; nothing is read from a database for what is no handshake.
        if self._is_one_too_many(None):
            return  # A flood at a limit shall cost no database anything.
        try:
            async with asyncio.timeout(IDENTIFY_TIMEOUT):
                self.identity = await self._events.identify(self.request)
        except Unauthenticated as error:
            self.set_header("WWW-Authenticate", CHALLENGE)
            self._turn_away(401, said_by(error), kind="unauthenticated")
        except PermissionDenied as error:
            self._turn_away(403, said_by(error) or "this handshake is not allowed", kind="denied")
        except Exception as error:
            self._parts.complaints.say(
                "whose a handshake from %s is could not be read: %s",
                self.request.remote_ip,
                error_repr(error),
                about=self,
                kind="unread",
            )
            self._answer(503, "Whose this is could not be read: try again later.\n")
        else:
            if self.user_key is not None:
                # What is published to the user comes here from the handshake on, and reaches it behind its openers.
                await self._events.expect(self.user_key)
            # The last question, with nothing awaited until the client counts: others may have come meanwhile.
            self._is_one_too_many(self.user_key)

    def _is_one_too_many(self, user_key: str | None) -> bool:
        """Tell whether a limit forbids a handshake, which is answered then."""
        refusal = self._parts.limits.refusal(self.address, user_key)
        if refusal is None:
            return False
        self.set_header("Retry-After", "10")
        self._answer(refusal.status, refusal.reason + "\n")
        return True

    def _name_sender(self) -> str | None:
        """Say in the request whom it comes from, and return the host that a proxy says was asked for."""
        request = self.request
        sender = self._parts.proxies.sender(request.remote_ip or "", request.protocol, request.headers)
        request.remote_ip, request.protocol = sender.address, sender.scheme
        request.host = sender.host or request.host
        return sender.host

    def _turn_away(self, status: int, reason: str, *, kind: str) -> None:
        self._parts.limits.refused["forbidden" if status == 403 else "unauthenticated"] += 1
        self._parts.complaints.say(
            "refused %r from %s: %s", self.request.path, self.request.remote_ip, reason, about=self, kind=kind
        )
        self._answer(status, reason + "\n")

    def _answer(self, status: int, text: str) -> None:
        self.set_status(status)
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        self.finish(text)

    def check_origin(self, origin: str) -> bool:
        return True  # prepare has decided; Tornado asks only where it thinks that it needs to

    def select_subprotocol(self, subprotocols: list[str]) -> str | None:
        # A browser fails the connection where none that it offered is agreed on; a ticket itself is never sent back.
        ours = (HEADED_SUBPROTOCOL, TICKET_SUBPROTOCOL)
        return next((name for name in ours if name in subprotocols), None)

    def get_websocket_protocol(self) -> WebSocketProtocol | None:
        if self.request.headers.get("Sec-WebSocket-Version") != "13":
            return None
        return WebSocketProtocol(
            self,
            outbox=self._outbox,
            readers=self._parts.readers,
            max_message_size=self._parts.max_message_size,
            may_deflate=self._parts.may_deflate,
        )

    def _open(self, *args: str, **kwargs: str) -> None:
        # Asked once: each message of a client that speaks raw frames is spared the question.
        self.takes_headers = self.selected_subprotocol == HEADED_SUBPROTOCOL
        # As it has grown it has room for twice as much, which would be a tenth of all that a connection takes.
        self.__dict__ = {**self.__dict__}
        self._events.opened(self)

    open = _open

    def on_message(self, message: str | bytes) -> None:
        if not self._may_send():
            return
        if self.takes_headers and isinstance(message, str) and message.startswith(MARK):
            self._on_header(message)
        else:
            self.received += 1
            self._events.received(self, message)

    def _on_header(self, text: str) -> None:
        connection = self.ws_connection
        assert connection is not None
        try:
            fields, message = read_header(text)
        except ValueError as error:
            connection.cut_off(1002, str(error))
            return
        if message is not None:
            self.received += 1
            self._events.received(self, message)
        elif fields.get("type") == "ping":
            self.write_header({"type": "pong"})
        else:
            self._events.asked(self, fields, len(text))

    def write_header(self, fields: dict[str, Any]) -> None:
        """Send a header of ``mease.v1``, behind what has been written; nothing to a client that takes none."""
        connection = self.ws_connection
        if connection is not None and self.takes_headers:
            self._outbox.write(connection, header_frame(fields))

    def on_ping(self, data: bytes) -> None:
        self._may_send()  # A ping costs as much as a message, for it is answered; and of pongs there may be no end.

    on_pong = on_ping

    def on_small_fragments(self, count: int) -> None:
        """Count so many fragments that are too small to be sent for their size."""
        while count and self._may_send():
            count -= 1

    def _may_send(self) -> bool:
        """Count one message more, and close who sends too many."""
        connection = self.ws_connection
        if connection is None:
            return False
        sent_from, spent = connection.sent_from, self._spent_until
        self._spent_until = spent = (sent_from if sent_from > spent else spent) + self._message_cost
        if spent - connection.heard_at <= self._message_allowance:
            return True
        self._parts.limits.complain_of_messages(self)
        connection.cut_off(4429, "you send too many messages")
        return False

    def on_close(self) -> None:
        self._events.closed(self)
