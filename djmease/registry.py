"""Which callbacks exist, in order: the decorators that declare them and the registry that the server asks."""

from __future__ import annotations

import difflib
import functools
import inspect
import itertools
import json
import operator
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, overload

from asgiref.sync import iscoroutinefunction
from django.apps import apps
from django.dispatch import Signal

Kind = Literal["sender", "receiver", "opener", "closer"]
Function = TypeVar("Function", bound=Callable[..., Any])

ARGUMENTS: Mapping[Kind, tuple[str, ...]] = {
    "sender": ("routing", "message", "clients_list"),
    "receiver": ("client", "message", "clients_list"),
    "opener": ("client", "clients_list"),
    "closer": ("client", "clients_list"),
}
"""What a callback of each kind may take, in the order in which it is given by position."""

EVERY_ROUTING = "*"
_SPELLINGS = {"channel": "routing"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Declaration:
    """What a setting or a decorator says: the one form to which all spellings come down."""

    kind: Kind
    target: str | Callable[..., Any]
    """A dotted path, or the decorated callable."""
    patterns: tuple[str, ...] = ()
    """Of a sender: the routings and patterns it writes."""
    source: str
    """Where it was declared: a setting with its key, or a module and line."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """What else was said, by lower-case names."""
    late: bool = False
    """Whether Django had already started, so that another process may never see it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """How a callable gets its arguments: decided once, by its signature."""

    positional: tuple[str, ...] = ()
    keywords: tuple[tuple[str, str], ...] = ()
    """Pairs of the callable's parameter and our argument."""
    take: Callable[[Mapping[str, Any]], tuple[Any, ...]] = field(init=False, repr=False, compare=False)
    """From our arguments by name, those that go by position."""
    wants_clients: bool = field(init=False, repr=False, compare=False)
    """Whether it takes the ``clients_list``, which is made for those who do."""

    def __post_init__(self) -> None:
        names = (*self.positional, *(name for _, name in self.keywords))
        object.__setattr__(self, "wants_clients", "clients_list" in names)
        object.__setattr__(self, "take", _taker(self.positional))


def _taker(names: tuple[str, ...]) -> Callable[[Mapping[str, Any]], tuple[Any, ...]]:
    if len(names) > 1:
        return operator.itemgetter(*names)
    return lambda arguments: tuple(arguments[name] for name in names)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """Whom a receiver hears, with the meanings of Django's decorators of these names."""

    login_required: bool = False
    permissions: tuple[str, ...] = ()
    test: Callable[..., Any] | None = None

    def refusal(self, user: Any, **more: Any) -> str | None:
        """Return which of them a user (``None`` where the site has none) does not meet, or ``None``; it may query.

        The test is given what is ``more``. Raises ``TypeError`` where it only promises an answer, which would pass for
        a yes.
        """
        if self.login_required and not (user is not None and user.is_authenticated):
            return "login_required"
        if self.permissions and not (user is not None and user.has_perms(self.permissions)):
            return "permission_required"
        if self.test is not None and not _answer(self.test, self.test(user, **more)):
            return "user_passes_test"
        return None


def _answer(test: Callable[..., Any], answer: Any) -> Any:
    """Return what a test answered. Raises ``TypeError`` for what is still to be awaited or iterated, which is true."""
    if inspect.isawaitable(answer) or inspect.isgenerator(answer) or inspect.isasyncgen(answer):
        if inspect.iscoroutine(answer):
            answer.close()
        raise TypeError(f"{path_of(test)} returned {answer!r}, and no answer: a user_passes_test returns True or False")
    return answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Callback:
    """A user's function that the server can call."""

    kind: Kind
    function: Callable[..., Any]
    path: str
    source: str
    is_async: bool
    binding: Binding
    wants_json: bool = False
    """Of a receiver: it gets parsed JSON, and is passed over for what is not JSON."""
    types: tuple[str, ...] = ()
    """Of a receiver: it gets JSON objects whose ``"type"`` matches one of these patterns, and nothing else."""
    rule: Rule | None = None

    def __call__(self, arguments: Mapping[str, Any]) -> Any:
        """Call the function with those of ``arguments`` (by our names) that it wants, and return what it returns."""
        binding = self.binding
        if not binding.keywords:
            return self.function(*binding.take(arguments))
        keywords = {parameter: arguments[name] for parameter, name in binding.keywords}
        return self.function(*binding.take(arguments), **keywords)


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A routing or pattern, and the senders that one declaration gave it."""

    pattern: str
    senders: tuple[Callback, ...]
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupRule:
    """Groups that clients may join by themselves, and which of them."""

    pattern: str
    source: str
    may_be_joined: bool = True
    rule: Rule | None = None
    """``None`` lets everybody join."""
    test_takes_group: bool = False
    """Whether the rule's test is given the ``group`` too."""

    def refusal(self, user: Any, group: str) -> str | None:
        """Return what a user does not meet, or ``None``; it may query."""
        if self.rule is None:
            return None
        return self.rule.refusal(user, group=group) if self.test_takes_group else self.rule.refusal(user)


def join_refusal(rule: GroupRule | None, group: str, joined: Collection[str], max_groups: int) -> str | None:
    """Return why a client that meets the rule of a group may not join it beside what it has joined, or ``None``."""
    if rule is None:
        return "not_listed"
    return "too_many" if group not in joined and len(joined) >= max_groups else None


class Registry:
    """The callbacks of one server, resolved and in order."""

    def __init__(
        self,
        *,
        routes: Iterable[Route] = (),
        receivers: Iterable[Callback] = (),
        openers: Iterable[Callback] = (),
        closers: Iterable[Callback] = (),
        groups: Iterable[GroupRule] = (),
    ) -> None:
        self.groups = tuple(groups)
        self.group_rule = functools.lru_cache(maxsize=1024)(self._group_rule)
        self.routes = tuple(routes)
        self.receivers = tuple(receivers)
        self.openers = tuple(openers)
        self.closers = tuple(closers)
        # Bounded, because names come from outside and are endless.
        self.senders_for = functools.lru_cache(maxsize=1024)(self._senders_for)
        # What is refused is answered in JSON where it was JSON.
        self._parses = any(receiver.wants_json or receiver.rule for receiver in self.receivers)

    def _senders_for(self, routing: str) -> tuple[Callback, ...]:
        """Return every sender that matches, in order, each once."""
        return unique(sender for route in self.routes if matches(route.pattern, routing) for sender in route.senders)

    def _group_rule(self, group: str) -> GroupRule | None:
        """Return by which rule a client may join a group: the one of its name, else of the first pattern."""
        named = [rule for rule in self.groups if rule.pattern == group]
        first = next(iter(named or [rule for rule in self.groups if matches(rule.pattern, group)]), None)
        return first if first is not None and first.may_be_joined else None

    def receivers_for(self, message: str | bytes) -> Received:
        """Return who hears what a client sent, each with the message in the form that it wants."""
        if not self._parses:
            return Received([(receiver, message) for receiver in self.receivers])
        value, is_json = _parse(message)
        kind = value.get("type") if isinstance(value, dict) else None
        calls: list[tuple[Callback, Any]] = []
        for receiver in self.receivers:
            if not receiver.wants_json:
                calls.append((receiver, message))
            elif is_json and _hears(receiver, kind):
                calls.append((receiver, value))
        return Received(calls, kind if isinstance(kind, str) else None, is_json)

    def closest_type(self, kind: str) -> str | None:
        """Return the type or pattern of a receiver that looks most like ``kind``."""
        known = sorted({pattern for receiver in self.receivers for pattern in receiver.types})
        return next(iter(difflib.get_close_matches(kind, known, n=1)), None)


@dataclass(slots=True)
class Received:
    """What a client sent, and who hears it."""

    calls: list[tuple[Callback, Any]]
    kind: str | None = None
    """The ``"type"`` of a JSON object."""
    is_json: bool = False

    @property
    def is_unheard(self) -> bool:
        """Whether no receiver wants its type or any JSON."""
        return not any(receiver.wants_json for receiver, _ in self.calls)


def _parse(message: str | bytes) -> tuple[Any, bool]:
    """Return the JSON value of a text message and whether it is one; a binary frame is never JSON."""
    if isinstance(message, str):
        with suppress(ValueError, RecursionError):
            return json.loads(message), True
    return None, False


def _hears(receiver: Callback, kind: Any) -> bool:
    if not receiver.types:
        return True
    return isinstance(kind, str) and any(matches(pattern, kind) for pattern in receiver.types)


def unique(callbacks: Iterable[Callback]) -> tuple[Callback, ...]:
    """Return the callbacks in order, each function once."""
    found: dict[int, Callback] = {}
    for callback in callbacks:
        found.setdefault(id(callback.function), callback)
    return tuple(found.values())


def matches(pattern: str, routing: str) -> bool:
    """Tell whether a pattern, in which ``*`` is any text and ``?`` any character, is this routing."""
    return pattern == routing or (is_pattern(pattern) and _compile(pattern).fullmatch(routing) is not None)


def is_pattern(text: str) -> bool:
    """Tell whether ``text`` has a ``*`` or a ``?``."""
    return "*" in text or "?" in text


@functools.lru_cache(maxsize=1024)
def _compile(pattern: str) -> re.Pattern[str]:
    wild = {"*": ".*", "?": "."}
    # Neighbouring stars say what one says, and would make the match slow.
    return re.compile("".join(wild.get(char, re.escape(char)) for char in re.sub(r"\*+", "*", pattern)), re.DOTALL)


def bind(function: Callable[..., Any], kind: Kind) -> Binding:
    """Decide how ``function`` gets the arguments of its kind.

    By name where it uses one of the names, else by position in their order; what requires nothing gets nothing. Raises
    ``TypeError`` with the reason where neither can work.
    """
    parameters = _parameters(function)
    names = ARGUMENTS[kind]
    known = [parameter for parameter in parameters if _argument(parameter.name, kind)]
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    if not known and not takes_all:
        return _bind_by_position(parameters, names)
    for parameter in parameters:
        if parameter not in known and _is_required(parameter):
            raise TypeError(_unknown_parameter(parameter, kind))
    # Names cost more in a call than places do.
    leading = list(itertools.takewhile(lambda p: p in known and p.kind is not p.KEYWORD_ONLY, parameters))
    positional = tuple(_spelling(p.name) for p in leading)
    keywords = [(p.name, _spelling(p.name)) for p in known if p not in leading]
    if takes_all:
        given = {*positional, *(name for _, name in keywords)}
        keywords += [(name, name) for name in names if name not in given]
    return Binding(positional=positional, keywords=tuple(keywords))


def _bind_by_position(parameters: list[inspect.Parameter], names: tuple[str, ...]) -> Binding:
    takes_any_number = any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters)
    required = [parameter for parameter in parameters if _is_required(parameter)]
    if not required and not takes_any_number:
        return Binding()
    by_position = [p for p in required if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    fits = len(by_position) <= len(names) if takes_any_number else len(by_position) == len(names)
    if len(by_position) != len(required) or not fits:
        spelled = ", ".join(parameter.name for parameter in required) or "none"
        raise TypeError(
            f"its parameters ({spelled}) cannot be bound: it should take some of {', '.join(names)} by name, "
            f"or exactly {len(names)} by position"
        )
    return Binding(positional=names)


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """Return the parameters of the outermost signature, without those that a ``partial`` has already filled in."""
    bound = function.keywords if isinstance(function, functools.partial) else {}
    try:
        signature = inspect.signature(function, follow_wrapped=False)
    except ValueError:
        # What functools.lru_cache returns says what it takes by what it is wrapped around.
        signature = inspect.signature(function)
    kinds = [parameter.kind for parameter in signature.parameters.values()]
    if kinds == [inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD] and hasattr(function, "__wrapped__"):
        # A wrapper that passes everything on takes what the function inside takes.
        return _parameters(function.__wrapped__)
    return [parameter for name, parameter in signature.parameters.items() if name not in bound]


def _is_required(parameter: inspect.Parameter) -> bool:
    return parameter.default is parameter.empty and parameter.kind not in (
        parameter.VAR_POSITIONAL,
        parameter.VAR_KEYWORD,
    )


def _spelling(name: str) -> str:
    return _SPELLINGS.get(name, name)


def _argument(name: str, kind: Kind) -> bool:
    return name in ARGUMENTS[kind] or (_spelling(name) in ARGUMENTS[kind])


def _unknown_parameter(parameter: inspect.Parameter, kind: Kind) -> str:
    name = parameter.name
    if parameter.kind is parameter.KEYWORD_ONLY:
        return f"it requires the option {name!r} ({name.upper()} in settings)"
    closest = difflib.get_close_matches(name, [*ARGUMENTS[kind], *_SPELLINGS], n=1, cutoff=0.5)
    meant = f" (did you mean {closest[0]!r}?)" if closest else ""
    return f"a {kind} is given {', '.join(ARGUMENTS[kind])}, and nothing for its parameter {name!r}{meant}"


def options_of(function: Callable[..., Any], kind: Kind) -> tuple[str, ...]:
    """Return the names of a callback's own options: its keyword-only parameters that are none of our arguments."""
    return tuple(
        parameter.name
        for parameter in _parameters(function)
        if parameter.kind is parameter.KEYWORD_ONLY and not _argument(parameter.name, kind)
    )


def is_async_callable(function: Callable[..., Any]) -> bool:
    """Tell whether calling ``function`` gives a coroutine: an ``async def``, or an object with such a ``__call__``."""
    return bool(iscoroutinefunction(function) or iscoroutinefunction(getattr(function, "__call__", None)))  # noqa: B004


def is_generator(function: Callable[..., Any]) -> bool:
    """Tell whether calling ``function`` runs nothing of it yet: there is a ``yield`` in it."""
    called = (function, getattr(function, "__call__", None))  # noqa: B004
    return any(inspect.isgeneratorfunction(each) or inspect.isasyncgenfunction(each) for each in called)


def path_of(function: Callable[..., Any]) -> str:
    """Return the dotted path by which people know a callable."""
    while isinstance(function, functools.partial):
        function = function.func
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"


def _source_of(function: Callable[..., Any]) -> str:
    code = getattr(inspect.unwrap(function), "__code__", None)
    return f"{function.__module__}:{code.co_firstlineno}" if code else path_of(function)


declarations: list[Declaration] = []
"""What decorators have declared in this process, in order."""


def _declare(kind: Kind, function: Any, patterns: tuple[str, ...], options: Mapping[str, Any]) -> None:
    if not callable(function):
        raise TypeError(f"djmease.{kind} decorates a function, not {function!r}{_hint_for(kind, function)}")
    declarations.append(
        Declaration(
            kind=kind,
            target=function,
            patterns=patterns,
            source=_source_of(function),
            options=options,
            late=apps.ready,
        )
    )


def _refuse_meant_signal(kind: Kind, function: Any) -> None:
    signals = function if isinstance(function, (list, tuple)) else [function]
    if any(isinstance(signal, Signal) for signal in signals):
        raise TypeError(
            f"djmease.{kind} was given a Django signal: to be called for a signal, use django.dispatch.receiver"
        )


def _hint_for(kind: Kind, value: object) -> str:
    said = {
        "sender": "a routing is said as @djmease.sender(routing",
        "receiver": "a type is said as @djmease.receiver(type",
    }
    return f"; {said[kind]}={value!r})" if kind in said and isinstance(value, (str, list, tuple)) else ""


def _decorator(
    kind: Kind,
    function: Any,
    rest: tuple[Any, ...],
    options: Mapping[str, Any],
    patterns: tuple[str, ...] = (),
) -> Any:
    """Declare ``function``, or return what will; its options are judged with those of the settings, by the checks."""
    _refuse_meant_signal(kind, function)
    if rest:
        raise TypeError(f"djmease.{kind} takes one function, and got {1 + len(rest)} arguments")

    def declare(decorated: Function) -> Function:
        _declare(kind, decorated, patterns, options)
        return decorated

    return declare if function is None else declare(function)


def _patterns(routing: Any) -> tuple[str, ...]:
    if routing is None:
        return (EVERY_ROUTING,)
    if isinstance(routing, str):
        return (routing,)
    patterns = tuple(routing) if isinstance(routing, Iterable) else (routing,)
    if not all(isinstance(pattern, str) for pattern in patterns):
        raise TypeError(f"djmease.sender takes a routing as a string, or several in a list, not {routing!r}")
    return patterns


@overload
def sender(function: Function, /) -> Function: ...
@overload
def sender(*, routing: str | Iterable[str] | None = None, **options: Any) -> Callable[[Function], Function]: ...
def sender(function: Any = None, /, *rest: Any, routing: Any = None, **options: Any) -> Any:
    """Register a function that writes published messages to clients.

    ``routing`` is a routing, a pattern with ``*`` and ``?``, or several; without it the sender gets every routing. The
    function may take any of ``routing`` (or ``channel``), ``message`` and ``clients_list``, and is returned unchanged.
    Other options are given to its keyword-only parameters of those names::

        @djmease.sender(routing="news")
        def show(message, clients_list):
            for client in clients_list:
                client.write_message(message)

    Raises ``TypeError`` for what is no function, for a Django signal, and for a ``routing`` that is neither a text nor
    several. All else that is wrong is told by ``manage.py check``, and by the server when it starts.
    """
    return _decorator("sender", function, rest, options, _patterns(routing))


@overload
def receiver(function: Function, /) -> Function: ...
@overload
def receiver(
    *,
    json: bool = False,
    type: str | Iterable[str] | None = None,
    login_required: bool = False,
    permission_required: str | Iterable[str] | None = None,
    user_passes_test: str | Callable[[Any], Any] | None = None,
    **options: Any,
) -> Callable[[Function], Function]: ...
def receiver(function: Any = None, /, *rest: Any, **options: Any) -> Any:
    """Register a function that hears what clients send; it may take ``client``, ``message`` and ``clients_list``.

    With ``json=True`` it gets parsed JSON, and is passed over for what is not JSON; with ``type`` (a text, a pattern,
    or several) it gets JSON objects whose ``"type"`` matches. ``login_required``, ``permission_required`` and
    ``user_passes_test`` have the meanings of Django's decorators of these names. Raises what ``sender`` does.
    """
    return _decorator("receiver", function, rest, options)


@overload
def opener(function: Function, /) -> Function: ...
@overload
def opener(**options: Any) -> Callable[[Function], Function]: ...
def opener(function: Any = None, /, *rest: Any, **options: Any) -> Any:
    """Register a function that is told of a client that has come; it may take ``client`` and ``clients_list``.

    It may raise ``PermissionDenied``, which closes the client. Raises what ``sender`` does.
    """
    return _decorator("opener", function, rest, options)


@overload
def closer(function: Function, /) -> Function: ...
@overload
def closer(**options: Any) -> Callable[[Function], Function]: ...
def closer(function: Any = None, /, *rest: Any, **options: Any) -> Any:
    """Register a function that is told of a client that has gone; it may take ``client`` and ``clients_list``.

    Raises what ``sender`` does.
    """
    return _decorator("closer", function, rest, options)
