"""What the admin's status page costs the site, and the server that it tells of.

::

    python benchmarks/status_page.py                   # the site: made-up reports of three servers with 1,000 routings
    python benchmarks/status_page.py --live            # both: a server under traffic, 1,000 routings, 5,000 clients
    python benchmarks/status_page.py --live --write    # also writes docs/status-page.md

in an environment that has the ``embedded`` extra. In the first the reports lie in a real Valkey, and a thread answers
for the three servers when the page asks for their clients; ``status_page_live.py`` has the second.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import django
from redis import Redis
from redis.exceptions import RedisError

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"

LIMIT = 300.0
"""Milliseconds that a page may take."""
SERVERS = ("one", "two", "three")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--routings", type=int, default=1000)
    parser.add_argument("--live", action="store_true", help="ask a real server")
    parser.add_argument("--clients", type=int, default=5000, help="of the real server")
    parser.add_argument("--seconds", type=float, default=20, help="for which its processor time is taken each time")
    parser.add_argument("--write", action="store_true", help="write docs/status-page.md")
    options = parser.parse_args()
    if options.live:
        return live(options)
    with tempfile.TemporaryDirectory(prefix="mease-") as home:
        django.setup()
        # Django has to be set up first.
        from django.conf import settings
        from django.core.management import call_command

        from djmease import connections, embedded

        settings.MEASE_REDIS_URL = "embedded://"
        settings.MEASE_EMBEDDED_DIR = str(Path(home, "valkey"))
        call_command("migrate", verbosity=0)
        valkey = embedded.EmbeddedValkey(embedded.directory())
        valkey.acquire()
        try:
            redis = Redis.from_url(connections.connection_url())
            threading.Thread(target=answer_for_clients, args=(redis,), daemon=True).start()
            return measure(options.rounds, options.routings)
        finally:
            valkey.release()


def live(options: argparse.Namespace) -> int:
    django.setup()
    # Django has to be set up first.
    import status_page_live

    found = status_page_live.measure(options.clients, options.routings, options.rounds, options.seconds)
    say(status_page_live.text(found))
    if options.write:
        status_page_live.write(found)
    return 0 if found.is_met else 1


def answer_for_clients(redis: Any) -> None:
    """Answer as three servers do, each with a hundred clients."""
    from djmease import connections

    with suppress(RedisError), redis.pubsub() as orders:
        orders.subscribe(connections.names().control_channel)
        for order in orders.listen():
            if order["type"] == "message":
                key = connections.names().reply_key(json.loads(order["data"])["reply"])
                for server in SERVERS:
                    redis.rpush(key, json.dumps({"server": server, "total": 1700, "clients": clients_of(server)}))


def clients_of(server: str) -> list[dict[str, Any]]:
    return [
        {
            "server": server,
            "id": f"{server}-{number}",
            "user": f"user {number}",
            "user_key": str(number),
            "address": "192.0.2.7",
            "groups": ["room.lobby", f"room.{number}"],
            "connected_at": time.time() - number,
            "received": number,
            "unsent": 0,
        }
        for number in range(100)
    ]


def write_reports(routings: int, busy: int) -> None:
    from tests import reported
    from tests.made_reports import flat_history, numbered_message, numbered_sender

    now = time.time()
    counts = {"heard": 1200, "calls": 1200, "rate": 0.4, "delivered": 99_000, "p50": 0.002, "p99": 0.03, "last_at": now}
    raised = {"errors": 3, "last_error": "ValueError: no", "last_error_at": now}
    callbacks = tuple(
        numbered_sender(number, **(counts if number < busy else {}), **(raised if number < busy // 20 else {}))
        for number in range(routings)
    )
    messages = tuple(numbered_message(number) for number in range(50))
    for server in SERVERS:
        reported.put(reported.server(server, callbacks=callbacks, messages=messages, history=flat_history()))


def measure(rounds: int, routings: int) -> int:
    """Print the milliseconds of each kind of request, and return whether one took too long."""
    from django.contrib.auth import get_user_model
    from django.test import Client

    client = Client()
    client.force_login(get_user_model().objects.create_superuser("ada", password="x"))
    address, parts = "/admin/djmease/status/", {"X-Mease-Parts": ""}
    slowest = 0.0
    for busy in (20, routings):
        write_reports(routings, busy)
        versions = versions_of(client.get(address, headers=parts))
        for name, ask in {
            "the page": lambda: client.get(address),
            "the page with clients": lambda: client.get(address, {"clients": 1}),
            "an update": lambda versions=versions: client.get(address, headers={"X-Mease-Parts": versions}),
        }.items():
            milliseconds, size = timed(ask, rounds)
            slowest = max(slowest, milliseconds)
            say(f"{busy:5} of {routings} routes busy: {name:22} {milliseconds:6.1f} ms {size / 1000:7.0f} kB")
    say(f"the slowest took {slowest:.0f} ms of {LIMIT:.0f}")
    return int(slowest > LIMIT)


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")


def versions_of(response: Any) -> str:
    return ",".join(f"{name}:{part['version']}" for name, part in response.json()["parts"].items())


def timed(ask: Callable[[], Any], rounds: int) -> tuple[float, int]:
    """Return the median of the milliseconds, and the bytes of the answer."""
    took = []
    for _ in range(rounds):
        began = time.perf_counter()
        response = ask()
        took.append((time.perf_counter() - began) * 1000)
        assert response.status_code == 200
    return statistics.median(took), len(response.content)


if __name__ == "__main__":
    sys.exit(main())
