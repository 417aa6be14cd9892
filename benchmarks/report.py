"""What ``delivery.py`` prints and writes: each server's figures, the ratio, what is wanted and whether it is met."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

from peers import BARE_LOOP_NAME, DAPHNE_NAME, OURS, UVICORN_NAME, WEBSOCKETS_NAME, WITHOUT_REPORTS_NAME
from rows import Row, environment, number, table, times, wanted
from site_of_benchmarks import ROOT

if TYPE_CHECKING:
    from comparison import Result

SERVERS = (OURS, WITHOUT_REPORTS_NAME, UVICORN_NAME, DAPHNE_NAME, WEBSOCKETS_NAME, BARE_LOOP_NAME)
PACKAGES = ("django", "tornado", "redis", "channels", "channels-redis", "uvicorn", "daphne", "websockets")
README_BEGIN = ".. What follows is written by benchmarks/delivery.py --write\n\n"
README_END = "\n.. Here it ends\n"
README_FIGURES = ("steady", "echo async", "memory", "p99")
"""What the README has a row of: the first of each."""


ROWS = (
    Row(title="delivery, one message after another", unit="µs CPU", figure="steady", wanted=25),
    Row(
        title="the same, against the bare loop",
        unit="µs CPU",
        figure="steady",
        against=BARE_LOOP_NAME,
        wanted=1.5,
        is_more=True,
    ),
    Row(title="the same, a dict written in the loop", unit="µs CPU", figure="steady dict", base="steady"),
    Row(title="the same, clients_list.send(dict)", unit="µs CPU", figure="steady send", base="steady"),
    Row(title="delivery, in a burst", unit="µs CPU", figure="burst", wanted=200),
    Row(title="echo, async def", unit="µs CPU", figure="echo async", wanted=6),
    Row(title="echo, def", unit="µs CPU", figure="echo def", wanted=5),
    *(
        Row(
            title=f"{title}, with reports against without",
            unit="µs CPU",
            figure=figure,
            against=WITHOUT_REPORTS_NAME,
            wanted=1.1,
            is_more=True,
        )
        for title, figure in (
            ("delivery, one after another", "steady"),
            ("delivery, in a burst", "burst"),
            ("echo, async def", "echo async"),
            ("echo, def", "echo def"),
        )
    ),
    Row(title="publish from sync code", unit="µs", figure="publish", wanted=25),
    Row(title="an idle connection", unit="kB", figure="memory", wanted=4),
    Row(title="accepting all connections", unit="ms", figure="accept", wanted=2),
    Row(title="the same", unit="ms CPU", figure="accept cpu"),
    Row(
        title="delivery to ten times as many, against fewer",
        unit="µs CPU",
        figure="many",
        against=OURS,
        base="few",
        wanted=1.3,
        is_more=True,
    ),
    Row(title="publish to receipt, 50th percentile", unit="ms", figure="p50"),
    Row(title="publish to receipt, 99th percentile", unit="ms", figure="p99", wanted=10),
)


def text(result: Result) -> str:
    """Return the table with the sizes of this run, as Markdown."""
    return "\n".join([table(result.figures, ROWS, SERVERS), "", *_notes(result), ""])


def _notes(result: Result) -> Iterable[str]:
    sizes = result.sizes
    yield (
        f"{sizes.clients:,} clients ({sizes.many_clients:,} where they are many), messages of 100 bytes; a burst is of "
        f"{sizes.burst_messages[0]:,} to {sizes.burst_clients:,} clients; {sizes.echoing_clients} clients echo; "
        f"{sizes.accepted:,} connections are accepted, {sizes.idle:,} are idle; percentiles at {result.rate:.1f} "
        f"messages a second, of which the slowest is busy for half of the time. Medians of {sizes.rounds} rounds "
        f"({sizes.long_rounds} of what takes long). A ratio is that of Channels on uvicorn to django-mease, unless its "
        f"row names another. {result.seconds:.0f} s in all."
    )


def write(result: Result) -> None:
    """Write ``docs/benchmarks.md``, ``docs/benchmarks.svg`` and the table of ``README.rst``."""
    docs = ROOT / "docs"
    (docs / "benchmarks.md").write_text(_document(result))
    (docs / "benchmarks.svg").write_text(plot(result))
    readme = ROOT / "README.rst"
    before, begin, rest = readme.read_text().partition(README_BEGIN)
    _, end, behind = rest.partition(README_END)
    if not begin or not end:
        raise ValueError(f"{readme} has no place for the table: it should have {README_BEGIN!r} and {README_END!r}")
    readme.write_text(before + begin + _readme_table(result) + end + behind)


def _document(result: Result) -> str:
    return "\n".join(
        [
            "# What a delivered message costs",
            "",
            "Written by `python benchmarks/delivery.py --write`, which measures it on your machine too. The servers",
            "run side by side, and blocks of the same work go to them in turns. CPU is user and system time of the",
            "server process, as the operating system tells it. Every message is compared at every client; one that is",
            "lost, doubled, altered or out of order ends the run with an error.",
            "",
            "![Bars of the figures below](benchmarks.svg)",
            "",
            text(result),
            environment(PACKAGES),
            "",
            "* `Channels, uvicorn` and `Channels, daphne`: Channels 4, the pub/sub layer of channels-redis, a group.",
            "* `without reports`: django-mease with `MEASE_REPORT_INTERVAL = None`, which counts no callbacks.",
            "* `websockets`: the library alone, without Django and without Redis; its `broadcast`.",
            "* `bare loop`: one `send` on each socket, in Python, and nothing else: the floor of one call each.",
            "* `django-mease`: the README's `def` sender, `for c in clients_list: c.write_message(message)`.",
            "",
        ]
    )


def _readme_table(result: Result) -> str:
    names = (OURS, UVICORN_NAME, WEBSOCKETS_NAME, BARE_LOOP_NAME)
    chosen = [next(row for row in ROWS if row.figure == figure) for figure in README_FIGURES]
    head = ["Figure", *names, "ratio", "wanted"]
    rows = [
        [
            f"{row.title}, {row.unit}",
            *(_escaped(number(result.figures[row.figure].get(name))) for name in names),
            times(row.ratio(result.figures)),
            wanted(row),
        ]
        for row in chosen
    ]
    widths = [max(len(cells[index]) for cells in [head, *rows]) for index in range(len(head))]
    rule = " ".join("=" * width for width in widths)
    body = [" ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip() for cells in rows]
    top = " ".join(cell.ljust(width) for cell, width in zip(head, widths, strict=True)).rstrip()
    return "\n".join([rule, top, rule, *body, rule, ""])


def _escaped(cell: str) -> str:
    # A hyphen alone would be a list of one empty item in reStructuredText.
    return r"\-" if cell == "-" else cell


# The plot

PANELS = (
    ("steady", "A delivery, one message after another", "µs of CPU"),
    ("burst", "A delivery, in a burst", "µs of CPU"),
    ("echo async", "An echo, async def", "µs of CPU"),
    ("echo def", "An echo, def", "µs of CPU"),
    ("memory", "An idle connection", "kB"),
    ("p99", "Publish to receipt, 99th percentile", "ms"),
)
PLOTTED = tuple(name for name in SERVERS if name != WITHOUT_REPORTS_NAME)
COLUMNS, PANEL_WIDTH, BAR, GAP, MARGIN, NAME_WIDTH, NUMBER_WIDTH = 2, 440, 16, 8, 20, 126, 66
STYLE = """
  text { font: 12px system-ui, -apple-system, "Segoe UI", sans-serif; fill: #1f2933; }
  .title { font-size: 13px; font-weight: 600; }
  .unit, .name { fill: #52606d; }
  .card { fill: #ffffff; }
  .other { fill: #b8c4d0; }
  .ours { fill: #0c8a5b; }
  .strong { font-weight: 600; }
  @media (prefers-color-scheme: dark) {
    text { fill: #e4e7eb; }
    .unit, .name { fill: #9aa5b1; }
    .card { fill: #161b22; }
    .other { fill: #4a5663; }
    .ours { fill: #2fbf86; }
  }
"""


def plot(result: Result) -> str:
    """Return an SVG with a panel of bars, each to its own scale from zero, for each of the main figures."""
    panels = [_panel(result.figures[figure], title, unit) for figure, title, unit in PANELS]
    height = 34 + len(PLOTTED) * (BAR + GAP) + MARGIN
    parts = []
    for index, panel in enumerate(panels):
        x = MARGIN + index % COLUMNS * (PANEL_WIDTH + MARGIN)
        y = MARGIN + index // COLUMNS * height
        parts.append(f'<g transform="translate({x} {y})">\n{panel}\n</g>')
    width = MARGIN + COLUMNS * (PANEL_WIDTH + MARGIN)
    total = MARGIN + -(-len(panels) // COLUMNS) * height
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {total}" width="{width}" height="{total}" '
        f'role="img" aria-label="What messages and connections cost, in bars; shorter is better">\n'
        f"<style>{STYLE}</style>\n"
        f'<rect class="card" width="{width}" height="{total}" rx="8"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _panel(figures: dict[str, float], title: str, unit: str) -> str:
    unit = f'<tspan class="unit" font-weight="400">{escape(unit)}</tspan>'
    lines = [f'<text class="title" y="12">{escape(title)} {unit}</text>']
    most = max(figures.values())
    room = PANEL_WIDTH - NAME_WIDTH - NUMBER_WIDTH
    shown = [name for name in PLOTTED if name in figures]
    for index, name in enumerate(shown):
        value = figures[name]
        y = 26 + index * (BAR + GAP)
        width = max(1.5, value / most * room)
        kind, strong = ("ours", " strong") if name == OURS else ("other", "")
        lines += [
            f'<text class="name{strong}" x="{NAME_WIDTH - 8}" y="{y + 12}" text-anchor="end">{escape(name)}</text>',
            f'<rect class="{kind}" x="{NAME_WIDTH}" y="{y}" width="{width:.1f}" height="{BAR}" rx="2"/>',
            f'<text class="{strong.strip()}" x="{NAME_WIDTH + width + 6:.1f}" y="{y + 12}">{number(value)}</text>',
        ]
    return "\n".join(lines)
