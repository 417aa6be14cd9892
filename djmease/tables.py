"""Tables and numbers as text for a terminal: pure functions from values to lines, which fit a width."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

GAP = "  "
INDENT = "  "
CUT = "…"
NOTHING = "-"
KIB = 1024
HARDLY = 6
"""Characters of a column that can hardly be read any more."""
MIN_WIDTH = 40
"""Characters below which nothing is made to fit."""

Paint = Callable[[str], str]
"""Adds colour to a text, which changes nothing of its width."""


def unpainted(text: str) -> str:
    return text


@dataclass(frozen=True, slots=True)
class Cell:
    """A text in a table with its colour; a plain ``str`` does where it has none."""

    text: str
    paint: Paint = unpainted


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column of a table, and what becomes of it where there is no room for all."""

    title: str
    rank: int = 0
    """The columns with the highest leave first; those with 0 never do."""
    is_number: bool = False
    """Whether it stands at the right."""
    least: int | None = None
    """Characters to which it may be cut before another column leaves."""
    keeps_end: bool = False
    """Whether it is cut at its beginning, as a dotted path is."""


Row = Sequence[str | Cell]


def table(columns: Sequence[Column], rows: Iterable[Row], *, width: int, heading: Paint = unpainted) -> list[str]:
    """Return the lines of a table, its titles first; columns are cut, and left out, until it fits."""
    cells = [[cell if isinstance(cell, Cell) else Cell(cell) for cell in row] for row in rows]
    cells = [[Cell(printable(cell.text), cell.paint) for cell in row] for row in cells]
    titles = [Cell(column.title, heading) for column in columns]
    natural = [_natural([row[index].text for row in [titles, *cells]]) for index in range(len(columns))]
    widths = _fit(columns, natural, width - len(INDENT))
    return [_line(columns, row, widths) for row in [titles, *cells]]


def _natural(texts: Sequence[str]) -> int:
    """Return the width of a column, 0 where nothing stands below its title."""
    return max(map(width_of, texts)) if any(texts[1:]) else 0


def _fit(columns: Sequence[Column], natural: Sequence[int], room: int) -> dict[int, int]:
    """Return the widths of the columns that stay, by their index."""
    kept = [index for index in range(len(columns)) if natural[index]]
    least = [
        wide if column.least is None else min(wide, max(column.least, len(column.title)))
        for column, wide in zip(columns, natural, strict=True)
    ]
    while (spare := room - sum(least[index] + len(GAP) for index in kept) + len(GAP)) < 0:
        leaving = max(kept, key=lambda index: (columns[index].rank, index))
        if not columns[leaving].rank:
            break
        kept.remove(leaving)
    widths = {index: least[index] for index in kept}
    while spare < 0 and (wide := [index for index in kept if columns[index].least and widths[index] > HARDLY]):
        widths[max(wide, key=widths.__getitem__)] -= 1
        spare += 1
    for index in sorted(kept, key=lambda index: columns[index].rank):
        more = max(0, min(spare, natural[index] - least[index]))
        widths[index] += more
        spare -= more
    return widths


def _line(columns: Sequence[Column], row: Sequence[Cell], widths: dict[int, int]) -> str:
    last = max(widths)
    padded = []
    for index, width in widths.items():
        cell, column = row[index], columns[index]
        text = shorten(cell.text, width, keeps_end=column.keeps_end)
        padding = " " * (width - width_of(text))
        painted = cell.paint(text) if text else text
        if column.is_number:
            padded.append(padding + painted)
        else:
            padded.append(painted if index == last else painted + padding)
    return (INDENT + GAP.join(padded)).rstrip()


def facts(pairs: Iterable[tuple[str, str]], *, width: int) -> Iterator[str]:
    """Yield lines with a name and what it is, one below the other."""
    pairs = list(pairs)
    left = max((len(name) for name, _ in pairs), default=0) + len(GAP)
    for name, text in pairs:
        yield name.ljust(left) + shorten(printable(text), max(width, MIN_WIDTH) - left)


def wrapped(text: str, *, width: int, indent: str = "", mark: str = "") -> list[str]:
    """Return the lines of a sentence; ``mark`` stands before the first of them."""
    room = max(width, MIN_WIDTH) - len(indent) - len(mark)
    lines: list[str] = []
    for word in _pieces(printable(text).split(), room):
        if lines and width_of(lines[-1]) + 1 + width_of(word) <= room:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return [indent + (" " * len(mark) if index else mark) + line for index, line in enumerate(lines)]


def _pieces(words: Iterable[str], room: int) -> Iterator[str]:
    """Yield words, those that are wider than a line in several pieces."""
    for word in words:
        while width_of(word) > room:
            piece = _beginning(word, room)
            yield piece
            word = word[len(piece) :]
        yield word


# Text that came from outside


def printable(text: str) -> str:
    """Return a text on one line, in which what a terminal might obey, or turn around, is seen and not done."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def width_of(text: str) -> int:
    """Return how many places in a terminal a text takes."""
    return len(text) if text.isascii() else sum(map(_width_of_char, text))


def _width_of_char(char: str) -> int:
    if unicodedata.combining(char):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def shorten(text: str, width: int, *, keeps_end: bool = False) -> str:
    """Return a text that takes no more places than ``width``, and shows where it was cut."""
    if width_of(text) <= width:
        return text
    if keeps_end:
        return CUT + _beginning(text[::-1], width - len(CUT))[::-1]
    return _beginning(text, width - len(CUT)) + CUT


def _beginning(text: str, width: int) -> str:
    """Return as much of a text as takes no more places than ``width``."""
    for index, char in enumerate(text):
        width -= _width_of_char(char)
        if width < 0:
            return text[:index]
    return text


# Numbers


def count(value: float) -> str:
    """Return a number of things, short: ``1,234``, ``5.7 M``."""
    if value >= 10_000_000:
        return f"{value / 1_000_000:,.1f} M"
    return f"{value:,.0f}"


def rate(value: float) -> str:
    """Return a number of things a second."""
    return f"{value:.1f}" if 0 < value < 9.95 else count(value)


def size(value: int) -> str:
    """Return a number of bytes: ``512 B``, ``61 MiB``."""
    amount, units = float(value), ["TiB", "GiB", "MiB", "KiB", "B"]
    while amount >= KIB - 0.5 and len(units) > 1:
        amount /= KIB
        units.pop()
    return f"{amount:.1f} {units[-1]}" if amount < 9.95 and len(units) < 5 else f"{amount:,.0f} {units[-1]}"


def milliseconds(value: float | None) -> str:
    """Return a short time, given in seconds: ``0.02 ms``, ``4.1 ms``, ``240 ms``, ``3.2 s``."""
    if value is None:
        return NOTHING
    if abs(value) >= 0.9995:
        return f"{value:,.1f} s"
    places = 2 if 0 < abs(value) < 0.0000995 else 1 if abs(value) < 0.00995 else 0
    return f"{value * 1000:.{places}f} ms"


def duration(seconds: float) -> str:
    """Return a long time, given in seconds, by its two largest units: ``14 s``, ``2 h 05 min``, ``3 d 4 h``."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def ago(at: float | None, now: float) -> str:
    """Return how long ago something was."""
    return NOTHING if at is None else f"{duration(now - at)} ago"


def several(number: float, one: str, many: str | None = None) -> str:
    """Return a number with what it counts: ``1 server``, ``2 servers``."""
    return f"{count(number)} {one if number == 1 else many or one + 's'}"
