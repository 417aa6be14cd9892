"""What is registered, and what would run for a routing, as text for a terminal and as what JSON can hold."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from django.core.management.color import Style

from djmease import loader
from djmease.loader import Fault
from djmease.publishing import UnknownRouting, check_routing
from djmease.registry import Callback, GroupRule, Registry, Rule, matches, path_of
from djmease.tables import Column, Paint, Row, several, table, wrapped

_CALLBACK = (
    Column(title="", rank=2),
    Column(title="options", rank=4, least=12),
    Column(title="declared in", rank=1, least=16, keeps_end=True),
)
ROUTE_COLUMNS = (Column(title="routing", least=12), Column(title="sender", least=26, keeps_end=True), *_CALLBACK)
RECEIVER_COLUMNS = (
    Column(title="receiver", least=26, keeps_end=True),
    Column(title="hears", least=12),
    Column(title="from whom", rank=3, least=12),
    *_CALLBACK,
)
OPENER_COLUMNS = (Column(title="opener", least=26, keeps_end=True), *_CALLBACK)
CLOSER_COLUMNS = (Column(title="closer", least=26, keeps_end=True), *_CALLBACK)
GROUP_COLUMNS = (
    Column(title="group", least=12),
    Column(title="who may join", least=12),
    Column(title="declared in", rank=1, least=16, keeps_end=True),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolution:
    """What becomes of one routing, by the settings of this process."""

    routing: str
    senders: tuple[tuple[str, Callback], ...]
    """In their order, each with the routing or pattern by which it is found."""
    refusal: str | None
    """Why ``publish`` does not take it."""
    closest: tuple[str, ...]
    """Routings that look like it, where no sender would run."""


def resolve(registry: Registry, routing: str) -> Resolution:
    """Return which senders would run for a routing, and whether it can be published on."""
    refusal = _refusal(routing)
    found: dict[int, tuple[str, Callback]] = {}
    for pattern, sender in _routes(registry):
        if refusal is None and matches(pattern, routing):
            found.setdefault(id(sender.function), (pattern, sender))
    return Resolution(
        routing=routing,
        senders=tuple(found.values()),
        refusal=refusal,
        closest=() if found else tuple(loader.closest_routings(routing)),
    )


def _refusal(routing: str) -> str | None:
    try:
        check_routing(routing)
    except (ValueError, UnknownRouting) as error:
        return str(error)
    return None


def _routes(registry: Registry) -> Iterator[tuple[str, Callback]]:
    return ((route.pattern, sender) for route in registry.routes for sender in route.senders)


# As text


def registry_text(registry: Registry, faults: Sequence[Fault], *, width: int, style: Style) -> str:
    """Return all that is registered and what is wrong with it, as lines of at most ``width`` characters."""
    routes = [(pattern, sender.path, *_cells(sender)) for pattern, sender in _routes(registry)]
    receivers = [(each.path, _hears(each), _whom(each.rule), *_cells(each)) for each in registry.receivers]
    tables: list[tuple[str, Sequence[Column], Sequence[Row]]] = [
        ("Routes", ROUTE_COLUMNS, routes),
        ("Receivers", RECEIVER_COLUMNS, receivers),
        ("Openers", OPENER_COLUMNS, [(each.path, *_cells(each)) for each in registry.openers]),
        ("Closers", CLOSER_COLUMNS, [(each.path, *_cells(each)) for each in registry.closers]),
        (
            "Groups that pages may join",
            GROUP_COLUMNS,
            [(each.pattern, _who_joins(each), each.source) for each in registry.groups],
        ),
    ]
    sections = [_section(title, columns, rows, width, style) for title, columns, rows in tables if rows]
    if not routes:
        none = "No sender is registered: MEASE_ROUTES is empty, and no mease_registry has one."
        sections.insert(0, [style.WARNING(line) for line in wrapped(none, width=width)])
    return _joined([*sections, fault_lines(faults, width=width, style=style)])


def resolution_text(found: Resolution, faults: Sequence[Fault], *, width: int, style: Style) -> str:
    """Return what becomes of a routing, as lines of at most ``width`` characters."""
    answer = [_paint(found, style)(line) for line in wrapped(_answer(found), width=width)]
    rows = [(pattern, sender.path, *_cells(sender)) for pattern, sender in found.senders]
    senders = _section("Senders, in this order", ROUTE_COLUMNS, rows, width, style) if rows else []
    return _joined([answer, senders, fault_lines(faults, width=width, style=style)])


def _answer(found: Resolution) -> str:
    if found.refusal is not None:
        return f"{found.routing} cannot be published. {found.refusal}"
    if found.senders:
        return f"{found.routing} can be published, and {several(len(found.senders), 'sender')} would run."
    meant = f" Did you mean {' or '.join(map(repr, found.closest))}?" if found.closest else ""
    return f"{found.routing} can be published, but no sender would run.{meant}"


def _paint(found: Resolution, style: Style) -> Paint:
    if found.refusal is not None:
        return style.ERROR
    return style.SUCCESS if found.senders else style.WARNING


def fault_lines(faults: Sequence[Fault], *, width: int, style: Style) -> list[str]:
    """Return what is wrong with the settings and callbacks, each with its cure."""
    lines = [style.MIGRATE_HEADING("What is wrong")] if faults else []
    for fault in sorted(faults, key=lambda fault: not fault.is_error):
        paint = style.ERROR if fault.is_error else style.WARNING
        lines += map(paint, wrapped(f"{fault.message} ({fault.id})", width=width, indent="  ", mark="! "))
        lines += wrapped(fault.hint, width=width, indent="    ")
    return lines


def _section(title: str, columns: Sequence[Column], rows: Iterable[Row], width: int, style: Style) -> list[str]:
    return [style.MIGRATE_HEADING(title), *table(columns, rows, width=width, heading=style.MIGRATE_LABEL)]


def _joined(sections: Iterable[Sequence[str]]) -> str:
    return "\n\n".join("\n".join(lines) for lines in sections if lines)


def _cells(callback: Callback) -> tuple[str, str, str]:
    options = ", ".join(f"{name}={value!r}" for name, value in _options(callback).items())
    return "async" if callback.is_async else "", options, callback.source


def _hears(receiver: Callback) -> str:
    if receiver.types:
        return f"type {', '.join(receiver.types)}"
    return "JSON" if receiver.wants_json else "all"


def _whom(rule: Rule | None) -> str:
    told = [] if rule is None else [f"may {permission}" for permission in rule.permissions]
    if rule is not None and rule.login_required:
        told.insert(0, "logged in")
    if rule is not None and rule.test is not None:
        told.append(f"passes {path_of(rule.test)}")
    return ", ".join(told)


def _who_joins(group: GroupRule) -> str:
    if not group.may_be_joined:
        return "nobody"
    return "everybody" if group.rule is None else _whom(group.rule)


def _options(callback: Callback) -> dict[str, Any]:
    """Return the callback's own options, by lower-case names."""
    function = callback.function
    return dict(function.keywords) if isinstance(function, functools.partial) else {}


# As what JSON can hold


def registry_json(registry: Registry, faults: Sequence[Fault]) -> dict[str, Any]:
    """Return all that is registered and what is wrong with it."""
    return {
        "routes": [{"routing": pattern, **_callback_json(sender)} for pattern, sender in _routes(registry)],
        "receivers": [
            {**_callback_json(each), "json": each.wants_json, "types": list(each.types), **_rule_json(each.rule)}
            for each in registry.receivers
        ],
        "openers": [_callback_json(each) for each in registry.openers],
        "closers": [_callback_json(each) for each in registry.closers],
        "groups": [
            {
                "group": each.pattern,
                "source": each.source,
                "may_be_joined": each.may_be_joined,
                **_rule_json(each.rule),
            }
            for each in registry.groups
        ],
        "faults": [asdict(fault) for fault in faults],
    }


def resolution_json(found: Resolution, faults: Sequence[Fault]) -> dict[str, Any]:
    """Return what becomes of a routing."""
    return {
        "routing": found.routing,
        "refusal": found.refusal,
        "closest": list(found.closest),
        "senders": [{"routing": pattern, **_callback_json(sender)} for pattern, sender in found.senders],
        "faults": [asdict(fault) for fault in faults],
    }


def _callback_json(callback: Callback) -> dict[str, Any]:
    return {
        "path": callback.path,
        "source": callback.source,
        "is_async": callback.is_async,
        "options": {name: repr(value) for name, value in _options(callback).items()},
    }


def _rule_json(rule: Rule | None) -> dict[str, Any]:
    rule = rule or Rule()
    return {
        "login_required": rule.login_required,
        "permission_required": list(rule.permissions),
        "user_passes_test": None if rule.test is None else path_of(rule.test),
    }
