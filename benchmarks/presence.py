"""How long it takes to ask who is in a group of 10,000, and what it costs Redis to be told and to reap them.

::

    python benchmarks/presence.py [members]
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import django
from django.conf import settings

GROUP = "board.7"
BATCH = 200
TIMES = 20


def main(members: int) -> None:
    with tempfile.TemporaryDirectory(prefix="mease-") as home:
        settings.configure(INSTALLED_APPS=["djmease"], DEBUG=True, MEASE_PRESENCE=["board.*"], MEASE_EMBEDDED_DIR=home)
        django.setup()
        measure(members, Path(home))


def measure(members: int, home: Path) -> None:
    from redis import Redis

    import djmease
    from djmease import connections, roll
    from djmease.embedded import EmbeddedValkey

    valkey = EmbeddedValkey(home)
    valkey.acquire()
    try:
        redis = Redis(connection_pool=connections.publisher_pool())
        prefixes = (connections.names().presence_prefix, connections.names().group_prefix)

        def run(script: roll.Script, *arguments: Any) -> Any:
            return redis.eval(script.text, 0, *prefixes, roll.new_seed(), *arguments)

        def tell() -> None:
            for start in range(0, members, BATCH):
                run(roll.TELL, "server", *(each for number in range(start, start + BATCH) for each in change(number)))

        def change(number: int) -> tuple[Any, ...]:
            info = roll.encode_info({"name": f"Some Body {number}", "colour": "red"})
            described = roll.describe(name=f"somebody.{number}", user_key=str(number), client_id="", info=info)
            return GROUP, f"u{number}", 1, f"{time.time():.3f}", described, 0

        def reap() -> None:
            while not run(roll.REAP, "server", -1e9, roll.REAPED_AT_ONCE):
                pass

        run(roll.BEAT, "server", roll.DEAD_AFTER)
        said("all are told", members, timed(tell))
        run(roll.BEAT, "server", roll.DEAD_AFTER)
        assert len(djmease.presence(GROUP)) == djmease.presence_count(GROUP) == members
        said("presence()", members, *(timed(lambda: djmease.presence(GROUP)) for _ in range(TIMES)))
        said("presence_count()", members, *(timed(lambda: djmease.presence_count(GROUP)) for _ in range(TIMES)))
        said("a dead server is reaped", members, timed(reap))
        assert djmease.presence_count(GROUP) == 0
    finally:
        valkey.release()


def timed(function: Callable[[], object]) -> float:
    began = time.perf_counter()
    function()
    return 1000 * (time.perf_counter() - began)


def said(what: str, members: int, *times: float) -> None:
    rest = f", at most {max(times):.1f} ms of {len(times)} times" if len(times) > 1 else ""
    sys.stdout.write(f"{what}, {members} members: {statistics.median(times):.1f} ms{rest}\n")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000)
