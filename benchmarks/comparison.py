"""The stages of ``delivery.py``: what is asked of the servers, in turns, and the figures that come of it."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial

from peers import BARE_LOOP_NAME, DAPHNE_NAME, MAKERS, OURS, UVICORN_NAME, WEBSOCKETS_NAME, WITHOUT_REPORTS_NAME, Peer
from rows import Figures
from site_of_benchmarks import Connections, raise_file_limit, text_frame

# What costs these so much is asked of them less often.
SLOW = (UVICORN_NAME, DAPHNE_NAME)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How much of everything. A pair is for those that are fast, and for those that are slow."""

    rounds: int = 5
    long_rounds: int = 3
    """For what takes long."""
    clients: int = 1000
    messages: tuple[int, int] = (120, 8)
    timed_messages: int = 8
    many_clients: int = 10_000
    many_messages: int = 10
    burst_clients: int = 200
    burst_messages: tuple[int, int] = (2000, 400)
    echoing_clients: int = 50
    echoes: tuple[int, int] = (400, 100)
    published: tuple[int, int] = (2000, 200)
    accepted: int = 2000
    idle: int = 5000


SHORT = Sizes(
    rounds=1,
    long_rounds=1,
    clients=100,
    messages=(20, 4),
    many_clients=500,
    burst_clients=20,
    burst_messages=(500, 50),
    echoes=(20, 5),
    published=(200, 20),
    accepted=100,
    idle=200,
)
Block = Callable[[], dict[str, float]]
"""A piece of work; it returns its figures."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    figures: Figures
    sizes: Sizes
    rate: float
    """Messages in a second, while the time until they came was taken."""
    seconds: float


class Comparison:
    """One run: stage by stage, the servers with these names side by side."""

    def __init__(self, names: list[str], sizes: Sizes) -> None:
        raise_file_limit()
        self.names = names
        self.sizes = sizes
        self.figures: Figures = {}
        self.rate = 0.0
        self.started = time.monotonic()

    def run(self) -> Result:
        for stage in (self.steady, self.burst, self.publish, self.echo, self.idle, self.many):
            sys.stderr.write(f"{time.monotonic() - self.started:4.0f} s: {stage.__name__}\n")
            stage()
        seconds = time.monotonic() - self.started
        return Result(figures=self.figures, sizes=self.sizes, rate=self.rate, seconds=seconds)

    def steady(self) -> None:
        """Deliver message by message, then the same at a rate that all of them hold."""
        sizes = self.sizes
        with self.side_by_side(self.names, sizes.clients) as stands:
            self.take_turns(sizes.rounds, self.steady_blocks(stands))
            busy = max(self.figures["steady"].values()) / 1e6 * sizes.clients
            # The slowest is busy for half of the time.
            self.rate = 0.5 / busy
            blocks = [
                (name, partial(stand.lateness, sizes.timed_messages, interval=2 * busy))
                for name, stand in stands.items()
            ]
            self.take_turns(sizes.long_rounds, blocks)

    def steady_blocks(self, stands: dict[str, Stand]) -> list[tuple[str, Block]]:
        blocks: list[tuple[str, Block]] = []
        for name, stand in stands.items():
            messages = self.share(name, self.sizes.messages)
            blocks.append((name, partial(stand.deliver, "steady", messages)))
            if name == OURS:
                blocks.append((name, partial(stand.deliver, "steady dict", messages, kind="dict")))
                blocks.append((name, partial(stand.deliver, "steady send", messages, kind="send")))
        return blocks

    def burst(self) -> None:
        with self.side_by_side(self.names, self.sizes.burst_clients) as stands:
            blocks = []
            for name, stand in stands.items():
                messages = self.share(name, self.sizes.burst_messages)
                blocks.append((name, partial(stand.deliver, "burst", messages, at_once=messages)))
            self.take_turns(self.sizes.long_rounds, blocks)

    def publish(self) -> None:
        """Publish with one client, so that the publisher has a core to itself."""
        names = [name for name in self.names if name in (OURS, *SLOW)]
        with self.side_by_side(names, 1) as stands:
            blocks = [
                (name, partial(stand.publish, self.share(name, self.sizes.published))) for name, stand in stands.items()
            ]
            self.take_turns(self.sizes.rounds, blocks)

    def echo(self) -> None:
        echoing = [name for name in self.names if name != BARE_LOOP_NAME]
        for kind, names in {"async": echoing, "def": [name for name in echoing if name != WEBSOCKETS_NAME]}.items():
            with self.side_by_side(names, self.sizes.echoing_clients, echo=kind) as stands:
                blocks = [
                    (name, partial(stand.echo, f"echo {kind}", self.share(name, self.sizes.echoes)))
                    for name, stand in stands.items()
                ]
                self.take_turns(self.sizes.rounds, blocks)

    def idle(self) -> None:
        """Measure a new server each time: memory that was used before does not show when it is used again."""
        names = [name for name in self.names if name not in (BARE_LOOP_NAME, WITHOUT_REPORTS_NAME)]
        blocks = [(name, partial(accept_and_keep, name, self.sizes)) for name in names]
        self.take_turns(self.sizes.long_rounds, blocks)

    def many(self) -> None:
        """Deliver to few and to many clients of two servers of the same kind."""
        sizes = self.sizes
        for name in self.names:
            if name not in (OURS, BARE_LOOP_NAME):
                continue
            with stand_of(name, sizes.clients) as few, stand_of(name, sizes.many_clients) as many:
                more = sizes.many_messages * sizes.many_clients // sizes.clients
                blocks = [
                    (name, partial(few.deliver, "few", more)),
                    (name, partial(many.deliver, "many", sizes.many_messages)),
                ]
                self.take_turns(sizes.rounds, blocks)

    def share(self, name: str, pair: tuple[int, int]) -> int:
        return pair[name in SLOW]

    @contextmanager
    def side_by_side(self, names: list[str], clients: int, echo: str = "") -> Iterator[dict[str, Stand]]:
        with ExitStack() as stack:
            yield {name: stack.enter_context(stand_of(name, clients, echo)) for name in names}

    def take_turns(self, rounds: int, blocks: list[tuple[str, Block]]) -> None:
        take_turns(rounds, blocks, self.figures)


def take_turns(rounds: int, blocks: list[tuple[str, Block]], figures: Figures) -> None:
    """Do all of the blocks so many times, and keep the medians of their figures."""
    rows: dict[tuple[str, str], list[float]] = {}
    for _ in range(rounds):
        for name, block in blocks:
            for title, figure in block().items():
                rows.setdefault((title, name), []).append(figure)
    for (title, name), values in rows.items():
        sys.stderr.write(f"        {title}, {name}: {' '.join(f'{value:.2f}' for value in values)}\n")
        figures.setdefault(title, {})[name] = statistics.median(values)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stand:
    """A server, and its clients, which are ready. Microseconds come out of it, unless it says so."""

    peer: Peer
    connections: Connections

    def deliver(self, title: str, messages: int, *, at_once: int = 1, kind: str = "text") -> dict[str, float]:
        """Return the server's CPU for a message to one client, of so many to all, of which so many come at once."""
        before = self.peer.cpu()
        for _ in range(messages // at_once):
            self.connections.receive(self.peer.publish(at_once, kind=kind))
            self.peer.published()
        return {title: (self.peer.cpu() - before) / (messages * len(self.connections.sockets)) * 1e6}

    def lateness(self, messages: int, *, interval: float) -> dict[str, float]:
        """Return percentiles of the milliseconds from a publish to the receipt, at every twentieth client."""
        expected = self.peer.publish(messages, interval=interval)
        receipts = self.connections.receive_at(expected, range(19, len(self.connections.sockets), 20))
        times = self.peer.published()
        frame = len(expected) // messages
        delays = [
            came_at - times[number]
            for came_at, before, after in receipts
            for number in range(before // frame, after // frame)
        ]
        percentiles = statistics.quantiles(delays, n=100)
        return {"p50": percentiles[49] * 1e3, "p99": percentiles[98] * 1e3}

    def publish(self, messages: int) -> dict[str, float]:
        """Return the wall clock of one publish from synchronous code."""
        self.connections.receive(self.peer.publish(messages))
        times = self.peer.published()
        return {"publish": (times[-1] - times[0]) / messages * 1e6}

    def echo(self, title: str, rounds: int) -> dict[str, float]:
        """Return the server's CPU for a message that goes back to the client which sent it."""
        sockets = self.connections.sockets
        before = self.peer.cpu()
        for number in range(rounds):
            frame = text_frame(f"{number:<100}")
            # As a client's frame: masked, with zeros.
            request = frame[:1] + bytes([0x80 | frame[1]]) + bytes(4) + frame[2:]
            for connection in sockets:
                connection.send(request)
            self.connections.receive(frame)
        return {title: (self.peer.cpu() - before) / (len(sockets) * rounds) * 1e6}


@contextmanager
def stand_of(name: str, clients: int, echo: str = "") -> Iterator[Stand]:
    """Start a server, with so many clients that are subscribed, or whose messages it echoes."""
    with MAKERS[name](echo) as peer, closing(Connections()) as connections:
        connections.open(peer.ports[0], clients, path=echo)
        peer.wait_until_idle()
        if not echo:
            connections.receive(peer.publish(1))
            peer.published()
        yield Stand(peer=peer, connections=connections)
        peer.wait_until_idle()
        connections.expect_nothing()


def accept_and_keep(name: str, sizes: Sizes) -> dict[str, float]:
    """Return the milliseconds that it takes to accept some connections, and the kilobytes that an idle one keeps."""
    with stand_of(name, 50, "async") as stand:
        peer, connections = stand.peer, stand.connections
        memory, cpu, wall = peer.memory(), peer.cpu(), time.monotonic()
        connections.open(peer.ports[0], sizes.accepted, path="async")
        figures = {"accept": (time.monotonic() - wall) * 1e3}
        peer.wait_until_idle()
        figures["accept cpu"] = (peer.cpu() - cpu) * 1e3
        connections.open(peer.ports[0], sizes.idle - sizes.accepted, path="async")
        peer.wait_until_idle()
        return figures | {"memory": (peer.memory() - memory) / sizes.idle / 1024}
