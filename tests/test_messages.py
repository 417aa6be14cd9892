"""The form of a message in Redis."""

from __future__ import annotations

import datetime
import decimal
import uuid
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from djmease.messages import check_group, check_routing, decode, encode, encode_body, is_valid_name, primary_key

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abc", max_size=3), inner, max_size=4),
    max_leaves=10,
)


def round_trip(message: Any, **targets: Any) -> Any:
    kind, body = encode_body(message)
    return decode("a", encode(kind=kind, body=body, message_id="0" * 16, published_at=1.5, **targets))


@given(st.text(st.characters(exclude_categories=["Cs"])) | st.binary() | json_values)
def test_what_is_encoded_decodes_to_the_same(message: Any) -> None:
    decoded = round_trip(message)
    assert decoded.body == message
    assert (decoded.routing, decoded.id, decoded.published_at) == ("a", "0" * 16, 1.5)


@given(st.binary(max_size=200))
def test_any_payload_is_a_message_or_a_value_error(payload: bytes) -> None:
    for data in (payload, b"\x00mease1 " + payload, b"\x00mease1 j 0 0\n" + payload):
        with suppress(ValueError):
            decode("a", data)


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"\x00mease2 t 0 0\nx", "version"),
        (b"\x00mease1 t 0\nx", "cut short"),
        (b"\x00mease1 t 0 0", "cut short"),
        (b"\x00mease1 x 0 0\nx", "kind of body"),
        (b"\x00mease1 t \xff 0\nx", "not an id"),
        (b"\x00mease1 t 0 soon\nx", "float"),
        (b"\x00mease1 t 0 nan\nx", "b'nan' is not a time in seconds"),
        (b"\x00mease1 t 0 inf\nx", "b'inf' is not a time in seconds"),
        (b"\x00mease1 t 0 -1\nx", "b'-1' is not a time in seconds"),
        (b"\x00mease1 t 0 1767225600000\nx", "b'1767225600000' is not a time in seconds"),
        (b"\x00mease1 j 0 0\n" + b"[" * 100_000, "nested too deeply"),
        (b"\x00mease1 j 0 0\nnope", "Expecting value"),
        (b"\xff", "neither an envelope nor text"),
    ],
)
def test_what_cannot_be_read_says_why(payload: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        decode("a", payload)


def test_any_other_payload_is_plain_text() -> None:
    message = decode("websocket", b"Hello world !")
    assert (message.body, message.size, len(message.id)) == ("Hello world !", 13, 16)


def test_a_field_of_a_later_version_is_passed_over() -> None:
    assert decode("a", b"\x00mease1 t 0 0 offset=7 group=x\nhi").groups == ("x",)


@given(st.lists(st.text(min_size=1), min_size=1))
def test_users_may_have_any_text_as_their_key(users: list[str]) -> None:
    try:
        "".join(users).encode()
    except UnicodeEncodeError:
        return
    assert round_trip("x", users=users).users == tuple(users)


def test_what_django_knows_becomes_json() -> None:
    key = uuid.UUID(int=7)
    message = {"when": datetime.date(2026, 1, 2), "price": decimal.Decimal("1.50"), "key": key, "ü": [None, True]}
    assert round_trip(message).body == {"when": "2026-01-02", "price": "1.50", "key": str(key), "ü": [None, True]}
    assert round_trip(bytearray(b"\x00")).body == round_trip(memoryview(b"\x00")).body == b"\x00"


@pytest.mark.parametrize("message", [float("nan"), {"x": float("inf")}, object(), {1, 2}, "\ud800", ["\ud800"]])
def test_what_json_cannot_hold_shows_where_it_is_encoded(message: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        encode_body(message)


@pytest.mark.parametrize("name", ["a", "chat.message", "A-Z_0:9/@+", "x" * 200])
def test_valid_names(name: str) -> None:
    assert is_valid_name(name)
    check_routing(name)
    assert check_group(name) == name


@pytest.mark.parametrize("name", ["", "a b", "ü", "a*", "x" * 201, "a\n", None, 7, b"a"])
def test_bad_names_are_named(name: Any) -> None:
    for check in (check_routing, check_group):
        with pytest.raises(ValueError, match="1 to 200 of letters") as caught:
            check(name)
        assert repr(name) in str(caught.value)


def test_names_of_ours_are_refused() -> None:
    for check in (check_routing, check_group):
        with pytest.raises(ValueError, match="reserved"):
            check("mease.presence")


def test_a_primary_key_is_text_and_must_be_there() -> None:
    assert primary_key(7) == "7"
    for nobody in (None, ""):
        with pytest.raises(ValueError, match="not saved"):
            primary_key(nobody)
