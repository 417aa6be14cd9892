"""Many clients of one server, in a process of their own, and messages to them for as long as they are told to talk.

``Crowd`` starts it and tells it what to do: a line of JSON on its standard input for each order, ``["open", port,
count]``, ``["talk", a second]`` or ``["rest"]``, each of which it answers with a line when it is done. Each client is
in two groups: one of its own, and a lobby of fifty.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from site_of_benchmarks import Connections, environment_of

REGISTRY = """
import djmease

@djmease.opener
async def enter(client):
    for group in client.request.path.strip("/").split("+"):
        await client.ajoin(group)
"""
MEMBERS = 50
"""Of a lobby."""
TEXT = "x" * 100


class Crowd:
    """The crowd, as whoever started it sees it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def obey(self, *order: Any) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{json.dumps(order)}\n")
        self._process.stdin.flush()
        if not self._process.stdout.readline():
            raise RuntimeError(f"the crowd has left at the order {order}")


@contextmanager
def crowd_of(home: Path) -> Iterator[Crowd]:
    """Run a crowd of the site in this directory."""
    process = subprocess.Popen(
        [sys.executable, __file__],
        cwd=home,
        env=environment_of(home),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield Crowd(process)
    finally:
        process.kill()
        process.communicate()


# In that process


def main() -> None:
    # Django has to be set up before anything of it is used.
    import django

    django.setup()
    connections, talk = Connections(), Talk()
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        if name == "open":
            open_all(connections, *arguments)
            talk.lobbies = max(1, len(connections.sockets) // MEMBERS)
            threading.Thread(target=connections.drain, daemon=True).start()
            threading.Thread(target=talk.run, daemon=True).start()
        else:
            talk.rate = arguments[0] if arguments else 0.0
        sys.stdout.write("done\n")
        sys.stdout.flush()


def open_all(connections: Connections, port: int, count: int) -> None:
    for number in range(count):
        connections.open(port, 1, path=f"own.{number}+lobby.{number // MEMBERS}")


class Talk:
    """Publishes on all routes in turn, to one lobby after another, and once a second to everybody."""

    rate = 0.0
    """Messages a second; none while it is 0."""
    lobbies = 1

    def run(self) -> None:
        from django.conf import settings

        import djmease

        routings = sorted(settings.MEASE_ROUTES)
        number, last = 0, 0.0
        while True:
            rate = self.rate
            if not rate:
                time.sleep(0.05)
                continue
            routing, number = routings[number % len(routings)], number + 1
            djmease.publish(routing, TEXT, group=f"lobby.{number % self.lobbies}")
            if time.monotonic() - last > 1.0:
                last = time.monotonic()
                djmease.publish(routing, TEXT)
            time.sleep(1 / rate)


if __name__ == "__main__":
    main()
