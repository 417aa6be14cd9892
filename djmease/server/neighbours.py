"""The other servers on this prefix, by their heartbeats: who lives, and the traps that a second server springs."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from djmease.registry import Registry
from djmease.server.complaints import Complaints

logger = logging.getLogger("djmease.server")

MAX_NEIGHBOURS = 1000
"""How many are remembered, and how many are named in the log, in the life of a server."""
MAX_TEXT = 200
"""Characters of one value in a heartbeat."""
EXPIRY = 3
"""Intervals without a heartbeat after which a server is taken for gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    """What a server says of itself."""

    id: str
    host: str
    pid: int
    settings: str
    """The settings module."""
    registry: str
    """A fingerprint: the same callbacks for the same routings have the same."""
    version: str

    def encode(self) -> bytes:
        return json.dumps(asdict(self)).encode()


def decode(payload: bytes) -> Heartbeat:
    """Return what a payload says; what it has beside is left. Raises ``ValueError`` where it is no heartbeat."""
    try:
        said = json.loads(payload)
    except RecursionError:
        raise ValueError("its JSON is too deep") from None
    if not isinstance(said, dict):
        raise ValueError("it is not a JSON object")
    if type(said.get("pid")) is not int:
        raise ValueError("it has no pid")
    texts = {name: _text(said, name) for name in ("id", "host", "settings", "registry", "version")}
    return Heartbeat(pid=said["pid"], **texts)


def _text(said: dict[str, Any], name: str) -> str:
    value = said.get(name)
    if not isinstance(value, str) or len(value) > MAX_TEXT:
        raise ValueError(f"it has no {name}")
    return value


def local_callbacks(registry: Registry) -> list[str]:
    """Return the paths of receivers, openers and closers that take a ``clients_list``, which is of one process."""
    callbacks = (*registry.receivers, *registry.openers, *registry.closers)
    return list(dict.fromkeys(callback.path for callback in callbacks if callback.binding.wants_clients))


class Neighbours:
    """Knows the other servers, and names in the log what is dangerous about them; on the loop only."""

    def __init__(self, own: Heartbeat, *, local: Sequence[str], interval: float) -> None:
        self._own = own
        self._local = local
        """Callbacks that see the clients of one process, by their paths."""
        self._expiry = EXPIRY * interval
        # The one heard longest ago comes first.
        self._heard: dict[str, tuple[Heartbeat, float]] = {}
        self._named: set[str] = set()
        self._complaints = Complaints(logger)

    @property
    def alive(self) -> tuple[Heartbeat, ...]:
        """Those whose heartbeat was heard lately, without this server."""
        self._forget()
        return tuple(heartbeat for heartbeat, _ in self._heard.values())

    def hear(self, payload: bytes) -> None:
        """Take a heartbeat as it came."""
        try:
            other = decode(payload)
        except ValueError as error:
            self._complaints.say("a heartbeat of %d bytes is dropped: %s", len(payload), error)
            return
        if other.id == self._own.id:
            return
        is_new = self._heard.pop(other.id, None) is None
        self._heard[other.id] = (other, time.monotonic())
        self._forget()
        if is_new:
            self._meet(other)

    def _forget(self) -> None:
        oldest = time.monotonic() - self._expiry
        while self._heard:
            first = next(iter(self._heard))
            if len(self._heard) <= MAX_NEIGHBOURS and self._heard[first][1] >= oldest:
                break
            del self._heard[first]

    def _meet(self, other: Heartbeat) -> None:
        self._warn_of_local_callbacks()
        if other.settings != self._own.settings:
            self._name(
                other,
                "it has other settings: all that is published reaches both; give each site and stage a "
                "MEASE_KEY_PREFIX of its own",
            )
        elif other.registry != self._own.registry:
            self._name(
                other,
                "it has other callbacks or routes: run the same code with the same settings in all, and restart those "
                "that are behind",
            )

    def _warn_of_local_callbacks(self) -> None:
        if self._local:
            logger.warning(
                "a second server runs on this prefix, and the clients_list of a receiver, opener or closer has only "
                "the clients of one process: what %s should tell all clients goes by djmease.publish (said once)",
                ", ".join(self._local),
            )
            self._local = ()

    def _name(self, other: Heartbeat, what: str) -> None:
        # One that comes back after Redis was away is not new; and whoever can publish must not fill the disk.
        if other.id in self._named or len(self._named) >= MAX_NEIGHBOURS:
            return
        self._named.add(other.id)
        logger.warning(
            "another server on this prefix, process %d on %r with settings %r (here %r), version %r: %s",
            other.pid,
            other.host,
            other.settings,
            self._own.settings,
            other.version,
            what,
        )
