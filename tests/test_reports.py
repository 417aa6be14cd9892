"""A report survives its way through JSON, and what is no report is refused by the name of its field."""

from __future__ import annotations

import json
import typing
from dataclasses import MISSING, fields, replace
from types import MappingProxyType
from typing import Any

import pytest

from djmease.reports import (
    CallbackReport,
    ClientReport,
    GroupReport,
    History,
    MessageReport,
    MessageTrace,
    RoutingReport,
    SenderTrace,
    ServerReport,
    read,
    read_server,
    to_plain,
)
from tests import reported

FULL = reported.server(
    callbacks=(
        reported.sender(heard=4, calls=3, rate=0.5, delivered=9, errors=1, last_error="ValueError: x", p50=0.1, p99=2),
        reported.sender("chat.*", is_async=True),
        reported.receiver(calls=1, last_at=5.0),
    ),
    unrouted=(reported.unrouted("nobody", 2),),
    messages=(reported.message(), reported.message("2", body="x", lag=None)),
    closed={"1000": 3},
    lost={"dropped": 1},
    trouble="it is deaf",
    presence_trouble="it may not",
)
CLIENT = ClientReport(
    server="1",
    id="2",
    user=None,
    user_key=None,
    address="::1",
    groups=("a", "b"),
    connected_at=1.5,
    received=0,
    unsent=9,
)
TRACE = MessageTrace(
    server="1", host="h", pid=2, clients=3, chosen=1, lag=-0.1, waited=0, senders=(reported.sender_trace(error="x"),)
)
KINDS = [
    CallbackReport,
    ClientReport,
    GroupReport,
    History,
    MessageReport,
    MessageTrace,
    RoutingReport,
    SenderTrace,
    ServerReport,
]
EXAMPLES: dict[type[Any], Any] = {
    CallbackReport: FULL.callbacks[0],
    ClientReport: CLIENT,
    GroupReport: GroupReport(name="room.7", connections=3, persons=2),
    History: FULL.history,
    MessageReport: FULL.messages[0],
    MessageTrace: TRACE,
    RoutingReport: FULL.unrouted[0],
    SenderTrace: TRACE.senders[0],
    ServerReport: FULL,
}


def through_json(value: Any) -> Any:
    return json.loads(json.dumps(to_plain(value)))


def in_redis(report: ServerReport) -> tuple[bytes, bytes]:
    parts = reported.fields_of(report)
    return json.dumps(parts["report"]).encode(), json.dumps(parts["callbacks"]).encode()


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_is_read_again(kind: type[Any]) -> None:
    assert read(kind, through_json(EXAMPLES[kind])) == EXAMPLES[kind]


def test_a_report_is_read_from_its_two_parts() -> None:
    assert read_server(*in_redis(FULL)) == FULL


def test_what_was_never_called_is_described_alone() -> None:
    report, callbacks = in_redis(FULL)
    said = json.loads(report)
    said["callbacks"] = {"2": {"calls": 7}}
    found = read_server(json.dumps(said).encode(), callbacks)
    assert [callback.calls for callback in found.callbacks] == [0, 0, 7]
    assert [callback.path for callback in found.callbacks] == [callback.path for callback in FULL.callbacks]


def test_counts_of_callbacks_that_are_not_described_are_left() -> None:
    report, _ = in_redis(FULL)
    assert read_server(report, b"[]").callbacks == ()


def test_a_report_without_counts_is_read() -> None:
    report, callbacks = in_redis(FULL)
    said = json.loads(report)
    del said["callbacks"]
    assert len(read_server(json.dumps(said).encode(), callbacks).callbacks) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_fields_of_a_newer_version_are_left(kind: type[Any]) -> None:
    assert read(kind, {**through_json(EXAMPLES[kind]), "novelty": {"a": [1]}}) == EXAMPLES[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_fields_that_an_older_version_does_not_know_have_their_defaults(kind: type[Any]) -> None:
    plain = through_json(EXAMPLES[kind])
    optional = [each for each in fields(kind) if (each.default, each.default_factory) != (MISSING, MISSING)]
    needed = {each.name: plain[each.name] for each in fields(kind) if each not in optional}
    found = read(kind, needed)
    for each in optional:
        default = each.default if each.default is not MISSING else each.default_factory()  # type: ignore[misc]
        assert getattr(found, each.name) == default


def needed() -> list[tuple[type[Any], str]]:
    return [
        (kind, each.name)
        for kind in KINDS
        for each in fields(kind)
        if (each.default, each.default_factory) == (MISSING, MISSING)
    ]


@pytest.mark.parametrize(("kind", "name"), needed())
def test_a_field_that_is_missing_is_named(kind: type[Any], name: str) -> None:
    plain = through_json(EXAMPLES[kind])
    del plain[name]
    with pytest.raises(ValueError, match=rf"{kind.__name__}.*'{name}'"):
        read(kind, plain)


def fields_with_wrong_values() -> list[tuple[type[Any], str, list[Any]]]:
    """Return each field with values that its type does not allow."""
    found = []
    for kind in KINDS:
        for name, hint in typing.get_type_hints(kind).items():
            told = str(hint)
            wrong: list[Any] = [[1], {"a": "b"}, True, "text", 3, None, float("nan"), 10**40]
            right: list[Any] = []
            if hint is bool:
                right = [True]
            elif hint in (str, str | None):
                right = ["text", None] if "None" in told else ["text"]
            elif hint in (int, int | None, float, float | None):
                right = [3, None] if "None" in told else [3]
            elif told.startswith("tuple[float"):
                right = [[1]]
            elif hint is History:
                right = [{"a": "b"}]  # All that it has is optional.
            found.append((kind, name, [value for value in wrong if repr(value) not in map(repr, right)]))
    return found


@pytest.mark.parametrize(("kind", "name", "values"), fields_with_wrong_values())
def test_a_field_of_another_type_is_refused(kind: type[Any], name: str, values: list[Any]) -> None:
    plain = through_json(EXAMPLES[kind])
    assert len(values) > 5
    for value in values:
        with pytest.raises(ValueError, match="Report|Trace|History") as caught:
            read(kind, {**plain, name: value})
        assert len(str(caught.value)) < 200


def test_the_field_that_is_wrong_is_named_with_its_value() -> None:
    with pytest.raises(ValueError, match=r"^ServerReport\.clients is '3'$"):
        read(ServerReport, {**through_json(FULL), "clients": "3"})
    with pytest.raises(ValueError, match=r"^MessageReport\.size is None$"):
        read(ServerReport, {**through_json(FULL), "messages": [{**through_json(FULL.messages[0]), "size": None}]})


@pytest.mark.parametrize("value", [1e300, -1e300, float("inf"), float("nan"), 10**30])
def test_numbers_that_nobody_could_show_are_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="ServerReport.memory"):
        read(ServerReport, {**through_json(FULL), "memory": value})


@pytest.mark.parametrize("value", [None, 3, "text", [1], True])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_object_is_refused(kind: type[Any], value: Any) -> None:
    with pytest.raises(ValueError, match=f"a {kind.__name__} is an object, not a "):
        read(kind, value)


@pytest.mark.parametrize(
    ("report", "callbacks", "told"),
    [
        (b"", b"[]", "it is not JSON"),
        (b"{}", b"\xff", "it is not JSON"),
        (b"[" * 100_000, b"[]", "it is not JSON"),
        (b"[]", b"[]", "it is not a report"),
        (b"{}", b"{}", "it is not a report"),
        (b'{"callbacks": []}', b"[]", r"ServerReport.callbacks is \[\]"),
        (b"{}", b"[3]", "something that is no callback"),
        (b'{"callbacks": {"0": 3}}', b"[{}]", "something that is no callback"),
        (b"{}", b"[{}]", "ServerReport|CallbackReport"),
        (b"{}", b"[]", "ServerReport: .*'id'"),
    ],
)
def test_garbage_is_refused_with_its_reason(report: bytes, callbacks: bytes, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        read_server(report, callbacks)


def test_reports_cannot_be_changed() -> None:
    found = read_server(*in_redis(FULL))
    assert isinstance(found.lost, MappingProxyType) and isinstance(found.messages, tuple)
    assert replace(found, clients=1).clients == 1
    assert hash(found.messages[0]) == hash(FULL.messages[0])


def test_plain_is_what_json_can_hold() -> None:
    plain = to_plain(FULL)
    assert plain["closed"] == {"1000": 3} and type(plain["closed"]) is dict
    assert plain["history"]["sent"] == [100.0, 340.0]
    assert plain["callbacks"][0]["path"] == "djmease.senders.broadcast"
    assert to_plain([FULL.history, {"a": (1, None)}]) == [plain["history"], {"a": [1, None]}]
