"""The second part of ``status_page.py``: what the page costs where it is rendered, and the server while it is open."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from crowd import REGISTRY, Crowd, crowd_of
from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.test import Client
from rows import environment
from site_of_benchmarks import DEADLINE, ROOT, Server, raise_file_limit, serving

from djmease.reporting import get_status, list_groups
from djmease.status_page import INTERVAL, LISTS_INTERVAL

PAGE = "/admin/djmease/status/"
ANSWERS = 100
"""By which the server's processor time is divided."""
TURNS = 3
"""How often the delays of the loop are taken with a page and without."""
RATE = 50.0
"""Messages a second, each to fifty clients, while there is traffic."""
OPEN: dict[str, dict[str, str]] = {
    "nothing open": {},
    "clients open": {"clients": "1"},
    "groups open": {"groups": "1"},
    "both open": {"clients": "1", "groups": "1"},
}
MAX_RENDERING, MAX_COST = 300.0, 1.0
"""Milliseconds of an answer, and of the server's processor time a second, that are wanted at most."""
SETTINGS = """
MEASE_ROUTES = {{f"shop.item.{{number}}": "djmease.senders.broadcast" for number in range({routings})}}
MEASE_PRESENCE = ["lobby.*"]
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What a page costs of which these parts are open; milliseconds."""

    median: float
    p99: float
    rendering: float
    """Processor time of the process that renders; what is left is waited for."""
    size: float
    """kB."""
    cost: float
    """The server's processor time a second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    rows: dict[str, Row]
    delays: dict[str, tuple[float, float]]
    """Milliseconds by which the server's loop came late to a timer: the longest of two seconds each, in the middle and
    at most."""
    idle: float
    """The server's processor time a second when no page is open and nobody talks; milliseconds."""
    busy: float
    """The same with traffic."""
    notes: str

    @property
    def is_met(self) -> bool:
        return all(row.median <= MAX_RENDERING and row.cost <= MAX_COST for row in self.rows.values())


def measure(clients: int, routings: int, rounds: int, seconds: float) -> Found:
    raise_file_limit()
    with serving(REGISTRY, settings=SETTINGS.format(routings=routings)) as server, crowd_of(server.home) as crowd:
        settings.MEASE_REDIS_URL = f"unix://{server.home}/valkey/valkey.sock"
        settings.MEASE_PRESENCE = ["lobby.*"]
        call_command("migrate", verbosity=0)
        crowd.obey("open", server.port, clients)
        wait_for(lambda: is_complete(clients), "not all clients came into their groups")
        return Measurement(server, crowd, rounds, seconds).run(
            f"{clients:,} clients in {clients:,} groups of one and in lobbies of 50, {routings:,} routings, and "
            f"{RATE:g} messages a second to a lobby each and one to everybody, on all routes in turn. "
            f"{rounds} answers of each kind with traffic. The server's processor time is that of {ANSWERS} answers, "
            f"less what it takes by itself, for a page that asks each {INTERVAL:g} s, and for clients and groups each "
            f"{LISTS_INTERVAL:g} s; it is taken without traffic, which would hide it."
        )


def is_complete(clients: int) -> bool:
    status = get_status()
    return status.clients == clients and bool(list_groups(status).groups) and list_groups(status).total > clients


def wait_for(condition: Callable[[], bool], trouble: str) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(trouble)
        time.sleep(0.02)


class Measurement:
    def __init__(self, server: Server, crowd: Crowd, rounds: int, seconds: float) -> None:
        self.server = server
        self.crowd = crowd
        self.rounds = rounds
        self.seconds = seconds
        self.client = Client()
        self.client.force_login(get_user_model().objects.create_superuser("ada", password="x"))
        self.versions = ""

    def run(self, notes: str) -> Found:
        self.crowd.obey("talk", RATE)
        # All routes are to have traffic, and the plots some values.
        busy = self.cost_of(lambda: time.sleep(25))
        times = {name: self.times(asked) for name, asked in OPEN.items()}
        delays = self.delays(
            {"no page": lambda: time.sleep(self.seconds), "a page with both open": lambda: self.look(OPEN["both open"])}
        )
        self.crowd.obey("rest")
        time.sleep(3)
        idle = self.cost_of(lambda: time.sleep(self.seconds))
        rows = {name: Row(**times[name], cost=self.cost_of_page(asked, idle)) for name, asked in OPEN.items()}
        return Found(rows=rows, delays=delays, idle=idle, busy=busy, notes=notes)

    def ask(self, asked: dict[str, str]) -> int:
        """Ask as an open page does, and return the bytes of the answer."""
        response = self.client.get(PAGE, asked, headers={"X-Mease-Parts": self.versions})
        assert response.status_code == 200
        self.versions = ",".join([*self.kept(response), *(f"{n}:{p['version']}" for n, p in self.parts(response))])
        return len(response.content)

    def parts(self, response: Any) -> list[tuple[str, dict[str, str]]]:
        return list(response.json()["parts"].items())

    def kept(self, response: Any) -> list[str]:
        changed = {name for name, _ in self.parts(response)}
        return [each for each in self.versions.split(",") if each and each.partition(":")[0] not in changed]

    def times(self, asked: dict[str, str]) -> dict[str, float]:
        took, rendering, size = [], [], 0
        self.ask(asked)
        for _ in range(self.rounds):
            time.sleep(0.1)
            began, cpu = time.perf_counter(), time.process_time()
            size = max(size, self.ask(asked))
            rendering.append((time.process_time() - cpu) * 1000)
            took.append((time.perf_counter() - began) * 1000)
        return {
            "median": statistics.median(took),
            "p99": statistics.quantiles(took, n=100, method="inclusive")[98],
            "rendering": statistics.median(rendering),
            "size": size / 1000,
        }

    def look(self, asked: dict[str, str]) -> None:
        """Have a page open for a while."""
        for _ in range(round(self.seconds / INTERVAL)):
            began = time.monotonic()
            self.ask(asked)
            time.sleep(max(0.0, began + INTERVAL - time.monotonic()))

    def cost_of(self, work: Callable[[], None]) -> float:
        """Return the milliseconds of the server's processor time a second, meanwhile.

        It begins and ends just behind a report, one of which more or less would be more than what is looked for.
        """
        before, began = self.cpu_behind_report()
        work()
        after, ended = self.cpu_behind_report()
        return (after - before) / (ended - began) * 1000

    def cost_of_page(self, asked: dict[str, str], idle: float) -> float:
        """Return the milliseconds of the server's processor time a second that an open page costs."""
        before, began = self.cpu_behind_report()
        for _ in range(ANSWERS):
            self.ask(asked)
        after, ended = self.cpu_behind_report()
        return ((after - before) * 1000 - idle * (ended - began)) / ANSWERS / (LISTS_INTERVAL if asked else INTERVAL)

    def cpu_behind_report(self) -> tuple[float, float]:
        reported_at = get_status().servers[0].reported_at
        wait_for(lambda: get_status().servers[0].reported_at > reported_at, "no report came")
        return self.server.cpu(), time.monotonic()

    def delays(self, works: dict[str, Callable[[], None]]) -> dict[str, tuple[float, float]]:
        """Return the delays of the loop during each of these, in turns."""
        found: dict[str, list[float]] = {name: [] for name in works}
        for _ in range(TURNS):
            for name, work in works.items():
                began = time.monotonic()
                work()
                (report,) = get_status().servers
                count = max(1, int((time.monotonic() - began) / report.interval))
                found[name] += [value * 1000 for value in report.history.loop_delay[-count:]]
        return {name: (statistics.median(values), max(values)) for name, values in found.items()}


def text(found: Found) -> str:
    """Return the tables, as Markdown."""
    lines = [
        "| a page with | median, ms | 99th percentile, ms | the site's CPU, ms | answer, kB | the server's CPU, ms/s |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, row in found.rows.items():
        lines.append(
            f"| {name} | {row.median:.0f} | {row.p99:.0f} | {row.rendering:.0f} | {row.size:,.0f} | {row.cost:.2f} |"
        )
    lines += ["", "| delay of the server's loop, with traffic | median, ms | longest, ms |", "|---|---:|---:|"]
    lines += [f"| {name} | {median:.1f} | {longest:.1f} |" for name, (median, longest) in found.delays.items()]
    lines += [
        "",
        f"Wanted: an answer in {MAX_RENDERING:g} ms, and a page that costs the server {MAX_COST:g} ms a second. The "
        f"server itself takes {found.idle:.0f} ms a second with nothing to do, and {found.busy:.0f} with this traffic.",
        "",
        found.notes,
    ]
    return "\n".join(lines)


def write(found: Found) -> None:
    """Write ``docs/status-page.md``."""
    (ROOT / "docs" / "status-page.md").write_text(
        "# What the status page costs\n\n"
        "Written by `python benchmarks/status_page.py --live --write`, which measures it on your machine too: an\n"
        "answer to an open page, with what it waits for, and the processor time of the WebSocket server while a page\n"
        "is open, as the operating system tells it.\n\n"
        f"{text(found)}\n\n{environment(('django', 'tornado', 'redis'))}\n"
    )
