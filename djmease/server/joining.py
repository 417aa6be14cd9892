"""What clients ask for by headers of ``mease.v1``: to join and to leave groups, as ``MEASE_GROUPS`` declares."""

from __future__ import annotations

import functools
import logging
from typing import Any

from djmease.messages import is_group, is_valid_name
from djmease.registry import Callback, GroupRule, Registry, bind, join_refusal
from djmease.server.client import Client
from djmease.server.complaints import Complaints
from djmease.server.forms import header_of
from djmease.server.tallies import Tally

logger = logging.getLogger("djmease.server")

MAX_REFERENCE = 2**53
"""What a client may number its questions with: a number of JavaScript."""

SETTINGS = {"not_listed": "no entry of MEASE_GROUPS allows it", "too_many": "it has as many as MEASE_MAX_GROUPS"}
"""What the log says of reasons for which there is a setting."""


class Joining:
    """Answers each question with ``joined``, ``left`` or ``refused``, with the question's ``ref`` if it has one."""

    def __init__(self, registry: Registry, *, max_groups: int) -> None:
        self._registry = registry
        self._max_groups = max_groups
        self._complaints = Complaints(logger)
        self.tally = Tally(
            Callback(
                kind="receiver",
                function=self._answer,
                path=f"{__name__}.Joining",
                source=__name__,
                is_async=True,
                binding=bind(self._answer, "receiver"),
            )
        )
        # Bounded, because names come from outside and are endless.
        self.header = functools.lru_cache(maxsize=1024)(self._header)

    def _header(self, groups: tuple[str, ...]) -> bytes | None:
        """Return what goes before a message that was published to groups: those that clients may know of."""
        known = [group for group in groups if self._registry.group_rule(group) is not None]
        return header_of({"groups": known}) if known else None

    def needs_thread(self, fields: dict[str, Any]) -> bool:
        """Tell whether it may take a query to answer."""
        rule = self._rule(fields)
        return fields.get("type") == "join" and rule is not None and rule.rule is not None

    def refusal(self, client: Client, fields: dict[str, Any]) -> str | None:
        """Return what the client does not meet, in a thread, if there is anything."""
        rule = self._rule(fields)
        return None if rule is None else rule.refusal(client.user, fields["group"])

    def _rule(self, fields: dict[str, Any]) -> GroupRule | None:
        group = fields.get("group")
        return self._registry.group_rule(group) if is_group(group) else None

    async def _answer(self, client: Client, message: dict[str, Any]) -> None:
        if message.get("type") == "join":
            await self._join(client, message)
        elif message.get("type") == "leave":
            self._leave(client, message)
        else:
            self.refuse(client, message, "unknown_type")

    async def _join(self, client: Client, fields: dict[str, Any]) -> None:
        group = str(fields.get("group"))
        reason = join_refusal(self._rule(fields), group, client.own_groups, self._max_groups)
        if reason is not None:
            self.refuse(client, fields, reason)
        else:
            client.own_groups |= {group}
            await client.ajoin(group)
            client.write_header(_reply("joined", fields))

    def _leave(self, client: Client, fields: dict[str, Any]) -> None:
        group = fields.get("group")
        if isinstance(group, str) and group in client.own_groups:
            client.own_groups -= {group}
            client.leave(group)
        client.write_header(_reply("left", fields))

    def refuse(self, client: Client, fields: dict[str, Any], reason: str) -> None:
        """Tell the client why it may not."""
        self._complaints.say(
            "client %s may not %.40r %.200r: %s%s",
            client.id,
            fields.get("type"),
            fields.get("group"),
            reason,
            f" ({SETTINGS[reason]})" if reason in SETTINGS else "",
            about=client,
            kind=reason,
        )
        client.write_header({**_reply("refused", fields), "reason": reason})


def _reply(kind: str, fields: dict[str, Any]) -> dict[str, Any]:
    reply: dict[str, Any] = {"type": kind}
    group, reference = fields.get("group"), fields.get("ref")
    if is_valid_name(group):
        reply["group"] = group
    if type(reference) is int and abs(reference) <= MAX_REFERENCE:
        reply["ref"] = reference
    return reply
