"""Stock receivers, for messages that need no Python."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from djmease import loader, messages
from djmease.publishing import publish as publish_message
from djmease.registry import is_pattern, matches
from djmease.types import Client


def publish(client: Client, message: Any, *, routing: str, group: str | None = None) -> None:
    """Publish what a client sends on the routing of the options, for all or for a group that the client is in.

    It is refused without a login, unless the options say ``'LOGIN_REQUIRED': False``. ``GROUP`` is a group, or a
    pattern that the ``"group"`` of a JSON message must match; the client must be in it, or is told that it is not::

        MEASE_RECEIVERS = [
            {'RECEIVER': 'djmease.receivers.publish', 'TYPE': 'chat.say', 'ROUTING': 'chat.message', 'GROUP': 'room.*'},
        ]
    """
    if group is None:
        publish_message(routing, message)
        return
    named, kind = (message.get("group"), message.get("type")) if isinstance(message, Mapping) else (None, None)
    target = group if named is None and not is_pattern(group) else named
    if isinstance(target, str) and matches(group, target) and target in client.groups:
        publish_message(routing, message, group=target)
    else:
        refusal = {"type": "mease.refused", "reason": "not_in_group"}
        client.write_message({**refusal, "refused": messages.told_back(kind), "group": messages.told_back(target)})


def _check_publish(*, routing: Any = None, group: Any = None) -> Iterator[str]:
    if not messages.is_valid_name(routing) or not loader.is_sent(routing):
        yield f"the option ROUTING is {routing!r}, for which no sender is registered."
    if group is not None and not isinstance(group, str):
        yield f"the option GROUP is {group!r}, and should be a group or a pattern."


publish.default_options = {"login_required": True}  # type: ignore[attr-defined]
publish.check_options = _check_publish  # type: ignore[attr-defined]
