"""Read what a page sent. Anybody can connect, so anything can come."""

from __future__ import annotations

from collections.abc import Mapping

from django.contrib.auth import get_user_model
from django.contrib.auth.models import AbstractBaseUser

from chat.models import TEXT_LENGTH, WHO_LENGTH

MAX_ID = 2**63 - 1


class FrameError(Exception):
    """A message that is not taken. Its text says why, to whoever sent it."""


def read_name(value: object) -> str:
    return clean("name", value, WHO_LENGTH)


def read_text(message: Mapping[str, object]) -> str:
    return clean("message", message.get("text"), TEXT_LENGTH)


def read_after(message: Mapping[str, object]) -> int:
    """Return the id of the last message that a page has, 0 for none."""
    after = message.get("after")
    if not isinstance(after, int) or not 0 <= after <= MAX_ID:
        raise FrameError("A page looks for what came after a message: its id, or 0.")
    return after


def read_whisper(message: Mapping[str, object]) -> tuple[AbstractBaseUser, str]:
    """Return the user to whom a page whispers, and the clean text. Raise `FrameError` where there is none."""
    name = read_name(message.get("to"))
    users = get_user_model()._default_manager
    to = users.filter(**{get_user_model().USERNAME_FIELD: name}).first()
    if to is None:
        raise FrameError(f"There is nobody called {name}.")
    return to, read_text(message)


def clean(label: str, value: object, max_length: int) -> str:
    """Return `value` as one line of text, without what a database refuses to store."""
    if not isinstance(value, str):
        raise FrameError(f"The {label} must be text.")
    # JSON can spell a NUL, and half of a surrogate pair, which is not encodable.
    line = " ".join(value.replace("\0", " ").encode("utf-8", "replace").decode().split())
    if not line:
        raise FrameError(f"The {label} is empty.")
    if len(line) > max_length:
        raise FrameError(f"The {label} is longer than {max_length} characters.")
    return line
