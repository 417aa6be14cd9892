"""The stages of ``groups.py``: what is published to groups, the figures that come of it, and what is wanted of them."""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from functools import partial

from comparison import Block, take_turns
from peers import MAKERS_OF_GROUPS, OURS, Peer
from rows import Figures, Row, environment, table
from site_of_benchmarks import DEADLINE, ROOT, Connections, LostMessageError, cpu_of, manage, text_frame

PROCESSES = 2
PACKAGES = ("django", "tornado", "redis", "channels", "channels-redis", "uvicorn")
HERE = "here"
"""The group to which all goes where only one is meant."""
STATUS = """
import json, djmease
print(json.dumps({server.pid: [server.published, server.reported_at] for server in djmease.get_status().servers}))
"""
SEED = 8
"""Of the groups that chance has."""
ROWS = (
    Row(title="delivery to a group of 10, one message after another", unit="µs CPU", figure="one"),
    Row(title="the same, in a burst", unit="µs CPU", figure="burst"),
    Row(title="delivery to many groups, in a burst", unit="µs CPU", figure="spread"),
    Row(title="publish to a group, from sync code", unit="µs", figure="publish"),
    Row(
        title="delivery among many clients elsewhere, against few, one after another",
        unit="µs CPU",
        figure="one of many",
        against=OURS,
        base="one",
        wanted=1.2,
        is_more=True,
    ),
    Row(
        title="the same, in a burst",
        unit="µs CPU",
        figure="burst of many",
        against=OURS,
        base="burst",
        wanted=1.2,
        is_more=True,
    ),
    Row(
        title="a process without a member, during traffic, against quiet",
        unit="ms CPU a second",
        figure="idle",
        against=OURS,
        base="quiet",
        wanted=1.2,
        is_more=True,
    ),
    Row(
        title="the same, against the process with the members",
        unit="ms CPU a second",
        figure="idle",
        against=OURS,
        base="busy",
        is_more=True,
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How much of everything. A pair is for ours, and for the peers."""

    rounds: int = 15
    clients: int = 10_000
    groups: int = 1_000
    messages: int = 10_000
    few: int = 100
    """Clients elsewhere; else there are as many as ``clients``."""
    members: int = 10
    """Of the group to which all goes, where only one is meant."""
    one_by_one: tuple[int, int] = (300, 60)
    burst: tuple[int, int] = (2000, 300)
    published: tuple[int, int] = (1000, 100)
    shared_clients: int = 2000
    shared_groups: int = 200
    """In how many groups those are that are shared with the peers."""
    idle_rounds: int = 5
    idle_seconds: float = 10.0
    """A heartbeat comes every 5 s, and a report every 2 s."""
    idle_messages: int = 3000


SHORT = Sizes(
    rounds=1,
    clients=600,
    groups=60,
    messages=600,
    few=20,
    one_by_one=(20, 4),
    burst=(100, 20),
    published=(100, 10),
    shared_clients=100,
    shared_groups=10,
    idle_rounds=1,
    idle_seconds=1.0,
    idle_messages=300,
)


@dataclass(slots=True, kw_only=True)
class Stand:
    """Servers of one kind, and their clients, which are in their groups. Microseconds come out of it."""

    peer: Peer
    connections: Connections
    members: dict[str, dict[int, None]] = field(default_factory=dict)
    """Indices of connections, by their groups."""

    def open(self, count: int, groups: Sequence[str], process: int) -> None:
        """Connect so many clients to one of the processes, and let them join the groups."""
        first = len(self.connections.sockets)
        self.connections.open(self.peer.ports[process], count, path="+".join(groups))
        for group in groups:
            self.members.setdefault(group, {}).update(dict.fromkeys(range(first, first + count)))

    def open_groups(self, clients: int, groups: int) -> None:
        """Spread so many clients over so many groups and all processes; some are in the next group too."""
        share = clients // groups // PROCESSES
        for number in range(groups):
            own, following = f"g.{number}", f"g.{(number + 1) % groups}"
            for process in range(PROCESSES):
                self.open(share - 1, [own], process)
                self.open(1, [own, following] if process else [own], process)

    def deliver(self, targets: Sequence[Sequence[str]], *, interval: float = 0.0) -> int:
        """Publish a message to the groups of each of the targets, see that they come, and return how often they do."""
        expected: dict[int, list[bytes]] = {}
        for groups, frame in zip(targets, self.peer.publish_to(targets, interval=interval), strict=True):
            for index in {index: None for group in groups for index in self.members[group]}:
                expected.setdefault(index, []).append(frame)
        self.connections.receive_each({index: b"".join(frames) for index, frames in expected.items()})
        self.peer.published()
        return sum(map(len, expected.values()))

    def cost(self, title: str, targets: Sequence[Sequence[str]], *, at_once: int) -> dict[str, float]:
        """Return the servers' CPU for a message to one member, where so many messages come at once."""
        before = self.peer.cpu()
        deliveries = sum(self.deliver(targets[start : start + at_once]) for start in range(0, len(targets), at_once))
        return {title: (self.peer.cpu() - before) / deliveries * 1e6}

    def publish(self, count: int) -> dict[str, float]:
        """Return the wall clock of publishing a message from synchronous code, to a group in which nobody is."""
        self.peer.publish_to([["nobody"]] * count)
        times = self.peer.published()
        return {"publish": (times[-1] - times[0]) / count * 1e6}


@contextmanager
def stand_of(name: str, *, clients: int, groups: int, here: Sequence[int] = ()) -> Iterator[Stand]:
    """Start the servers, with so many clients in so many groups, and of ``HERE`` as many at each process as it says."""
    with MAKERS_OF_GROUPS[name](PROCESSES) as peer, closing(Connections()) as connections:
        stand = Stand(peer=peer, connections=connections)
        stand.open_groups(clients, groups)
        for process, count in enumerate(here):
            stand.open(count, [HERE], process)
        connections.receive(text_frame("open"))
        peer.wait_until_idle()
        yield stand
        peer.wait_until_idle()
        connections.expect_nothing()


class GroupsComparison:
    """One run: stage by stage, the servers with these names."""

    def __init__(self, names: Sequence[str], sizes: Sizes) -> None:
        self.names = names
        self.sizes = sizes
        self.figures: Figures = {}
        self.facts: list[str] = []
        """What was found to hold, in sentences."""

    def run(self) -> None:
        began = time.monotonic()
        stages = [self.many, self.idle]
        if len(self.names) > 1:
            stages.append(self.spread)
        for stage in stages:
            sys.stderr.write(f"{time.monotonic() - began:4.0f} s: {stage.__name__}\n")
            stage()
        self.facts.append(f"{time.monotonic() - began:.0f} s in all.")

    def many(self) -> None:
        """Deliver to all groups of many clients, and to one, against one with few clients elsewhere."""
        sizes = self.sizes
        here = [sizes.members // PROCESSES] * PROCESSES
        with ExitStack() as stack:
            many = stack.enter_context(stand_of(OURS, clients=sizes.clients, groups=sizes.groups, here=here))
            self.exact(many)
            few = {
                name: stack.enter_context(
                    stand_of(name, clients=sizes.few, groups=sizes.few // sizes.members, here=here)
                )
                for name in self.names
            }
            blocks: list[tuple[str, Block]] = []
            for name, stand in few.items():
                blocks += self.blocks_of_one(name, stand, "")
            blocks += self.blocks_of_one(OURS, many, " of many")
            blocks += [(name, partial(stand.publish, self.share(name, sizes.published))) for name, stand in few.items()]
            take_turns(sizes.rounds, blocks, self.figures)

    def blocks_of_one(self, name: str, stand: Stand, of: str) -> list[tuple[str, Block]]:
        single, burst = self.share(name, self.sizes.one_by_one), self.share(name, self.sizes.burst)
        return [
            (name, partial(stand.cost, f"one{of}", [[HERE]] * single, at_once=1)),
            (name, partial(stand.cost, f"burst{of}", [[HERE]] * burst, at_once=burst)),
        ]

    def exact(self, stand: Stand) -> None:
        """Publish to groups that chance has, of which a fifth of the messages are for two."""
        sizes, chance = self.sizes, random.Random(SEED)
        targets = [
            [f"g.{(first + more) % sizes.groups}" for more in range(1 + (number % 5 == 0))]
            for number, first in enumerate(chance.choices(range(sizes.groups), k=sizes.messages))
        ]
        deliveries = stand.deliver(targets)
        self.facts.append(
            f"{sizes.messages:,} messages to {sizes.groups:,} groups of {sizes.clients:,} clients in {PROCESSES} "
            f"processes, a fifth of them to two groups at once: each of the {deliveries:,} deliveries came once, whole "
            "and in order, and nothing came to anybody else."
        )

    def spread(self) -> None:
        """Deliver to all groups in turn, as fast as it goes."""
        sizes = self.sizes
        with ExitStack() as stack:
            blocks = []
            for name in self.names:
                stand = stack.enter_context(stand_of(name, clients=sizes.shared_clients, groups=sizes.shared_groups))
                count = self.share(name, sizes.burst)
                targets = [[f"g.{number % sizes.shared_groups}"] for number in range(count)]
                blocks.append((name, partial(stand.cost, "spread", targets, at_once=count)))
            take_turns(sizes.rounds, blocks, self.figures)

    def share(self, name: str, pair: tuple[int, int]) -> int:
        return pair[name != OURS]

    def idle(self) -> None:
        """Publish to a group whose members are all in one process, and look at the other one, which has clients too."""
        sizes = self.sizes
        here = [sizes.members, 0]
        with stand_of(OURS, clients=sizes.shared_clients, groups=sizes.shared_groups, here=here) as stand:
            blocks = [(OURS, partial(self.quiet, stand)), (OURS, partial(self.traffic, stand))]
            take_turns(sizes.idle_rounds, blocks, self.figures)
            busy, idle = heard(stand.peer)
        messages = sizes.idle_rounds * sizes.idle_messages
        if (busy, idle) != (messages, 0):
            raise LostMessageError(f"of {messages} messages the processes heard {busy} and {idle}, not all and none")
        self.facts.append(
            f"{messages:,} messages to a group with all its members in one process: djmease.get_status() tells that it "
            "heard all of them, and the other process none."
        )

    def quiet(self, stand: Stand) -> dict[str, float]:
        before = cpu_of(stand.peer.pids[1])
        time.sleep(self.sizes.idle_seconds)
        return {"quiet": (cpu_of(stand.peer.pids[1]) - before) / self.sizes.idle_seconds * 1e3}

    def traffic(self, stand: Stand) -> dict[str, float]:
        before, began = [cpu_of(pid) for pid in stand.peer.pids], time.monotonic()
        targets = [[HERE]] * self.sizes.idle_messages
        stand.deliver(targets, interval=self.sizes.idle_seconds / len(targets))
        seconds = time.monotonic() - began
        busy, idle = ((cpu_of(pid) - cpu) / seconds * 1e3 for pid, cpu in zip(stand.peer.pids, before, strict=True))
        return {"busy": busy, "idle": idle}


def heard(peer: Peer) -> list[int]:
    """Return how many publications each of the processes has heard, as they report it from now on."""
    now, deadline = time.time(), time.monotonic() + DEADLINE
    while time.monotonic() < deadline:
        found = json.loads(manage(peer.home, "shell", "-v0", "-c", STATUS).splitlines()[-1])
        counts, times = zip(*(found[str(pid)] for pid in peer.pids), strict=True)
        if min(times) > now:
            return list(counts)
    raise TimeoutError("a server does not report")


def text(comparison: GroupsComparison) -> str:
    """Return the table, what was found to hold, and the sizes of this run, as Markdown."""
    sizes = comparison.sizes
    rate = sizes.idle_messages / sizes.idle_seconds
    notes = (
        f"Few clients elsewhere are {sizes.few:,}, many {sizes.clients:,}, in groups of {sizes.members}; many groups "
        f"are {sizes.shared_groups:,} of {sizes.shared_clients:,} clients. Messages of 100 bytes, {PROCESSES} server "
        f"processes of each kind. Medians of {sizes.rounds} rounds ({sizes.idle_rounds}, of {sizes.idle_seconds:g} s, "
        f"for the process without a member, with {rate:g} messages a second). A ratio is that of Channels on uvicorn "
        "to django-mease, unless its row names another."
    )
    facts = "\n".join(f"* {fact}" for fact in comparison.facts)
    return f"{table(comparison.figures, ROWS, comparison.names)}\n\n{notes}\n\n{facts}\n"


def write(comparison: GroupsComparison) -> None:
    """Write ``docs/groups.md``."""
    (ROOT / "docs" / "groups.md").write_text(
        "# What a message to a group costs\n\n"
        "Written by `python benchmarks/groups.py --write`, which measures it on your machine too. The servers run\n"
        "side by side, and blocks of the same work go to them in turns. CPU is user and system time of the server\n"
        "processes, as the operating system tells it. Every message is compared at every client, of all groups; one\n"
        "that is lost, doubled, altered, out of order, or that comes to a client which is in none of its groups ends\n"
        "the run with an error.\n\n"
        f"{text(comparison)}\n{environment(PACKAGES)}\n\n"
        "* `Channels, uvicorn`: `group_send` of Channels 4, the pub/sub layer of channels-redis, `uvicorn[standard]`.\n"
        "* `django-mease`: `djmease.publish(..., group=...)`, and the README's `def` sender.\n"
    )
