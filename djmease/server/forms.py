"""The forms in which one message goes out: as it is, compressed (RFC 7692), and for ``mease.v1`` with a header.

A message of the subprotocol ``mease.v1`` that begins with U+001E has a header: a JSON object up to the first newline,
and the message itself behind that. One that happens to begin so is given an empty header.
"""

from __future__ import annotations

import json
from typing import Any

from djmease.messages import to_json
from djmease.server.deflate import deflated
from djmease.server.protocol import TEXT, build_frame

MARK = "\x1e"
MAX_HEADER = 4096
"""Characters of a client's header."""
_MARK = 0x1E
_EMPTY_HEADER = b"\x1e{}\n"

Forms = tuple[bytes, bytes, bytes, bytes]
"""One frame by what a connection takes: 0, ``DEFLATED``, ``HEADED`` or their sum."""


def header_of(fields: dict[str, Any]) -> bytes:
    """Return the header that goes before a message."""
    return f"{MARK}{to_json(fields)}\n".encode()


def header_frame(fields: dict[str, Any]) -> bytes:
    """Return the frame of a header with no message behind it."""
    return build_frame(TEXT, f"{MARK}{to_json(fields)}".encode())


def read_header(text: str) -> tuple[dict[str, Any], str | None]:
    """Return the header of a text that begins with ``MARK``, and the message behind it, if any.

    Raises ``ValueError`` where it is no JSON object, or too long.
    """
    header, newline, message = text[1:].partition("\n")
    if len(header) > MAX_HEADER:
        raise ValueError(f"a header has {len(header)} characters, more than {MAX_HEADER}")
    try:
        fields = json.loads(header)
    except (ValueError, RecursionError):
        raise ValueError("a header is not JSON") from None
    if not isinstance(fields, dict):
        raise ValueError("a header is not a JSON object")
    return fields, message if newline else None


def forms_of(frame: bytes, header: bytes | None, *, deflating: int, heading: int) -> Forms | None:
    """Return the forms of a data frame, of those that somebody takes; ``None`` where all are the frame itself."""
    headed = _headed(frame, header) if heading else frame
    if headed is frame and not deflating:
        return None
    small = (deflated(frame) or frame) if deflating else frame
    if headed is frame:
        return frame, small, frame, small
    return frame, small, headed, (deflated(headed) or headed) if deflating else headed


def _headed(frame: bytes, header: bytes | None) -> bytes:
    start = 2 if frame[1] < 126 else 4 if frame[1] == 126 else 10
    if header is None:
        if len(frame) == start or frame[start] != _MARK:
            return frame
        header = _EMPTY_HEADER
    return build_frame(frame[0] & 0x0F, header + frame[start:])
