"""Small plots of the last minutes, as SVG that needs no script and no inline style."""

from __future__ import annotations

from collections.abc import Sequence

from django.utils.safestring import SafeString, mark_safe

WIDTH = 160
HEIGHT = 36
MARGIN = 2


def sparkline(values: Sequence[float], *, length: int, floor: float = 0.0) -> SafeString:
    """Return the values as a line over a filled area, the newest at the end.

    ``length`` is how many values fill the width, so that a server that has just started has a short line; ``floor`` is
    what the top of the plot stands for at least, so that nothing looks like a mountain.
    """
    if not values:
        return mark_safe(_svg(""))
    shown = values[-length:]
    points = _points(shown, length, max([*shown, floor]) or 1.0)
    line = " ".join(f"{x:g},{y:g}" for x, y in points)
    first, last = points[0], points[-1]
    area = f"{first[0]:g},{HEIGHT} {line} {last[0]:g},{HEIGHT}"
    return mark_safe(_svg(f'<polygon points="{area}"/><polyline points="{line}"/>'))


def _points(values: Sequence[float], length: int, top: float) -> list[tuple[float, float]]:
    step = WIDTH / max(length - 1, 1)
    start = WIDTH - step * (len(values) - 1)
    if len(values) == 1:
        values, start = [*values, *values], WIDTH - step
    room = HEIGHT - 2 * MARGIN
    return [
        (round(start + index * step, 1), round(HEIGHT - MARGIN - max(value, 0) / top * room, 1))
        for index, value in enumerate(values)
    ]


def _svg(content: str) -> str:
    return (
        f'<svg class="mease-plot" viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" aria-hidden="true" '
        f'focusable="false">{content}</svg>'
    )
