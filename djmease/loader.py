"""From settings and ``mease_registry`` modules to a registry, with the faults found on the way.

The same faults are reported by ``manage.py check`` and refused by the server, so they are values and not exceptions.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from django.apps import apps
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.utils.module_loading import autodiscover_modules

from djmease.messages import NAME_RULE, RESERVED_PREFIX, is_valid_name
from djmease.registry import (
    Callback,
    Declaration,
    GroupRule,
    Kind,
    Registry,
    Route,
    Rule,
    bind,
    declarations,
    is_async_callable,
    is_generator,
    is_pattern,
    matches,
    options_of,
    path_of,
    unique,
)
from djmease.roll import ROUTING

REGISTRY_MODULE = "mease_registry"

_LISTS: tuple[tuple[str, Kind, str], ...] = (
    ("MEASE_RECEIVERS", "receiver", "RECEIVER"),
    ("MEASE_OPENERS", "opener", "OPENER"),
    ("MEASE_CLOSERS", "closer", "CLOSER"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Something wrong with the settings or a callback: what it is, and what cures it."""

    id: str
    message: str
    hint: str
    is_error: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    registry: Registry
    faults: tuple[Fault, ...]


def autodiscover() -> None:
    """Import the ``mease_registry`` of every installed app; only a missing one is passed over."""
    if settings.MEASE_AUTODISCOVER:
        autodiscover_modules(REGISTRY_MODULE)


def load() -> Loaded:
    """Resolve everything that is declared: settings first, then decorators in the order of ``INSTALLED_APPS``."""
    faults: list[Fault] = []
    declared = [*_declared_in_settings(faults), *decorated()]
    declared.extend(_route_of_presence(declared))
    resolved = [(declaration, _resolve(declaration, faults)) for declaration in declared]
    _warn_of_late(declared, faults)
    _warn_of_duplicates(resolved, faults)
    routes = [
        Route(pattern=pattern, senders=(callback,), source=declaration.source)
        for declaration, callback in resolved
        if callback and callback.kind == "sender"
        for pattern in _checked_patterns(declaration, faults)
    ]

    def of(kind: Kind) -> tuple[Callback, ...]:
        return unique(callback for _, callback in resolved if callback and callback.kind == kind)

    registry = Registry(
        routes=routes,
        receivers=of("receiver"),
        openers=of("opener"),
        closers=of("closer"),
        groups=_group_rules(faults),
    )
    return Loaded(registry=registry, faults=tuple(faults))


def decorated() -> list[Declaration]:
    """Return what decorators declared, in the order of ``INSTALLED_APPS``, without what settings switch off."""
    order = {config.name: index for index, config in enumerate(apps.get_app_configs())}
    switched_off = _switched_off()
    kept = [_without(declaration, switched_off) for declaration in declarations]

    def app_index(declaration: Declaration) -> int:
        module: str = getattr(declaration.target, "__module__", None) or ""
        config = apps.get_containing_app_config(module)
        return order[config.name] if config else len(order)

    return sorted((declaration for declaration in kept if declaration), key=app_index)


def is_sent(routing: str) -> bool:
    """Tell whether a sender is registered for ``routing``, by names alone: nothing is imported."""
    routes, declared = _routes(), _declared()
    if routes.get(routing) is not None or (routing in declared.names and routing not in routes):
        return True
    patterns = (*_patterns_among(tuple(routes)), *declared.patterns)
    return any(routes.get(pattern, pattern) is not None and matches(pattern, routing) for pattern in patterns)


def closest_routings(routing: str) -> list[str]:
    """Return up to three registered routings that look like ``routing``, the closest first."""
    return list(_closest_among(frozenset(_known_patterns()))(routing))


@functools.lru_cache(maxsize=1)
def _closest_among(known: frozenset[str]) -> Callable[[str], list[str]]:
    # To compare with a thousand names takes a tenth of a second, and the status page asks again and again.
    names = sorted(known)
    return functools.lru_cache(maxsize=256)(lambda routing: difflib.get_close_matches(routing, names, n=3, cutoff=0.5))


def _known_patterns() -> Iterator[str]:
    routes, declared = _routes(), _declared()
    yield from (pattern for pattern, value in routes.items() if value is not None and isinstance(pattern, str))
    for pattern in (*declared.names, *declared.patterns):
        if routes.get(pattern, pattern) is not None:
            yield pattern


@dataclass(frozen=True, slots=True)
class _Declared:
    """For what decorators have declared senders, in this process."""

    declarations: list[Declaration]
    names: frozenset[str]
    patterns: tuple[str, ...]
    """Those with ``*`` or ``?``."""


_last_declared = _Declared([], frozenset(), ())


def _declared() -> _Declared:
    """Return it, sorted out anew where a decorator has declared more."""
    global _last_declared
    # It is quick to compare with lists of the same objects.
    if _last_declared.declarations != declarations:
        copied = declarations[:]
        said = tuple(pattern for each in copied for pattern in each.patterns if isinstance(pattern, str))
        _last_declared = _Declared(copied, frozenset(said).difference(_patterns_among(said)), _patterns_among(said))
    return _last_declared


@functools.lru_cache(maxsize=2)
def _patterns_among(names: tuple[Any, ...]) -> tuple[str, ...]:
    return tuple(name for name in names if isinstance(name, str) and is_pattern(name))


def _routes() -> dict[str, Any]:
    """Return the routes of the settings, none where they are no dict: a check says so, and not a traceback."""
    routes = settings.MEASE_ROUTES
    return routes if isinstance(routes, dict) else {}


def _switched_off() -> frozenset[str]:
    return frozenset(pattern for pattern, value in _routes().items() if value is None)


def _without(declaration: Declaration, switched_off: frozenset[str]) -> Declaration | None:
    if declaration.kind != "sender" or switched_off.isdisjoint(declaration.patterns):
        return declaration
    patterns = tuple(pattern for pattern in declaration.patterns if pattern not in switched_off)
    if not patterns:
        return None
    return Declaration(
        kind=declaration.kind,
        target=declaration.target,
        patterns=patterns,
        source=declaration.source,
        options=declaration.options,
        late=declaration.late,
    )


def _route_of_presence(declared: Iterable[Declaration]) -> Iterator[Declaration]:
    """Yield who writes joins and leaves to the pages, where groups have presence and the site says nothing of it."""
    is_told = any(ROUTING in declaration.patterns for declaration in declared)
    if settings.MEASE_PRESENCE and not is_told and ROUTING not in _switched_off():
        yield Declaration(
            kind="sender", target="djmease.senders.broadcast", patterns=(ROUTING,), source="MEASE_PRESENCE"
        )


# Who is asked whose a handshake is


def authenticators() -> tuple[Callable[[Any], Any], ...]:
    """Import what ``MEASE_AUTHENTICATORS`` names. Raises ``ImproperlyConfigured`` with the faults there are."""
    found, faults = _authenticators()
    if faults:
        raise ImproperlyConfigured("\n".join(f"{fault.message} {fault.hint}" for fault in faults))
    return found


def authenticator_faults() -> list[Fault]:
    """Return what is wrong with ``MEASE_AUTHENTICATORS``."""
    return _authenticators()[1]


def _authenticators() -> tuple[tuple[Callable[[Any], Any], ...], list[Fault]]:
    faults: list[Fault] = []
    setting = "MEASE_AUTHENTICATORS"
    value = settings.MEASE_AUTHENTICATORS
    if not isinstance(value, (list, tuple)):
        return (), [_wrong_type(setting, value, f"a list of dotted paths, for example {[str(value)]!r}")]
    places = {f"{setting}[{index}]": path for index, path in enumerate(value)}
    found = [_authenticator(place, path, faults) for place, path in places.items()]
    return tuple(authenticator for authenticator in found if authenticator is not None), faults


def _authenticator(place: str, path: Any, faults: list[Fault]) -> Callable[[Any], Any] | None:
    try:
        function = import_path(path) if isinstance(path, str) else None
    except ImportError as error:
        faults.append(Fault(id="djmease.E002", message=f"{place}: {error}", hint=_IMPORT_HINT))
        return None
    fault = _fault_of_authenticator(place, path, function)
    if fault is not None:
        faults.append(fault)
        return None
    return function


def _fault_of_authenticator(place: str, path: Any, function: Any) -> Fault | None:
    if not isinstance(path, str):
        return _wrong_type(place, path, "a dotted path as a string")
    if not callable(function):
        message = f"{place}: {path!r} is {function!r}, which cannot be called."
        return Fault(id="djmease.E005", message=message, hint="Name a function that takes the request.")
    if is_async_callable(function):
        message = f"{place}: {path} is an async def, and authenticators run in a thread."
        return Fault(id="djmease.E011", message=message, hint="Declare it with def; it may block and use the ORM.")
    if not _takes(function, 1):
        message = f"{place}: {path} cannot be called with the request alone."
        return Fault(id="djmease.E006", message=message, hint="An authenticator takes one argument, the request.")
    return None


def _takes(function: Callable[..., Any], count: int, *names: str) -> bool:
    """Tell whether a function can be called with so many arguments by position, and those by name."""
    try:
        inspect.signature(function).bind(*[None] * count, **dict.fromkeys(names))
    except TypeError:
        return False
    except ValueError:  # Some of what is written in C does not say what it takes.
        return True
    return True


# What settings declare


def _declared_in_settings(faults: list[Fault]) -> Iterator[Declaration]:
    yield from _declared_routes(faults)
    for setting, kind, key in _LISTS:
        yield from _declared_list(setting, kind, key, faults)


def _declared_routes(faults: list[Fault]) -> Iterator[Declaration]:
    routes = settings.MEASE_ROUTES
    if not isinstance(routes, dict):
        faults.append(_wrong_type("MEASE_ROUTES", routes, "a dict of routings to senders"))
        return
    for pattern, value in routes.items():
        place = f"MEASE_ROUTES[{pattern!r}]"
        if not isinstance(pattern, str):
            faults.append(_wrong_type(f"the key {pattern!r} of MEASE_ROUTES", pattern, "a string"))
        elif value is None:
            _check_pattern(pattern, place, faults)
        else:
            options = _options_of_entry(place, value, "SENDERS", faults)
            for path in _paths_of_route(place, value, faults):
                yield Declaration(kind="sender", target=path, patterns=(pattern,), source=place, options=options)


def _paths_of_route(place: str, value: Any, faults: list[Fault]) -> list[str]:
    if isinstance(value, dict):
        place, value = f"{place}['SENDERS']", value.get("SENDERS", ())
        if value == ():
            return []
    if isinstance(value, str):
        return [value]
    if not isinstance(value, (list, tuple)):
        faults.append(_wrong_type(place, value, "a dotted path, a list of them, a dict with SENDERS, or None"))
        return []
    if not value:
        faults.append(
            Fault(
                id="djmease.E004",
                message=f"{place} has no sender.",
                hint="Name the dotted path of a sender, for example 'djmease.senders.broadcast', or say None to "
                "switch off what decorators registered for it.",
            )
        )
    return list(_strings(place, value, faults))


def _declared_list(setting: str, kind: Kind, key: str, faults: list[Fault]) -> Iterator[Declaration]:
    value = getattr(settings, setting)
    if not isinstance(value, (list, tuple)):
        faults.append(_wrong_type(setting, value, f"a list of dotted paths, for example {[str(value)]!r}"))
        return
    for index, entry in enumerate(value):
        place = f"{setting}[{index}]"
        options = _options_of_entry(place, entry, key, faults)
        paths = [entry.get(key, ())] if isinstance(entry, dict) else [entry]
        for path in _strings(place, [path for path in paths if path != ()], faults):
            yield Declaration(kind=kind, target=path, source=place, options=options)


def _strings(place: str, values: Iterable[Any], faults: list[Fault]) -> Iterator[str]:
    for value in values:
        if isinstance(value, str):
            yield value
        else:
            faults.append(_wrong_type(place, value, "a dotted path as a string"))


def _options_of_entry(place: str, entry: Any, key: str, faults: list[Fault]) -> dict[str, Any]:
    """Return what a dict says beside the callback, by the lower-case names that decorators use."""
    if not isinstance(entry, dict):
        return {}
    if key not in entry:
        faults.append(
            Fault(id="djmease.E003", message=f"{place} has no {key!r}.", hint=f"Add {key!r} with a dotted path.")
        )
    options = {}
    for name, value in entry.items():
        if not isinstance(name, str) or name != name.upper():
            hint = f"Options are upper-case keys{f': say {name.upper()!r}' if isinstance(name, str) else ''}."
            faults.append(Fault(id="djmease.E003", message=f"{place} has an unknown option {name!r}.", hint=hint))
        elif name != key:
            options[name.lower()] = value
    return options


def _wrong_type(place: str, value: Any, expected: str) -> Fault:
    return Fault(
        id="djmease.E001",
        message=f"{place} is {value!r}, of the type {type(value).__name__}.",
        hint=f"It should be {expected}.",
    )


# Which groups clients may join by themselves


GROUP_OPTIONS = ("login_required", "permission_required", "user_passes_test")


def _group_rules(faults: list[Fault]) -> Iterator[GroupRule]:
    groups = settings.MEASE_GROUPS
    if not isinstance(groups, dict):
        faults.append(_wrong_type("MEASE_GROUPS", groups, "a dict of groups or patterns to True, or to options"))
        return
    for pattern, value in groups.items():
        place = f"MEASE_GROUPS[{pattern!r}]"
        if _check_pattern(pattern, place, faults, "group"):
            rule = _group_rule(place, pattern, value, faults)
            if rule is not None:
                yield rule


def _group_rule(place: str, pattern: str, value: Any, faults: list[Fault]) -> GroupRule | None:
    """Return the rule of one entry; one with a fault lets nobody join."""
    if isinstance(value, bool):
        return GroupRule(pattern=pattern, source=place, may_be_joined=value)
    if not isinstance(value, dict):
        faults.append(_wrong_type(place, value, "True, False, or a dict with options such as 'LOGIN_REQUIRED'"))
        return None
    before = len(faults)
    for name in value:
        if not isinstance(name, str) or name != name.upper() or name.lower() not in GROUP_OPTIONS:
            hint = f"Its options are: {', '.join(map(str.upper, GROUP_OPTIONS))}."
            faults.append(Fault(id="djmease.E003", message=f"{place} has an unknown option {name!r}.", hint=hint))
    options = {name.lower(): each for name, each in value.items() if isinstance(name, str)}
    rule = _Options(place, options, faults).rule()
    test = None if rule is None else rule.test
    takes_group = test is not None and _takes(test, 1, "group")
    if test is not None and not takes_group and not _takes(test, 1):
        message = f"{place}: {path_of(test)} cannot be called with a user, nor with a user and a group."
        hint = "A test takes the user, and the group's name if it has a parameter of the name 'group'."
        faults.append(Fault(id="djmease.E006", message=message, hint=hint))
    if len(faults) > before:
        return None
    return GroupRule(pattern=pattern, source=place, rule=rule, test_takes_group=takes_group)


# From a declaration to a callback


def _resolve(declaration: Declaration, faults: list[Fault]) -> Callback | None:
    target = declaration.target
    try:
        function = import_path(target) if isinstance(target, str) else target
        path = target if isinstance(target, str) else path_of(target)
    except ImportError as error:
        faults.append(Fault(id="djmease.E002", message=f"{declaration.source}: {error}", hint=_IMPORT_HINT))
        return None
    if not callable(function):
        faults.append(
            Fault(
                id="djmease.E005",
                message=f"{declaration.source}: {path!r} is {function!r}, which cannot be called.",
                hint=f"Name a function, or an object with a __call__ method, as the {declaration.kind}.",
            )
        )
        return None
    if is_generator(function):
        message = f"{declaration.source}: {path} is a generator, and calling it runs nothing of it."
        faults.append(Fault(id="djmease.E005", message=message, hint=_YIELD_HINT))
        return None
    return _bound(declaration, function, path, faults)


_IMPORT_HINT = "A dotted path is 'package.module.name' of something importable from where manage.py runs."


_YIELD_HINT = "Take the yield out of it, and write to the clients where it stands."


def _bound(declaration: Declaration, function: Callable[..., Any], path: str, faults: list[Fault]) -> Callback | None:
    given = {**getattr(function, "default_options", {}), **declaration.options}
    hearing = _hearing(declaration, given, faults) if declaration.kind == "receiver" else {}
    own = {name: value for name, value in given.items() if declaration.kind != "receiver" or name not in HEARING}
    try:
        known = options_of(function, declaration.kind)
        if not _are_known(declaration, path, own, known, faults):
            return None
        configured = functools.partial(function, **own) if own else function
        binding = bind(configured, declaration.kind)
    except (TypeError, ValueError) as error:
        faults.append(
            Fault(
                id="djmease.E006",
                message=f"{declaration.source}: {path} cannot be called: {error}.",
                hint="Parameters are bound by their names, in any order, and only those that are wanted.",
            )
        )
        return None
    for reason in getattr(function, "check_options", _no_reasons)(**own):
        faults.append(Fault(id="djmease.E010", message=f"{declaration.source}: {path}: {reason}", hint=_OPTION_HINT))
    return Callback(
        kind=declaration.kind,
        function=configured,
        path=path,
        source=declaration.source,
        is_async=is_async_callable(configured),
        binding=binding,
        **hearing,
    )


_OPTION_HINT = "The README describes the options of the stock callbacks."


def _no_reasons(**options: Any) -> Iterable[str]:
    return ()


def _are_known(
    declaration: Declaration, path: str, own: dict[str, Any], known: tuple[str, ...], faults: list[Fault]
) -> bool:
    """Tell whether a callback takes all of the options that it was declared with, and report those that it does not."""
    unknown = [name for name in own if name not in known]
    spell = str.upper if isinstance(declaration.target, str) else str.lower
    general = HEARING if declaration.kind == "receiver" else ()
    for name in unknown:
        closest = difflib.get_close_matches(name, [*known, *general], n=1)
        meant = f"Did you mean {spell(closest[0])!r}?" if closest else ""
        takes = ", ".join(spell(option) for option in [*known, *general]) or "none"
        faults.append(
            Fault(
                id="djmease.E003",
                message=f"{declaration.source}: {path} has no option {spell(name)!r}.",
                hint=meant or f"Its options are: {takes}.",
            )
        )
    return not unknown


HEARING = ("json", "type", "login_required", "permission_required", "user_passes_test")
"""What every receiver may be declared with: what it hears, and of whom."""


def _hearing(declaration: Declaration, options: dict[str, Any], faults: list[Fault]) -> dict[str, Any]:
    """Return the fields of a ``Callback`` that say what a receiver hears, and of whom."""

    given = _Options(declaration.source, options, faults)
    types = given.texts("type", bool, "a type or pattern as a string, for example 'chat.say', or a list of them")
    wants_json = given.flag("json")
    return {"wants_json": wants_json or bool(types), "types": types, "rule": given.rule()}


class _Options:
    """Options by lower-case names, and the faults of those that are not as they should be."""

    def __init__(self, source: str, given: dict[str, Any], faults: list[Fault]) -> None:
        self._source = source
        self._given = given
        self._faults = faults

    def _wrong(self, name: str, expected: str) -> None:
        place = f"{self._source}: the option {name!r}"
        self._faults.append(_wrong_type(place, self._given[name], expected))

    def flag(self, name: str) -> bool:
        value = self._given.get(name, False)
        if not isinstance(value, bool):
            self._wrong(name, "True or False")
        return value is True

    def texts(self, name: str, is_good: Callable[[str], bool], expected: str) -> tuple[str, ...]:
        value = self._given.get(name)
        listed = [] if value is None else [value] if isinstance(value, str) else value
        if not isinstance(listed, (list, tuple, set, frozenset)) or not all(
            isinstance(text, str) and is_good(text) for text in listed
        ):
            self._wrong(name, expected)
            return ()
        return tuple(listed)

    def rule(self) -> Rule | None:
        """Return what is asked of a user, ``None`` where nothing is."""
        permissions = self.texts(
            "permission_required", _is_permission, "a permission, for example 'chat.add_message', or a list of them"
        )
        login_required = self.flag("login_required")
        test = _test_of(self._source, self._given.get("user_passes_test"), self._faults)
        if not (login_required or permissions or test is not None):
            return None
        return Rule(login_required=login_required, permissions=permissions, test=test)


def _is_permission(text: str) -> bool:
    app, dot, name = text.partition(".")
    return bool(app and dot and name)


def _test_of(source: str, test: Any, faults: list[Fault]) -> Callable[..., Any] | None:
    if isinstance(test, str):
        try:
            test = import_path(test)
        except ImportError as error:
            faults.append(Fault(id="djmease.E002", message=f"{source}: {error}", hint=_IMPORT_HINT))
            return None
    if test is not None and not callable(test):
        faults.append(
            _wrong_type(
                f"{source}: the option 'user_passes_test'",
                test,
                "a function that takes a user, or its dotted path",
            )
        )
        return None
    if test is not None and is_async_callable(test):
        message = f"{source}: the option 'user_passes_test', {path_of(test)}, is an async def: each coroutine is a yes."
        faults.append(Fault(id="djmease.E011", message=message, hint="Declare it with def; it may use the ORM."))
        return None
    return test  # type: ignore[no-any-return]


def import_path(path: str) -> Any:
    """Import what a dotted path names; the ``ImportError`` says which part of it failed, and how."""
    module_path, _, name = path.rpartition(".")
    if not module_path:
        raise ImportError(f"{path!r} is not a dotted path.")
    try:
        module = importlib.import_module(module_path)
    except ModuleNotFoundError as error:
        if error.name and (module_path == error.name or module_path.startswith(f"{error.name}.")):
            raise ImportError(f"{path!r} does not import: there is no module {error.name!r}.") from error
        raise ImportError(f"{path!r} does not import: {module_path!r} raised {error!r}.") from error
    except Exception as error:
        raise ImportError(f"{path!r} does not import: {module_path!r} raised {error!r}.") from error
    try:
        return getattr(module, name)
    except AttributeError as error:
        closest = difflib.get_close_matches(name, dir(module), n=1)
        meant = f" Did you mean {module_path}.{closest[0]}?" if closest else ""
        raise ImportError(f"{path!r} does not import: module {module_path!r} has no {name!r}.{meant}") from error
    except Exception as error:  # A module may have a __getattr__.
        raise ImportError(f"{path!r} does not import: {module_path!r} raised {error!r} for {name!r}.") from error


def _checked_patterns(declaration: Declaration, faults: list[Fault]) -> Iterator[str]:
    if not declaration.patterns:
        faults.append(
            Fault(
                id="djmease.E004",
                message=f"{declaration.source}: the sender is registered with an empty list of routings.",
                hint="Name at least one routing, or leave routing out for every routing.",
            )
        )
    for pattern in declaration.patterns:
        if _check_pattern(pattern, declaration.source, faults):
            yield pattern


def _check_pattern(pattern: Any, place: str, faults: list[Fault], what: str = "routing") -> bool:
    """Tell whether some name can match the pattern, and report the fault where none can."""
    name = pattern.replace("*", "").replace("?", "x") if isinstance(pattern, str) else pattern
    reserved = isinstance(pattern, str) and pattern.startswith(RESERVED_PREFIX) and pattern != ROUTING
    if pattern and (is_valid_name(name) or name == "") and not reserved:
        return True
    reason = f"begins with {RESERVED_PREFIX!r}, which is reserved" if reserved else f"should have {NAME_RULE}"
    what = "pattern" if isinstance(pattern, str) and is_pattern(pattern) else what
    faults.append(
        Fault(
            id="djmease.E007",
            message=f"{place}: the {what} {pattern!r} can match nothing: a name that is published {reason}."
            if not reserved
            else f"{place}: the {what} {pattern!r} can match nothing: it {reason}.",
            hint="Rename it; in a pattern * is any text and ? any one character.",
        )
    )
    return False


# Warnings


def _warn_of_late(declared: list[Declaration], faults: list[Fault]) -> None:
    for declaration in declared:
        if declaration.late and not isinstance(declaration.target, str):
            faults.append(
                Fault(
                    id="djmease.W002",
                    message=f"The {declaration.kind} {path_of(declaration.target)} was registered by a module that "
                    "Django does not import when it starts, so the server may never see it.",
                    hint=f"Decorate it in the {REGISTRY_MODULE} of an installed app, or import its module there.",
                    is_error=False,
                )
            )


def _warn_of_duplicates(resolved: list[tuple[Declaration, Callback | None]], faults: list[Fault]) -> None:
    seen: dict[tuple[Kind, int, str], Declaration] = {}
    for declaration, callback in resolved:
        for pattern in declaration.patterns or ("",) if callback else ():
            assert callback is not None
            key = (callback.kind, id(callback.function), pattern)
            first = seen.setdefault(key, declaration)
            if first is not declaration:
                faults.append(
                    Fault(
                        id="djmease.W001",
                        message=f"The {callback.kind} {callback.path} is registered twice"
                        f"{f' for {pattern!r}' if pattern else ''}: by {first.source} and by {declaration.source}.",
                        hint="It runs once; remove one of the two.",
                        is_error=False,
                    )
                )
