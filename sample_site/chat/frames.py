"""Read what a page sent. Anybody can connect, so any bytes can come."""

from __future__ import annotations

import json

from chat.models import TEXT_LENGTH, WHO_LENGTH


class FrameError(Exception):
    """A frame that is not taken. Its text says why, to whoever sent it."""


def read_frame(frame: str | bytes) -> dict[str, str]:
    """Return `{"who": …, "text": …}`, both clean, from a frame that holds such an object as JSON.

    Raise `FrameError` if it holds anything else. Further keys are passed over.
    """
    said = read_json(frame)
    if not isinstance(said, dict):
        raise FrameError("A message is a JSON object.")
    return {
        "who": clean("name", said.get("who"), WHO_LENGTH),
        "text": clean("message", said.get("text"), TEXT_LENGTH),
    }


def read_json(frame: str | bytes) -> object:
    try:
        return json.loads(frame)
    # RecursionError: "[[[[…" as long as a frame may be.
    except (ValueError, RecursionError):
        raise FrameError("That is not JSON.") from None


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
