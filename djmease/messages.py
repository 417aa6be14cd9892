"""What is published: the frozen ``Message``, the names it may have, and its form in Redis.

A payload is ``\\0mease1``, the kind of body, an id, a time and ``key=value`` fields, separated by spaces, then a
newline and the raw body. Kinds are ``t`` (text), ``b`` (bytes) and ``j`` (JSON). Any payload that does not begin with
``\\0mease`` is a plain text body: ``redis-cli PUBLISH mease:websocket "Hello world !"`` works, and so does any other
language.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote

from django.core.serializers.json import DjangoJSONEncoder

NAME_RULE = "1 to 200 of letters, digits and ._:-/@+"
RESERVED_PREFIX = "mease."
MAGIC = b"\x00mease"
VERSION = b"1"
MAX_TIME = 1e11
"""Seconds since the epoch, more than any clock tells: so many are milliseconds, and no date could be shown for them."""

_is_id = re.compile(rb"[A-Za-z0-9_-]{1,64}").fullmatch
_is_name = re.compile(r"[A-Za-z0-9._:\-/@+]{1,200}", re.ASCII).fullmatch
_encode_json = DjangoJSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One publication."""

    routing: str
    body: Any
    """What senders get: ``str``, ``bytes``, or what the JSON parsed to."""
    id: str
    """Sixteen hexadecimal digits."""
    published_at: float
    """Seconds since the epoch, by the clock of the publisher."""
    size: int
    """Bytes of the encoded body."""
    groups: tuple[str, ...] | None = None
    """The groups it is for; ``None`` is everybody."""
    users: tuple[str, ...] | None = None
    """The primary keys, as text, of the users it is for; ``None`` is everybody."""
    trace: str | None = None
    """Where each server tells what became of the message, if somebody wants to know: a token for ``reporting``."""


def is_valid_name(name: object) -> bool:
    """Tell whether ``name`` can be a routing or a group."""
    return isinstance(name, str) and _is_name(name) is not None


def check_routing(routing: object) -> None:
    """Raise ``ValueError`` that names the rule unless ``routing`` can be published on."""
    if not is_valid_name(routing):
        raise ValueError(f"routing {routing!r} is not a valid name: a routing has {NAME_RULE}")
    if str(routing).startswith(RESERVED_PREFIX):
        raise ValueError(f"routing {routing!r} begins with {RESERVED_PREFIX!r}, which is reserved for djmease itself")


def check_group(name: object) -> str:
    """Return ``name``, or raise ``ValueError`` that names the rule unless it can be a group."""
    if not is_valid_name(name):
        raise ValueError(f"group {name!r} is not a valid name: a group has {NAME_RULE}")
    if str(name).startswith(RESERVED_PREFIX):
        raise ValueError(f"group {name!r} begins with {RESERVED_PREFIX!r}, which is reserved for djmease itself")
    return str(name)


def primary_key(user: Any) -> str:
    """Return the primary key, as text, of a user or of itself, or raise ``ValueError`` where there is none yet."""
    key = user.pk if hasattr(user, "pk") else user
    if key is None or key == "":
        raise ValueError(f"user {user!r} is nobody, or not saved: it should have a primary key")
    return str(key)


def told_back(said: Any) -> str | None:
    """Return a text of a client's as one that can be sent to it; ``None`` for what is no text.

    JSON can spell half of a surrogate pair, which UTF-8 cannot encode (RFC 8259, section 8.2).
    """
    return said.encode(errors="replace").decode() if isinstance(said, str) else None


def to_json(value: Any) -> str:
    """Encode as compact JSON, with Django's dates, decimals and UUIDs, and without NaN (RFC 8259, section 6)."""
    return _encode_json(value)


def new_id() -> str:
    """Return sixteen random hexadecimal digits."""
    return os.urandom(8).hex()


def encode_body(message: Any) -> tuple[bytes, bytes]:
    """Return the kind of body and its raw bytes.

    Raises ``TypeError`` for what JSON cannot hold, and ``ValueError`` for NaN, for a circular structure, and for text
    that UTF-8 cannot encode.
    """
    if isinstance(message, str):
        return b"t", message.encode()
    if isinstance(message, (bytes, bytearray, memoryview)):
        return b"b", bytes(message)
    return b"j", to_json(message).encode()


def encode(
    *,
    kind: bytes,
    body: bytes,
    message_id: str,
    published_at: float,
    groups: Iterable[str] | None = None,
    users: Iterable[str] | None = None,
    trace: str | None = None,
    routing: str | None = None,
) -> bytes:
    """Return the payload for Redis; the ``routing`` is in it where the channel does not say it."""
    fields = b"" if routing is None else b" routing=%b" % routing.encode()
    if groups is not None:
        fields += b" group=%b" % ",".join(groups).encode()
    if users is not None:
        # A primary key may be any text.
        fields += b" user=%b" % ",".join(quote(user, safe="") for user in users).encode()
    if trace is not None:
        fields += b" trace=%b" % trace.encode()
    return b"\x00mease1 %b %b %.6f%b\n%b" % (kind, message_id.encode(), published_at, fields, body)


def decode(routing: str | None, payload: bytes) -> Message:
    """Return the message that a payload holds, or raise ``ValueError`` with the reason for which it is refused.

    Without a ``routing`` the payload must say it, as it does on the channels of groups and users.
    """
    if not payload.startswith(MAGIC):
        if routing is None:
            raise ValueError("a channel of a group or user takes envelopes only, which name the routing")
        return _plain_text(_checked(routing), payload)
    header, newline, body = payload.partition(b"\n")
    version, *fields = header[len(MAGIC) :].split(b" ")
    if version != VERSION:
        raise ValueError(f"envelope of version {version[:20]!r}, and this server reads version {VERSION!r}")
    if not newline or len(fields) < 3:
        raise ValueError("the envelope is cut short")
    kind, message_id, published_at = fields[:3]
    if not _is_id(message_id):
        raise ValueError(f"{message_id[:20]!r} is not an id")
    more = _decode_fields(fields[3:]) if len(fields) > 3 else {}
    said = more.pop("routing", None)
    return Message(
        routing=_checked(said if routing is None else routing),
        body=_decode_body(kind, body),
        id=message_id.decode(),
        published_at=_time(published_at),
        size=len(body),
        **more,
    )


def _time(text: bytes) -> float:
    seconds = float(text)
    if not 0 <= seconds < MAX_TIME:  # No NaN is within bounds either.
        raise ValueError(f"{text[:20]!r} is not a time in seconds since the epoch")
    return seconds


def _checked(routing: str | None) -> str:
    if not is_valid_name(routing):
        raise ValueError(f"the routing is not a valid name: it should have {NAME_RULE}")
    return str(routing)


def _decode_fields(fields: list[bytes]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for field in fields:
        key, _, value = field.decode().partition("=")
        if key == "group":
            found["groups"] = tuple(value.split(","))
        elif key == "user":
            found["users"] = tuple(unquote(user) for user in value.split(","))
        elif key in ("trace", "routing"):
            found[key] = value
    return found


def user_channel(prefix: str, key: str) -> str:
    """Return the name of the channel of a user's primary key, which may be any text."""
    return prefix + quote(key, safe="")


def _decode_body(kind: bytes, body: bytes) -> Any:
    if kind == b"j":
        return _decode_json(body)
    if kind == b"t":
        return body.decode()
    if kind == b"b":
        return body
    raise ValueError(f"unknown kind of body {kind[:20]!r}")


def _decode_json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except RecursionError:
        raise ValueError("JSON that is nested too deeply") from None


def _plain_text(routing: str, payload: bytes) -> Message:
    try:
        text = payload.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"neither an envelope nor text in UTF-8: {error.reason} at byte {error.start}") from None
    return Message(routing=routing, body=text, id=new_id(), published_at=time.time(), size=len(payload))
