"""What ``djmease.publish`` costs, against redis-py's own ``PUBLISH`` of the same bytes to the same Valkey.

Both run in this process, in turns, so that a noisy machine disturbs both alike; each figure is the median of the
rounds. Run it with  ``python benchmarks/publish.py``  in an environment that has the ``embedded`` extra.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import django
from django.conf import settings
from redis import Redis

TEXT = "x" * 100


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--messages", type=int, default=2000, help="messages in a round")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mease-") as home:
        settings.configure(
            DEBUG=True,
            INSTALLED_APPS=["djmease"],
            DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
            MEASE_ROUTES={"news": "djmease.senders.broadcast"},
            MEASE_REDIS_URL="embedded://",
            MEASE_EMBEDDED_DIR=str(Path(home, "valkey")),
        )
        django.setup()
        return compare(options.rounds, options.messages)


def compare(rounds: int, count: int) -> int:
    """Print the medians and their ratio, in wall clock and in CPU time of this process."""
    # Django has to be set up first.
    import djmease
    from djmease import connections, embedded

    valkey = embedded.EmbeddedValkey(embedded.directory())
    valkey.acquire()
    try:
        client = Redis.from_url(connections.connection_url())
        payload = djmease.messages.encode(kind=b"t", body=TEXT.encode(), message_id="0" * 16, published_at=time.time())
        contenders: dict[str, Callable[[], object]] = {
            "redis-py PUBLISH": lambda: client.publish("mease:news", payload),
            "djmease.publish, str": lambda: djmease.publish("news", TEXT),
            "djmease.publish, dict": lambda: djmease.publish("news", {"text": TEXT}),
        }
        with client, client.pubsub() as listener:
            listener.psubscribe("other:*")
            report(measure(contenders, rounds, count))
    finally:
        valkey.release()
    return 0


Figures = dict[str, list[tuple[float, float]]]


def measure(contenders: dict[str, Callable[[], object]], rounds: int, count: int) -> Figures:
    """Return for each contender its wall and CPU microseconds a message, round by round."""
    figures: Figures = {name: [] for name in contenders}
    for function in contenders.values():
        function()
    for _ in range(rounds):
        for name, function in contenders.items():
            wall, cpu = time.perf_counter(), time.process_time()
            for _ in range(count):
                function()
            figures[name].append(
                ((time.perf_counter() - wall) / count * 1e6, (time.process_time() - cpu) / count * 1e6)
            )
    return figures


def report(figures: Figures) -> None:
    medians = {
        name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in figures.items()
    }
    base = next(iter(medians.values()))
    write = sys.stdout.write
    write("| publishing 100 bytes | wall µs | ratio | CPU µs | ratio |\n|---|---|---|---|---|\n")
    for name, (wall, cpu) in medians.items():
        write(f"| {name} | {wall:.1f} | {wall / base[0]:.2f} | {cpu:.1f} | {cpu / base[1]:.2f} |\n")


if __name__ == "__main__":
    sys.exit(main())
