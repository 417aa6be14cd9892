"""Small plots: well-formed, within their box, and the newest value at the end."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import pytest

from djmease.plots import HEIGHT, WIDTH, sparkline


def points(svg: str) -> list[tuple[float, float]]:
    line = re.search(r'polyline points="([^"]*)"', svg)
    return [tuple(map(float, point.split(","))) for point in line[1].split()] if line else []  # type: ignore[misc]


@pytest.mark.parametrize("values", [[], [1.0], [0.0, 0.0], [3.0, -1.0, 7.5], list(range(500)), [1e18, 0.0]])
@pytest.mark.parametrize("length", [1, 60])
def test_it_is_well_formed_and_within_its_box(values: list[float], length: int) -> None:
    svg = sparkline(values, length=length)
    ElementTree.fromstring(svg)
    assert all(-1 <= x <= WIDTH + 1 and 0 <= y <= HEIGHT for x, y in points(svg))
    assert "style" not in svg


def test_the_newest_is_at_the_end_and_a_young_server_has_a_short_line() -> None:
    found = points(sparkline([1.0, 2.0, 4.0], length=60))
    assert found[-1][0] == WIDTH and found[0][0] > WIDTH * 0.9
    assert found[0][1] > found[1][1] > found[2][1]


def test_little_does_not_look_like_much() -> None:
    ((_, low), *_) = points(sparkline([0.001] * 3, length=3, floor=1.0))
    assert low > HEIGHT * 0.9
