"""Numbers, sizes and times as people read them, in the language of the request."""

from __future__ import annotations

import time
from datetime import UTC, datetime

from django.template.defaultfilters import filesizeformat
from django.utils import timezone
from django.utils.formats import get_format
from django.utils.translation import gettext as _

NOTHING = "–"

_UNITS = ((86_400, "%s d"), (3_600, "%s h"), (60, "%s min"))


def count(value: int) -> str:
    """Return a whole number with its thousands apart."""
    return f"{value:,}".replace(",", str(get_format("THOUSAND_SEPARATOR"))) if value >= 1000 else str(value)


def rate(value: float) -> str:
    """Return so many a second."""
    if not value:
        return "0"
    if value < 0.1:
        return f"<{_decimal(0.1)}"
    return _decimal(value) if value < 10 else count(round(value))


def seconds(value: float | None) -> str:
    """Return a length of time in one unit; an ``int`` is told in whole seconds."""
    if value is None:
        return NOTHING
    for size, text in _UNITS:
        if value >= size:
            return _(text) % count(int(value // size))
    if value >= 1:
        return _("%s s") % (round(value) if value >= 10 or isinstance(value, int) else _decimal(value))
    milliseconds = value * 1000
    if 0 < milliseconds < 0.1:
        return _("%s ms") % f"<{_decimal(0.1)}"
    return _("%s ms") % (round(milliseconds) if milliseconds >= 10 or not value else _decimal(milliseconds))


def long_seconds(value: float) -> str:
    """Return a length of time in its two largest units: ``3 h 12 min``."""
    units = [*_UNITS, (1, _("%s s"))]
    for (size, text), (smaller, smaller_text) in zip(units, units[1:], strict=False):
        if value >= size:
            rest = int(value % size // smaller)
            return f"{_(text) % count(int(value // size))} {_(smaller_text) % rest}"
    return _("%s s") % int(value)


def ago(at: float | None, now: float) -> str:
    """Return how long ago a time was, in words."""
    if at is None:
        return NOTHING
    passed = now - at
    return _("just now") if passed < 2 else _("%s ago") % seconds(int(passed))


def size(value: int) -> str:
    """Return so many bytes."""
    return str(filesizeformat(value))


def clock(at: float) -> str:
    """Return the time of the day, in the time zone of the request, with the date where it is another."""
    there, here = _local(at), _local(time.time())
    return there.strftime("%H:%M:%S" if there.date() == here.date() else "%Y-%m-%d %H:%M:%S")


def stamp(at: float) -> str:
    """Return a time as ``<time datetime>`` has it."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")


def _decimal(value: float) -> str:
    return f"{value:.1f}".replace(".", str(get_format("DECIMAL_SEPARATOR")))


def _local(at: float) -> datetime:
    return datetime.fromtimestamp(at, timezone.get_current_timezone())
