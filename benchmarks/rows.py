"""The tables of the benchmarks: figures of several servers, what is wanted of ours, and whether it is met."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version

from peers import OURS, UVICORN_NAME

Figures = dict[str, dict[str, float]]
"""Of what, and of which server."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A figure of all servers, and what is wanted of ours against one of them, or against another figure of ours."""

    title: str
    unit: str
    figure: str
    against: str = UVICORN_NAME
    base: str = ""
    """The figure to compare with; the same one unless said."""
    wanted: float | None = None
    """How many times ours the other one's is to be; where ``is_more``, how many times the other one's ours may be."""
    is_more: bool = False

    def ratio(self, figures: Figures) -> float | None:
        ours = figures.get(self.figure, {}).get(OURS)
        theirs = figures.get(self.base or self.figure, {}).get(self.against)
        if ours is None or theirs is None:
            return None
        return ours / theirs if self.is_more else theirs / ours

    def is_met(self, figures: Figures) -> bool | None:
        ratio = self.ratio(figures)
        if ratio is None or self.wanted is None:
            return None
        return ratio <= self.wanted if self.is_more else ratio >= self.wanted


def table(figures: Figures, rows: Sequence[Row], servers: Sequence[str]) -> str:
    """Return the rows as a table in Markdown, with a column for each of the servers that has any figure."""
    shown = [name for name in servers if any(name in each for each in figures.values())]
    lines = [
        f"| figure | {' | '.join(shown)} | ratio | wanted | |",
        f"|---|{'---:|' * len(shown)}---:|---:|---|",
    ]
    for row in rows:
        cells = [number(figures.get(row.figure, {}).get(name)) for name in shown]
        met = {True: "met", False: "**not met**", None: ""}[row.is_met(figures)]
        cells += [times(row.ratio(figures)), wanted(row), met]
        lines.append(f"| {row.title}, {row.unit} | {' | '.join(cells)} |")
    return "\n".join(lines)


def number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.2f}" if value < 10 else f"{value:,.1f}" if value < 100 else f"{value:,.0f}"


def times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f} x" if ratio < 10 else f"{ratio:.0f} x"


def wanted(row: Row) -> str:
    if row.wanted is None:
        return "-"
    return f"{'at most' if row.is_more else 'at least'} {row.wanted:g} x"


def environment(packages: Iterable[str]) -> str:
    """Return a sentence that says what the figures were measured with."""
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    return (
        f"Python {platform.python_version()}, {versions}, {platform.system()} on {os.cpu_count()} cores "
        f"({platform.machine()})."
    )
