"""What a delivered message costs the server: django-mease against Channels and against a bare loop of ``send``.

::

    python benchmarks/delivery.py                    # installs the peers in .venv-benchmarks, takes some minutes
    python benchmarks/delivery.py --only djmease     # no peers, nothing to install

All run on this machine, one after the other, with the same clients and the same messages of 100 bytes. CPU is user and
system time of the server process, from the operating system. Each message is counted at each client: one that is lost
or doubled ends the run with an error.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from site_of_benchmarks import ROOT, Connections

FRAME = 102
# A client's frame of a hundred bytes, masked with zeros.
REQUEST = bytes([0x81, 0x80 | 100]) + bytes(4) + b"x" * 100
VENV = ROOT / ".venv-benchmarks"
PEERS = ["channels>=4.3,<5", "channels-redis>=4.3", "uvicorn[standard]"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    clients: int = 1000
    messages: int = 100
    burst_clients: int = 200
    burst_messages: int = 2000
    echoes: int = 100
    idle: int = 2000
    published: int = 1000


SHORT = Sizes(clients=100, messages=10, burst_clients=20, burst_messages=200, echoes=10, idle=100, published=100)
Figures = dict[str, float]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["djmease"], help="without the peers")
    parser.add_argument("--short", action="store_true", help="small numbers: it counts the messages, and no more")
    options = parser.parse_args()
    if options.only is None and Path(sys.prefix) != VENV:
        return run_in_venv()
    # What follows imports what only that environment has.
    import peers

    makers = {"django-mease": peers.djmease}
    if options.only is None:
        makers |= {"Channels": peers.channels, "bare loop": peers.bare_loop}
    sizes = SHORT if options.short else Sizes()
    sys.stdout.write(table({name: measure(name, maker, sizes) for name, maker in makers.items()}))
    return 0


def run_in_venv() -> int:
    """Run this again where the peers are installed."""
    python = VENV / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", "-e", f"{ROOT}[embedded]", *PEERS], check=True)
    return subprocess.run([str(python), *sys.argv], check=False).returncode


def measure(name: str, maker: Callable[..., AbstractContextManager], sizes: Sizes) -> Figures:
    """Return what a server costs: microseconds, and kilobytes of memory."""
    figures: Figures = {}
    # What takes a hundred times as long is asked for a tenth.
    burst_messages = sizes.burst_messages // (10 if name == "Channels" else 1)
    with maker() as peer, connected(peer, sizes.clients) as connections:
        figures["steady"] = delivery(peer, connections, sizes.messages, at_once=1)
    with maker() as peer, connected(peer, sizes.burst_clients) as connections:
        figures["burst"] = delivery(peer, connections, burst_messages, at_once=burst_messages)
        figures["publish"] = publish(peer, connections, sizes.published)
    if name == "bare loop":
        del figures["publish"]
        return figures
    for kind in ("async", "def"):
        with maker(kind) as peer, connected(peer, 50, path=kind, settle=False) as connections:
            figures[f"echo {kind}"] = echo(peer, connections, sizes.echoes)
    with maker("async") as peer:
        figures |= idle(peer, sizes.idle)
    return figures


@contextmanager
def connected(peer, count: int, path: str = "", settle: bool = True) -> Iterator[Connections]:
    connections = Connections()
    try:
        connections.open(peer.port, count, path=path)
        if settle:
            # Some servers subscribe a client behind its handshake, and say nothing when they have.
            time.sleep(0.5 + count / 1000)
            peer.publish(1)
            connections.receive(dict.fromkeys(range(count), FRAME))
            peer.published()
        yield connections
    finally:
        connections.close()


def delivery(peer, connections: Connections, messages: int, at_once: int) -> float:
    """Return the server's CPU for a message to one client, of so many messages to all, so many published at once."""
    count = len(connections.sockets)
    before = peer.cpu()
    for _ in range(messages // at_once):
        peer.publish(at_once)
        connections.receive(dict.fromkeys(range(count), at_once * FRAME))
        peer.published()
    return (peer.cpu() - before) / (messages * count) * 1e6


def publish(peer, connections: Connections, messages: int) -> float:
    """Return the wall clock of one publish from synchronous code."""
    peer.publish(messages)
    connections.receive(dict.fromkeys(range(len(connections.sockets)), messages * FRAME))
    return peer.published() / messages * 1e6


def echo(peer, connections: Connections, rounds: int) -> float:
    """Return the server's CPU for a message that goes back to the client which sent it."""
    count = len(connections.sockets)
    before = peer.cpu()
    for _ in range(rounds):
        for connection in connections.sockets:
            connection.send(REQUEST)
        connections.receive(dict.fromkeys(range(count), FRAME))
    return (peer.cpu() - before) / (count * rounds) * 1e6


def idle(peer, count: int) -> Figures:
    """Return what it takes to accept a connection, and to keep it."""
    connections = Connections()
    try:
        connections.open(peer.port, 50)
        memory, cpu, wall = peer.memory(), peer.cpu(), time.perf_counter()
        connections.open(peer.port, count)
        seconds = time.perf_counter() - wall
        return {
            "accept": (peer.cpu() - cpu) / count * 1e6,
            "accept wall": seconds / count * 1e6,
            "memory": (peer.memory() - memory) / count / 1024,
        }
    finally:
        connections.close()


ROWS = {
    "steady": ("CPU µs a delivery, steady", 25),
    "burst": ("CPU µs a delivery, burst", 200),
    "echo async": ("CPU µs an echo, async def", 6),
    "echo def": ("CPU µs an echo, def", 5),
    "publish": ("wall µs a publish, sync code", 25),
    "memory": ("kB an idle connection", 4),
    "accept wall": ("wall µs to accept one", 2),
    "accept": ("CPU µs to accept one", None),
}


def table(figures: dict[str, Figures]) -> str:
    """Return the figures and how many times less than Channels they are, as a table in reStructuredText."""
    names = list(figures)
    rows = [["Figure", *names, "Channels is", "wanted"]]
    for key, (title, wanted) in ROWS.items():
        cells = [f"{figures[name][key]:.2f}" if key in figures[name] else "-" for name in names]
        ratio = figures["Channels"][key] / figures["django-mease"][key] if "Channels" in figures else None
        rows.append([title, *cells, f"{ratio:.1f} x" if ratio else "-", f"{wanted} x" if wanted else "-"])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rule = " ".join("=" * width for width in widths)
    lines = [" ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([rule, lines[0], rule, *lines[1:], rule, ""])


if __name__ == "__main__":
    sys.exit(main())
