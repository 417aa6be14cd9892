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
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard
from urllib.parse import quote, unquote

from django.apps import apps
from django.contrib.auth import get_user_model
from django.core.exceptions import ValidationError
from django.core.serializers.json import DjangoJSONEncoder
from django.db.models import Model, QuerySet

NAME_RULE = "1 to 200 of letters, digits and ._:-/@+"
RESERVED_PREFIX = "mease."
MAGIC = b"\x00mease"
VERSION = b"1"
MAX_TIME = 1e11
"""Seconds since the epoch, more than any clock tells: so many are milliseconds, and no date could be shown for them."""

_is_id = re.compile(rb"[A-Za-z0-9_-]{1,64}").fullmatch
_is_name = re.compile(r"[A-Za-z0-9._:\-/@+]{1,200}", re.ASCII).fullmatch


class _Encoder(DjangoJSONEncoder):
    def default(self, o: Any) -> Any:
        for kind, cure in _CURES.items():
            if isinstance(o, kind):
                raise TypeError(f"Object of type {o.__class__.__name__} is not JSON serializable: {cure}")
        return super().default(o)


_CURES: Mapping[type, str] = {
    Model: "give its primary key, or a dict of what the pages need",
    QuerySet: "give a list of primary keys, or of dicts, such as list(queryset.values('id', 'name'))",
}
_encode_json = _Encoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


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


def is_group(name: object) -> TypeGuard[str]:
    """Tell whether ``check_group`` would take ``name``."""
    return is_valid_name(name) and not str(name).startswith(RESERVED_PREFIX)


def primary_key(user: Any) -> str:
    """Return the primary key of a user, or one that is given itself, as the text by which the servers know it.

    Raises ``ValueError`` for a user without one yet, and for what can be no primary key of the site's users.
    """
    is_user = hasattr(user, "pk")
    key = user.pk if is_user else user
    if key is None or key == "":
        raise ValueError(_nobody(user))
    if is_user and not hasattr(user, "is_authenticated"):
        # Else what is for the author of an order would go to whoever has the order's primary key.
        raise ValueError(f"user <{user.__class__.__name__}: {user}> is no user: name whose it is")
    return str(key if is_user else _of_the_model(key))


def _nobody(user: Any) -> str:
    if user is None or user == "":
        return f"user {user!r} is nobody: it should be a user that is saved, or a primary key"
    if getattr(user, "is_anonymous", False):
        return f"user {user} is nobody: ask request.user.is_authenticated first"
    # The class of what a lazy object, such as request.user, stands for.
    return f"user <{user.__class__.__name__}: {user}> is not saved: it should have a primary key"


def _of_the_model(key: Any) -> Any:
    """Return a primary key as the site's model of users has it, where there is one."""
    if not apps.is_installed("django.contrib.auth"):
        return key
    model = get_user_model()
    try:
        if isinstance(key, (bool, float)):  # Django would make 1 of True.
            raise ValidationError("It is no text and no whole number.")
        return model._meta.pk.to_python(key)
    except (ValidationError, TypeError) as error:
        reason = " ".join(error.messages) if isinstance(error, ValidationError) else error
        raise ValueError(
            f"user {key!r} is no primary key of {model._meta.label} ({reason}): name the user by its primary key, or "
            "give the user itself"
        ) from error


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
