"""A callback with what it will be given, as it waits for its turn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from djmease.messages import Message
from djmease.server.client import Client
from djmease.server.clients import ClientsList
from djmease.server.tallies import Record, Tally

CALL_SIZE = 1000
"""Bytes that a call which waits is counted with beside its message."""

MAX_SHOWN = 40
"""Characters of what a client has sent that a log line shows."""

Select = Callable[[], ClientsList]


@dataclass(frozen=True, slots=True)
class Question:
    """Whether a client may have a call after all."""

    ask: Callable[[], str | None]
    """Returns what the client does not meet, if there is anything; it may query."""
    refuse: Callable[[str], None]
    """Tells the client."""


class Call:
    """A callback with what it will be given; ``clients_list`` is taken when it runs."""

    __slots__ = ("about", "arguments", "callback", "question", "select", "size", "tally")

    def __init__(
        self,
        tally: Tally,
        arguments: dict[str, Any],
        about: Message | Client,
        select: Select,
        size: int = CALL_SIZE,
    ) -> None:
        self.tally = tally
        self.callback = tally.callback
        self.arguments = arguments
        """By our names; of this call alone."""
        self.about = about
        self.select = select
        """Returns the ``clients_list``."""
        self.size = size
        """Bytes that it counts with as long as it waits."""
        self.question: Question | None = None
        """Asked before, in a thread."""

    @property
    def needs_thread(self) -> bool:
        return self.question is not None or not self.callback.is_async

    @property
    def is_left_out(self) -> bool:
        """Whether an opener before it did not let the client in; its closers run all the same."""
        return isinstance(self.about, Client) and self.about.is_turned_away and self.callback.kind != "closer"

    @property
    def title(self) -> str:
        """What log lines say that was called."""
        return self.callback.path

    @property
    def subject(self) -> str:
        """What log lines name: the routing with the message's id, or the client."""
        about = self.about
        return f"{about.routing} {about.id}" if isinstance(about, Message) else f"client {about.id}"


class Asking(Call):
    """What a client asks for by a header of ``mease.v1``."""

    __slots__ = ()

    @property
    def title(self) -> str:
        fields = self.arguments["message"]
        return " ".join(str(fields[name])[:MAX_SHOWN] for name in ("type", "group") if name in fields)


class Sending(Call):
    """A call of a sender, and what becomes of its message."""

    __slots__ = ("error", "header", "reached", "record", "seconds", "started")

    def __init__(
        self, tally: Tally, message: Message, select: Select, *, size: int, record: Record | None, header: bytes | None
    ) -> None:
        super().__init__(tally, {"routing": message.routing, "message": message.body}, message, select, size)
        self.record = record
        """Of its message, if those are counted."""
        self.header = header
        """What goes before its messages where a client takes headers."""
        self.error: BaseException | None = None
        self.reached = 0
        """Times that it has written to a client, as far as the loop knows."""
        self.started = self.seconds = 0.0
        """When it began, and how long it took."""

    @property
    def signs(self) -> bool:
        """Whether what it writes has to be known for its own."""
        return self.record is not None or self.header is not None

    def wrote(self, count: int) -> None:
        """Note that what it has written was handed on so many times more; on the loop only."""
        self.reached += count
        self.tally.delivered += count
        if self.record is not None:
            self.record.wrote(count)
