"""permessage-deflate without any context that would be kept (RFC 7692): negotiated, compressed and inflated."""

from __future__ import annotations

import re
import struct
import zlib

SMALLEST = 256
"""Bytes of a message below which compressing costs more than it saves."""
LEVEL = 6
TAIL = b"\x00\x00\xff\xff"
"""What ends each compressed message, and is not sent (section 7.2.1)."""
MAX_STREAMS = 16
"""Streams in one compressed message: a block may be marked as the last one, and others follow (section 7.2.3.4)."""
_RSV1 = 0x40
_NAME = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_PARAMETER = re.compile(rf'\s*({_NAME})\s*(?:=\s*(?:({_NAME})|"({_NAME})")\s*)?')
_FLAGS = ("server_no_context_takeover", "client_no_context_takeover")
_BITS = re.compile("[89]|1[0-5]")


class InflateError(ValueError):
    """What came compressed cannot be inflated."""


class TooLongError(ValueError):
    """What came compressed is longer than it may be."""


def negotiate(offers: str) -> str | None:
    """Return the answer to a ``Sec-WebSocket-Extensions`` header, or ``None`` where no offer is accepted.

    The answer promises that the server keeps no context between messages, and asks the same of the client
    (section 7.1). An offer with a parameter that is unknown, repeated or out of bounds, or that asks the server for a
    smaller window, is declined: all clients that take compression take the same frames.
    """
    for offer in offers.split(","):
        name, _, rest = offer.partition(";")
        if name.strip().lower() == "permessage-deflate":
            parameters = _parameters(rest)
            if parameters is not None and _is_accepted(parameters):
                bits = "; server_max_window_bits=15" if "server_max_window_bits" in parameters else ""
                return f"permessage-deflate; server_no_context_takeover; client_no_context_takeover{bits}"
    return None


def _parameters(text: str) -> dict[str, str | None] | None:
    parameters: dict[str, str | None] = {}
    for part in text.split(";") if text.strip() else []:
        match = _PARAMETER.fullmatch(part)
        if match is None or match[1] in parameters:
            return None
        parameters[match[1]] = match[2] or match[3]
    return parameters


def _is_accepted(parameters: dict[str, str | None]) -> bool:
    for name, value in parameters.items():
        if name in _FLAGS:
            is_right = value is None
        elif name == "client_max_window_bits":
            is_right = value is None or _BITS.fullmatch(value) is not None
        else:
            is_right = name == "server_max_window_bits" and value == "15"
        if not is_right:
            return False
    return True


def deflated(frame: bytes) -> bytes | None:
    """Return the compressed form of a whole, unmasked data frame, or ``None`` where it would not be shorter."""
    start = 2 if frame[1] < 126 else 4 if frame[1] == 126 else 10
    if len(frame) - start < SMALLEST:
        return None
    compressor = zlib.compressobj(LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
    payload = compressor.compress(frame[start:]) + compressor.flush(zlib.Z_SYNC_FLUSH)
    payload = payload[: -len(TAIL)]
    size = len(payload)
    if size >= len(frame) - start:
        return None
    first = frame[0] | _RSV1
    if size < 126:
        return bytes((first, size)) + payload
    if size < 65536:
        return struct.pack("!BBH", first, 126, size) + payload
    return struct.pack("!BBQ", first, 127, size) + payload


def inflated(payload: bytes, limit: int) -> bytes:
    """Return a compressed message as it was. No more than ``limit`` bytes of it, and one more, are ever made.

    Raises ``TooLongError`` where it is longer, and ``InflateError`` where it is not DEFLATE (RFC 1951).
    """
    message, rest = b"", payload + TAIL
    for _ in range(MAX_STREAMS):
        decompressor = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            message += decompressor.decompress(rest, limit + 1 - len(message))
        except zlib.error as error:
            raise InflateError(str(error)) from None
        if len(message) > limit:
            raise TooLongError(f"a message may have {limit} bytes")
        rest = decompressor.unused_data
        if not decompressor.eof or not rest:
            return message
    raise InflateError(f"more than {MAX_STREAMS} streams in one message")
