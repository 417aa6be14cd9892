"""RFC 6455 on the socket: frames parsed and built, the closing handshake, and the hand-over from Tornado.

Tornado does HTTP and everything up to the 101; then the socket is ours. This is the one place that knows Tornado's
internals.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import codecs
import fcntl
import logging
import socket
import struct
import sys
import termios
from contextlib import suppress
from typing import Any, Final, Protocol

from tornado.iostream import IOStream
from tornado.util import _websocket_mask as unmask
from tornado.websocket import WebSocketHandler
from tornado.websocket import WebSocketProtocol as TornadoWebSocketProtocol
from tornado.websocket import WebSocketProtocol13 as TornadoWebSocketProtocol13

from djmease.server.complaints import fields_of
from djmease.server.deflate import InflateError, TooLongError, inflated, negotiate
from djmease.server.tls import TLSSocket

logger = logging.getLogger("djmease.server")

CONTINUATION: Final = 0x0
TEXT: Final = 0x1
BINARY: Final = 0x2
CLOSE: Final = 0x8
PING: Final = 0x9
PONG: Final = 0xA

READ_SIZE = 65536
CATCHING_UP = 1.0
"""Seconds after a pause in which what is read may have been sent during the pause."""
SMALL_FRAGMENT = 1024
"""Bytes below which a fragment counts as a message: there are no end of them in one."""
CLOSE_TIMEOUT = 5.0
"""Seconds that the other side has for its part of the closing handshake."""


def build_frame(opcode: int, payload: bytes) -> bytes:
    """Return one final, unmasked frame, as a server sends it (RFC 6455, section 5.2)."""
    size = len(payload)
    if size < 126:
        return bytes((0x80 | opcode, size)) + payload
    if size < 65536:
        return struct.pack("!BBH", 0x80 | opcode, 126, size) + payload
    return struct.pack("!BBQ", 0x80 | opcode, 127, size) + payload


def build_close(code: int | None, reason: str | None) -> bytes:
    """Return a close frame; a reason without a code goes with 1000, and is cut to the 123 bytes that fit."""
    if code is None and not reason:
        return build_frame(CLOSE, b"")
    text = (reason or "").encode(errors="replace")[:123].decode(errors="ignore")
    return build_frame(CLOSE, struct.pack("!H", 1000 if code is None else code) + text.encode())


DEFLATED, HEADED = 1, 2
"""Forms of messages: compressed (RFC 7692), and with the headers of the subprotocol that follows."""
HEADED_SUBPROTOCOL = "mease.v1"

SENDABLE_CLOSE_CODES = "1000 to 1003, 1007 to 1014, or 3000 to 4999"


def is_sendable_close_code(code: int) -> bool:
    """Tell whether a close frame may carry this code (RFC 6455, section 7.4, and the registry of section 11.7)."""
    return 1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999


class ProtocolError(Exception):
    """What the client sent breaks RFC 6455 or a limit; the connection is closed with this code and reason."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason


Event = tuple[int, Any]
"""An opcode with what came: ``str`` for TEXT, ``bytes`` for BINARY, PING and PONG, ``(code, reason)`` for CLOSE."""


_WHOLE_TEXT = 0x80 | TEXT


class Parser:
    """From the bytes of a client to messages and control frames; it knows no I/O."""

    __slots__ = (
        "_buffer",
        "_decoder",
        "_fragments",
        "_is_deflated",
        "_max_size",
        "_needed",
        "_opcode",
        "error",
        "small_fragments",
        "takes_deflated",
    )

    def __init__(self, max_size: int) -> None:
        self._max_size = max_size
        self._buffer: bytes | bytearray = b""
        self._needed = 0
        self._opcode = CONTINUATION
        self._fragments: bytearray | None = None
        self._decoder: codecs.IncrementalDecoder | None = None
        self._is_deflated = False
        """Whether the message whose fragments come is compressed."""
        self.takes_deflated = False
        """Whether permessage-deflate was agreed on (RFC 7692)."""
        self.small_fragments = 0
        """Fragments that were shorter than ``SMALL_FRAGMENT`` and completed nothing, until somebody counts them."""
        self.error: ProtocolError | None = None
        """Set once the client has broken the protocol; nothing is parsed after that."""

    def feed(self, data: bytes) -> list[Event]:
        """Return what ``data`` completes, in order; what came before an error is returned and ``error`` is set."""
        events: list[Event] = []
        if self.error is not None:
            return events
        if self._buffer:
            # A bytearray that grows keeps a long message that comes in small pieces linear.
            self._buffer += data
            if len(self._buffer) < self._needed:
                return events
            data = bytes(self._buffer)
        try:
            position = self._parse(data, events)
        except ProtocolError as error:
            self.error = error
            position = len(data)
        rest = data[position:]
        self._buffer = bytearray(rest) if rest else b""
        return events

    def _parse(self, data: bytes, events: list[Event]) -> int:
        """Append the events of all complete frames, and return where the incomplete rest begins."""
        position, end = 0, len(data)
        while end - position >= 2:
            first, second = data[position], data[position + 1]
            length = second & 0x7F
            start = position + 2
            if length > 125:
                width = 2 if length == 126 else 8
                if end - start < width:
                    self._needed = start - position + width
                    return position
                length = int.from_bytes(data[start : start + width])
                start += width
            is_plain = first == _WHOLE_TEXT and second & 0x80 and length <= self._max_size and self._fragments is None
            if not is_plain:
                self._check_header(first, second, length)
            payload_start = start + 4
            payload_end = payload_start + length
            if payload_end > end:
                self._needed = payload_end - position
                return position
            payload = unmask(data[start:payload_start], data[payload_start:payload_end])
            position = payload_end
            if is_plain:
                # What nearly every frame is, without a call for each question.
                events.append((TEXT, _decode(payload)))
            else:
                self._take(first, payload, events)
        self._needed = 2
        return position

    def _check_header(self, first: int, second: int, length: int) -> None:
        opcode = first & 0x0F
        if first & 0x70:
            # RSV1 marks the first frame of a compressed message (RFC 7692, section 6).
            if first & 0x30 or not self.takes_deflated or opcode not in (TEXT, BINARY):
                raise ProtocolError(1002, "a reserved bit is set")
            self._is_deflated = True
        elif opcode in (TEXT, BINARY):
            self._is_deflated = False
        if not second & 0x80:
            raise ProtocolError(1002, "a client's frames must be masked")
        if opcode >= CLOSE:
            if opcode > PONG:
                raise ProtocolError(1002, f"unknown opcode {opcode}")
            if not first & 0x80 or length > 125:
                raise ProtocolError(1002, "a control frame is fragmented or longer than 125 bytes")
            return
        if opcode > BINARY:
            raise ProtocolError(1002, f"unknown opcode {opcode}")
        if (opcode == CONTINUATION) != (self._fragments is not None):
            raise ProtocolError(1002, "a fragment is out of place")
        if length >> 63:
            raise ProtocolError(1002, "a length has its highest bit set")
        # What cannot be compressed may be a little longer for it.
        limit = self._max_size + (self._max_size // 1000 + 64 if self._is_deflated else 0)
        if length + len(self._fragments or b"") > limit:
            raise ProtocolError(1009, f"a message may have {self._max_size} bytes")

    def _take(self, first: int, payload: bytes, events: list[Event]) -> None:
        opcode, final = first & 0x0F, first & 0x80
        if opcode >= CLOSE:
            events.append((opcode, _parse_close(payload) if opcode == CLOSE else payload))
        elif final and opcode != CONTINUATION:
            whole = self._inflated(payload) if self._is_deflated else payload
            events.append((opcode, _decode(whole) if opcode == TEXT else whole))
        else:
            self._take_fragment(opcode, payload, bool(final), events)

    def _take_fragment(self, opcode: int, payload: bytes, final: bool, events: list[Event]) -> None:
        if self._fragments is None:
            self._opcode, self._fragments = opcode, bytearray()
            is_checked = opcode == TEXT and not self._is_deflated
            self._decoder = codecs.getincrementaldecoder("utf-8")() if is_checked else None
        self._fragments += payload
        self.small_fragments += not final and len(payload) < SMALL_FRAGMENT
        if self._decoder is not None:
            # Text is checked as it comes, so that what is broken is refused before the rest of it has been sent.
            _decode(payload, self._decoder, final)
        if final:
            whole = bytes(self._fragments)
            self._fragments = self._decoder = None
            if self._is_deflated:
                whole = self._inflated(whole)
            events.append((self._opcode, _decode(whole) if self._opcode == TEXT else whole))

    def _inflated(self, payload: bytes) -> bytes:
        try:
            return inflated(payload, self._max_size)
        except TooLongError as error:
            raise ProtocolError(1009, str(error)) from None
        except InflateError:
            raise ProtocolError(1007, "compressed data that cannot be inflated") from None


def _decode(payload: bytes, decoder: codecs.IncrementalDecoder | None = None, final: bool = True) -> str:
    try:
        return payload.decode() if decoder is None else decoder.decode(payload, final)
    except UnicodeDecodeError:
        raise ProtocolError(1007, "text that is not UTF-8") from None


def _parse_close(payload: bytes) -> tuple[int | None, str]:
    if not payload:
        return None, ""
    if len(payload) == 1:
        raise ProtocolError(1002, "a close frame with half a code")
    code = int.from_bytes(payload[:2])
    if not is_sendable_close_code(code):
        raise ProtocolError(1002, f"a close frame with the code {code}")
    return code, _decode(payload[2:])


class Outbox(Protocol):
    """What the protocol needs of ``server/outbox.py``."""

    def count_form(self, form: int, difference: int) -> None: ...

    def enqueue(self, connection: Any, frame: bytes) -> None: ...

    def hand_on(self) -> None: ...

    @property
    def behind(self) -> set[Any]: ...


class Readers(Protocol):
    """What the protocol needs of ``server/readers.py``."""

    bytes_in: int

    def add(self, sock: socket.socket, connection: Any) -> None: ...

    def remove(self, sock: socket.socket) -> None: ...


class WebSocketProtocol(TornadoWebSocketProtocol):
    """One connection after the handshake: its socket, its parser, and what the kernel has not taken yet.

    It ends once, whatever ends it, and says so to its handler (``on_ws_connection_close``). The socket itself may stay
    a little longer, for the close frame to be read: a socket that is closed with unread input resets the connection,
    and the reason would be lost with it.
    """

    def __init__(
        self,
        handler: WebSocketHandler,
        *,
        outbox: Outbox,
        readers: Readers,
        max_message_size: int,
        may_deflate: bool = False,
    ) -> None:
        super().__init__(handler)
        self._may_deflate = may_deflate
        self.takes = 0
        """The form of the messages that it is sent: 0, ``DEFLATED``, ``HEADED``, or their sum."""
        self._outbox = outbox
        self._readers = readers
        self._parser = Parser(max_message_size)
        self._socket: socket.socket | None = None
        self._loop: asyncio.AbstractEventLoop
        self._is_reading = False
        self._subprotocol: str | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._close_received = False
        self._ended = False
        self.closing = True
        """Whether nothing that is written now would be sent: a close frame was, or there is no socket."""
        self.waiting: list[bytes] = []
        """The frames of this tick, which the outbox joins into one ``send``."""
        self.backlog: bytes | bytearray = b""
        """What the kernel did not take of earlier flushes."""
        self.sent = 0
        """Bytes that the kernel has taken in all."""
        self.progressed_at = 0.0
        """When the kernel last took something of the backlog, in the time of the loop."""
        self.heard_at = 0.0
        """When anything came last, in the time of the loop: a sign of life."""
        self.sent_from = 0.0
        """When what came last was sent at the earliest: while it was not read the client may have gone on sending."""
        self._resumed_at = 0.0

    # The handshake and the hand-over

    async def accept_connection(self, handler: WebSocketHandler) -> None:
        """Answer the handshake with 101, or with 400 where a header is not as RFC 6455, section 4.2.1, wants it."""
        key = handler.request.headers.get("Sec-WebSocket-Key", "")
        if (
            handler.request.version == "HTTP/1.0"
            or not handler.request.headers.get("Host")
            or not _is_handshake_key(key)
        ):
            handler.set_status(400)
            handler.finish("A handshake is HTTP/1.1, with a Host and a valid Sec-WebSocket-Key.\n")
            return
        self._subprotocol = _select_subprotocol(handler)
        handler.clear_header("Content-Type")
        handler.set_status(101)
        handler.set_header("Upgrade", "websocket")
        handler.set_header("Connection", "Upgrade")
        handler.set_header("Sec-WebSocket-Accept", TornadoWebSocketProtocol13.compute_accept_value(key))
        if self._subprotocol:
            handler.set_header("Sec-WebSocket-Protocol", self._subprotocol)
        extension = self._may_deflate and negotiate(handler.request.headers.get("Sec-WebSocket-Extensions", ""))
        if extension:
            handler.set_header("Sec-WebSocket-Extensions", extension)
        handler.finish()
        early = self._take_over(handler.detach())
        # The stream and what parsed HTTP have done their work, and cost more than all the rest of an idle connection.
        handler.request.connection = None
        handler.request.server_connection = None
        if self._socket is not None:
            if self._subprotocol == HEADED_SUBPROTOCOL:
                self._take(HEADED)
            if extension:
                self._parser.takes_deflated = True
                self._take(DEFLATED)
            handler.open()
            self._feed(early)

    def _take(self, form: int) -> None:
        self._outbox.count_form(form, 1)
        self.takes |= form

    def _take_over(self, stream: IOStream) -> bytes:
        """Take the socket from Tornado's stream, and return what the client sent behind its handshake.

        The stream is left as if it were closed, so that nothing that still holds it can touch the socket's number.
        """
        if stream.closed():
            return b""
        sock, early = stream.socket, bytes(stream._read_buffer[: stream._read_buffer_size])
        unsent = bytes(stream._write_buffer.peek(len(stream._write_buffer))) if stream.writing() else b""
        if isinstance(sock, TLSSocket) and sock.pending():
            # Tornado may have read a part of a record; the kernel does not tell of the rest.
            early += sock.recv()
        if stream._state is not None:
            stream.io_loop.remove_handler(sock)
            stream._state = None
        stream.socket = None  # type: ignore[assignment]
        stream._closed = True
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            with suppress(OSError):  # Some systems refuse it for a connection that is gone, which shows soon enough.
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = sock
        self._loop = asyncio.get_running_loop()
        self.closing = False
        self.sent_from = self._loop.time()
        self.resume_reading()
        if unsent:
            self._keep(unsent)
        return early

    # Reading

    def pause_reading(self) -> None:
        """Leave what the client sends in the kernel, which makes it wait; one that is closing is read to its end."""
        if self._is_reading and not self.closing and self._socket is not None:
            self._is_reading = False
            self._readers.remove(self._socket)
            now = self._loop.time()
            if now > self._resumed_at + CATCHING_UP:
                self.sent_from = now

    def resume_reading(self) -> None:
        """Read again."""
        if not self._is_reading and self._socket is not None:
            self._is_reading = True
            # What it has said meanwhile is still in the kernel.
            self.heard_at = self._loop.time()
            self._resumed_at = self.heard_at
            self._readers.add(self._socket, self)

    @property
    def is_reading(self) -> bool:
        return self._is_reading

    def on_readable(self) -> None:
        """Take what the client has sent."""
        if self._socket is None:
            return
        try:
            data = self._socket.recv(READ_SIZE)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if data:
            self.heard_at = now = self._loop.time()
            if now > self._resumed_at + CATCHING_UP:
                self.sent_from = now
            self._readers.bytes_in += len(data)
            self._feed(data)
        else:
            self._disconnect()

    def _feed(self, data: bytes) -> None:
        if self._ended or not data:
            return
        for opcode, content in self._parser.feed(data):
            self._on_event(opcode, content)
        if self._parser.small_fragments and not self.closing:
            handler: Any = self.handler
            handler.on_small_fragments(self._parser.small_fragments)
            self._parser.small_fragments = 0
        error = self._parser.error
        if error is not None and not self._ended:
            self._fail(error.code, error.reason)

    def _on_event(self, opcode: int, content: Any) -> None:
        if self._ended:
            return
        if opcode == CLOSE:
            self._on_close_frame(*content)
        elif opcode == PING:
            if not self.closing:
                self._outbox.enqueue(self, build_frame(PONG, content))
            self.handler.on_ping(content)
        elif opcode == PONG:
            self.handler.on_pong(content)
        elif not self.closing:
            self.handler.on_message(content)

    # Writing

    def transmit(self, data: bytes) -> None:
        """Give ``data`` to the kernel, and keep what it does not take until it can."""
        sock = self._socket
        if sock is None:
            return
        if self.backlog:
            self.backlog += data
            return
        try:
            count = sock.send(data)
        except (BlockingIOError, InterruptedError):
            count = 0
        except OSError:
            self._disconnect()
            return
        self.sent += count
        if count < len(data):
            self._keep(data[count:])
        elif self.closing:
            self._after_close_frame()

    def _send(self, data: bytes | bytearray) -> int:
        """Return how many bytes the kernel took; the connection is gone where it refuses."""
        assert self._socket is not None
        try:
            count = self._socket.send(data)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError:
            self._disconnect()
            return 0
        self.sent += count
        return count

    def _keep(self, data: bytes) -> None:
        assert self._socket is not None
        self.backlog = bytearray(data)
        self.progressed_at = self._loop.time()
        self._loop.add_writer(self._socket, self._on_writable)
        self._outbox.behind.add(self)

    def push(self) -> None:
        """Give the kernel what it takes of the backlog now; the loop may have been too busy to ask."""
        if self.backlog:
            self._on_writable()

    def _on_writable(self) -> None:
        if self._socket is None:
            return
        backlog = self.backlog
        assert isinstance(backlog, bytearray)
        count = self._send(backlog)
        if count:
            del backlog[:count]
            self.progressed_at = self._loop.time()
        if not backlog and self._socket is not None:
            self.backlog = b""
            self._outbox.behind.discard(self)
            self._loop.remove_writer(self._socket)
            if self.closing and not self.waiting:
                self._after_close_frame()

    def undelivered(self) -> int:
        """Return how many bytes wait here and in the kernel until the client's side acknowledges them."""
        return sum(map(len, self.waiting)) + len(self.backlog) + self._queued()

    def delivered(self) -> int:
        """Return how many bytes the client's side has acknowledged in all; with TLS, of those that were ciphered."""
        if isinstance(self._socket, TLSSocket):
            # What is sent is less than what is queued for it, so that their difference may fall while more arrives.
            acknowledged = self._socket.acknowledged()
            if acknowledged is not None:
                return acknowledged
        return self.sent - self._queued()

    def _queued(self) -> int:
        """Return how many bytes the kernel holds for the client; 0 where the system does not tell (man 7 tcp)."""
        if self._socket is None:
            return 0
        try:
            return int.from_bytes(fcntl.ioctl(self._socket, termios.TIOCOUTQ, bytes(4)), sys.byteorder)
        except OSError:
            return 0

    # The end

    def close(self, code: int | None = None, reason: str | None = None) -> None:
        """Begin the closing handshake behind everything that has been written; on the loop only."""
        if not self.closing:
            self._send_close(code, reason)

    def cut_off(self, code: int, reason: str) -> None:
        """End the connection for the server, its close frame behind what the client has still to read."""
        if not self._ended:
            self._fail(code, reason)

    def abort(self) -> None:
        """End the connection at once, without a close frame: nobody is there."""
        self._disconnect()

    def _on_close_frame(self, code: int | None, reason: str) -> None:
        self._close_received = True
        if not self.closing:
            self._send_close(code, None)
        self._finish(code, reason)

    def _fail(self, code: int, reason: str) -> None:
        if not self.closing:
            self._send_close(code, reason)
        self._finish(code, reason)

    def _finish(self, code: int | None, reason: str) -> None:
        """End, and go on to the socket at once where the close frame has left already."""
        self._end(code, reason)
        if not self.waiting and not self.backlog:
            self._after_close_frame()

    def _send_close(self, code: int | None, reason: str | None) -> None:
        self._outbox.hand_on()  # What has been written before it goes before it.
        if self.closing:
            return  # That was a close too.
        self._outbox.enqueue(self, build_close(code, reason))
        self.closing = True
        # The client's answer has to be heard; what comes before it is dropped.
        self.resume_reading()
        self._timer = self._loop.call_later(CLOSE_TIMEOUT, self._disconnect)

    def _after_close_frame(self) -> None:
        """Go on with the end of the connection, now that the kernel has the close frame."""
        if self._close_received:
            self._disconnect()
        elif self._ended:
            self._shut_down_writing()

    def _shut_down_writing(self) -> None:
        assert self._socket is not None
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            self._disconnect()

    def _end(self, code: int | None, reason: str | None) -> None:
        """Tell the handler, once, that this connection is over."""
        if self._ended:
            return
        self._ended = True
        try:
            self.handler.on_ws_connection_close(code, reason or None)
        except Exception:
            # Others are in the middle of their own reading and writing, which this must not end.
            extra = fields_of(self.handler)
            logger.exception("client %s: its end could not be told", getattr(self.handler, "id", "?"), extra=extra)

    def _disconnect(self) -> None:
        """Give up the socket: the only place that closes it, its reader, its writer and its timer before."""
        sock, self._socket = self._socket, None
        if sock is None:
            return
        self._readers.remove(sock)
        self._loop.remove_writer(sock)
        self._outbox.behind.discard(self)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        sock.close()
        self._outbox.count_form(self.takes, -1)
        self.closing = True
        self._is_reading = False
        self.waiting.clear()
        self.backlog = b""
        self._end(None, None)
        # Whoever still has this connection in a queue shall not keep the client with it.
        self.handler = None  # type: ignore[assignment]

    def is_closing(self) -> bool:
        return self.closing

    @property
    def selected_subprotocol(self) -> str | None:
        return self._subprotocol

    # What Tornado's handler may still call, or its base class would reach for a stream that is not there

    def write_message(self, message: Any, binary: bool = False) -> Any:
        raise NotImplementedError("djmease.server.client.Client writes its messages itself")

    def write_ping(self, data: bytes) -> None:
        if not self.closing:
            self._outbox.enqueue(self, build_frame(PING, data))

    def set_nodelay(self, x: bool) -> None:
        """Nagle's algorithm is off from the hand-over on."""

    def on_connection_close(self) -> None:
        # The handler calls this from within _end, where the close frame is still on its way.
        if not self._ended:
            self._disconnect()

    def _abort(self) -> None:
        self._disconnect()

    def start_pinging(self) -> None:
        """The server pings all clients with one timer."""

    async def _receive_frame_loop(self) -> None:
        """The socket is read from a callback of the loop, without a task."""

    def _process_server_headers(self, key: Any, headers: Any) -> None:
        raise NotImplementedError("this is the server's side")


def _is_handshake_key(key: str) -> bool:
    try:
        return len(base64.b64decode(key, validate=True)) == 16
    except (binascii.Error, ValueError):
        return False


def _select_subprotocol(handler: WebSocketHandler) -> str | None:
    offered = [name.strip() for name in handler.request.headers.get("Sec-WebSocket-Protocol", "").split(",")]
    return handler.select_subprotocol([name for name in offered if name])
