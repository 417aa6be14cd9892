"""Tables and numbers as text."""

from __future__ import annotations

import pytest

from djmease import tables
from djmease.tables import Cell, Column, table

COLUMNS = (
    Column(title="routing", least=8),
    Column(title="n", is_number=True),
    Column(title="path", least=6, keeps_end=True, rank=1),
    Column(title="", rank=2),
)
ROWS = [("chat.message", "12", "shop.live.show", "async"), ("news", "3", "a.b", "")]


def test_columns_stand_below_each_other_numbers_at_the_right() -> None:
    assert table(COLUMNS, ROWS, width=80) == [
        "  routing        n  path",
        "  chat.message  12  shop.live.show  async",
        "  news           3  a.b",
    ]


@pytest.mark.parametrize("width", range(40, 20, -1))
def test_a_table_fits_and_columns_leave_by_their_rank(width: int) -> None:
    lines = table(COLUMNS, ROWS, width=width)
    assert max(map(len, lines)) <= width
    assert ("async" in lines[1]) == (width >= 29)
    assert ("path" in lines[0]) == (width >= 22)


def test_what_is_cut_shows_it_at_the_end_that_matters_less() -> None:
    assert table(COLUMNS, ROWS, width=22)[1] == "  chat.me…  12  ….show"


def test_where_nothing_more_can_leave_all_that_may_be_cut_is() -> None:
    columns = (Column(title="first", least=20), Column(title="second", least=16), Column(title="n"))
    row = ("abcdefghijklmnopqrstuvwxyz", "abcdefghijklmnopqrstuvwxyz", "12345")
    assert table(columns, [row], width=36)[1] == "  abcdefghijk…  abcdefghijkl…  12345"
    assert table(columns, [row], width=10)[1] == "  abcde…  abcde…  12345"


def test_a_column_in_which_nothing_stands_is_left_out() -> None:
    assert table(COLUMNS, [("news", "3", "", "async")], width=80) == ["  routing  n", "  news     3  async"]


def test_colour_takes_no_room() -> None:
    row = (Cell("news", lambda text: f"<{text}>"), Cell("3", lambda text: f"<{text}>"), "", "")
    assert table(COLUMNS[:2], [row[:2], ROWS[0][:2]], width=80)[1] == "  <news>           <3>"


def test_wide_characters_take_two_places_and_accents_none() -> None:
    assert tables.width_of("abc") == 3
    assert tables.width_of("東京") == 4
    assert tables.width_of("e\u0301") == 1
    assert tables.shorten("東京都", 5) == "東京…"
    assert tables.shorten("東京都", 4) == "東…"
    assert tables.shorten("東京都", 4, keeps_end=True) == "…都"


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("plain, é 東", "plain, é 東"),
        ("\x1b[2J", r"\x1b[2J"),
        ("a\nb\tc\r", r"a\nb\tc\r"),
        ("\x9b31m", r"\x9b31m"),
        ("a\u202eb", r"a\u202eb"),
        ("\ud800", r"\ud800"),
    ],
)
def test_what_a_terminal_might_obey_is_seen(text: str, seen: str) -> None:
    assert tables.printable(text) == seen
    assert seen in table(COLUMNS[:1], [(text,)], width=80)[1]
    assert seen in "".join(tables.wrapped(text, width=80))
    assert seen in "".join(tables.facts([("name", text)], width=80))


def test_a_sentence_is_wrapped_behind_its_mark() -> None:
    lines = tables.wrapped("one two three four five six seven eight nine ten", width=40, indent="  ", mark="! ")
    assert lines == ["  ! one two three four five six seven", "    eight nine ten"]


def test_a_sentence_of_wide_characters_or_one_long_word_fits_too() -> None:
    lines = tables.wrapped("東京" * 20 + " and " + "x" * 50, width=40, indent="  ")
    assert lines == [
        "  " + "東京" * 9 + "東",
        "  京" + "東京" * 9,
        "  東京 and",
        "  " + "x" * 38,
        "  " + "x" * 12,
    ]
    assert max(map(tables.width_of, lines)) <= 40


@pytest.mark.parametrize(
    ("told", "text"),
    [
        (tables.count(0), "0"),
        (tables.count(1234567), "1,234,567"),
        (tables.count(12345678), "12.3 M"),
        (tables.rate(0), "0"),
        (tables.rate(0.25), "0.2"),
        (tables.rate(9.96), "10"),
        (tables.rate(1234.5), "1,234"),
        (tables.size(0), "0 B"),
        (tables.size(1023), "1,023 B"),
        (tables.size(1024), "1.0 KiB"),
        (tables.size(64 * 1024 * 1024), "64 MiB"),
        (tables.size(3 * 1024**5), "3,072 TiB"),
        (tables.milliseconds(None), "-"),
        (tables.milliseconds(0), "0.0 ms"),
        (tables.milliseconds(0.0000234), "0.02 ms"),
        (tables.milliseconds(0.00012), "0.1 ms"),
        (tables.milliseconds(0.00996), "10 ms"),
        (tables.milliseconds(0.9996), "1.0 s"),
        (tables.milliseconds(0.24), "240 ms"),
        (tables.milliseconds(-0.003), "-3.0 ms"),
        (tables.milliseconds(3.21), "3.2 s"),
        (tables.duration(-5), "0 s"),
        (tables.duration(59.4), "59 s"),
        (tables.duration(61), "1 min"),
        (tables.duration(7500), "2 h 05 min"),
        (tables.duration(90000), "1 d 1 h"),
        (tables.ago(None, 100), "-"),
        (tables.ago(97, 100), "3 s ago"),
        (tables.several(1, "server"), "1 server"),
        (tables.several(2, "server"), "2 servers"),
        (tables.several(2, "body", "bodies"), "2 bodies"),
    ],
)
def test_numbers_are_short(told: str, text: str) -> None:
    assert told == text
