"""Decorators, binding by name and by position, and who is called for a routing."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
from django.db.models.signals import post_save

import djmease
from djmease import loader
from djmease.registry import Binding, Registry, bind, declarations, matches, path_of


def called(function: Callable[..., Any], kind: Any = "sender") -> Any:
    """Return what the function gets when it is called as a callback: it returns it."""
    binding = bind(function, kind)
    arguments = {"routing": "R", "client": "C", "message": "M", "clients_list": "L"}
    positional = [arguments[name] for name in binding.positional]
    return function(*positional, **{parameter: arguments[name] for parameter, name in binding.keywords})


def outer(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


def stars(*args: Any) -> Any:
    return args


class Object:
    def __call__(self, message: Any, clients_list: Any) -> Any:
        return message, clients_list


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda routing, message, clients_list: (routing, message, clients_list), ("R", "M", "L")),
        (lambda clients_list, routing, message: (routing, message, clients_list), ("R", "M", "L")),
        (lambda channel, message, clients_list: (channel, message, clients_list), ("R", "M", "L")),
        (lambda clients_list: clients_list, "L"),
        (lambda a, b, c: (a, b, c), ("R", "M", "L")),
        (lambda a, b, c, d=4: (a, b, c, d), ("R", "M", "L", 4)),
        (lambda message, extra=5: (message, extra), ("M", 5)),
        (lambda message, clients_list=None: (message, clients_list), ("M", "L")),
        (lambda **kwargs: kwargs, {"routing": "R", "message": "M", "clients_list": "L"}),
        (lambda channel, **kwargs: (channel, kwargs), ("R", {"message": "M", "clients_list": "L"})),
        (lambda message, /, clients_list: (message, clients_list), ("M", "L")),
        (lambda *, message: message, "M"),
        (lambda: "nothing", "nothing"),
        (stars, ("R", "M", "L")),
        (functools.lru_cache(lambda message, clients_list: (message, clients_list)), ("M", "L")),
        (Object(), ("M", "L")),
        (functools.partial(lambda message, clients_list, mark: (message, mark), mark="!"), ("M", "!")),
        (functools.partial(lambda mark, message, clients_list: (mark, message), mark="!"), ("!", "M")),
        (functools.partial(lambda mark, message, clients_list: (mark, message), "!"), ("!", "M")),
        (lambda extra=5, message=None, clients_list=None: (extra, message, clients_list), (5, "M", "L")),
        (lambda message, extra=5, *, clients_list: (message, extra, clients_list), ("M", 5, "L")),
        (outer(lambda message, clients_list: (message, clients_list)), ("M", "L")),
    ],
)
def test_a_callback_gets_what_it_asks_for(function: Callable[..., Any], expected: Any) -> None:
    assert called(function) == expected


@pytest.mark.parametrize(
    ("function", "kind", "reason"),
    [
        (lambda mesage, clients_list: None, "sender", "did you mean 'message'"),
        (lambda client, message: None, "sender", "nothing for its parameter 'client'"),
        (lambda a, b: None, "sender", "exactly 3 by position"),
        (lambda a, b, c: None, "opener", "exactly 2 by position"),
        (lambda a, *, b: None, "opener", "cannot be bound"),
        (lambda a, b, c, d, *rest: None, "sender", "cannot be bound"),
        (lambda message, *, template: None, "sender", "requires the option 'template'"),
    ],
)
def test_what_cannot_be_bound_says_why(function: Callable[..., Any], kind: Any, reason: str) -> None:
    with pytest.raises(TypeError, match=reason):
        bind(function, kind)


def test_decorators_return_the_function_unchanged_bare_and_called() -> None:
    def function() -> None: ...

    for decorator in (djmease.sender, djmease.receiver, djmease.opener, djmease.closer):
        assert decorator(function) is function
        assert decorator()(function) is function
    assert [declaration.kind for declaration in declarations] == [
        kind for kind in ("sender", "receiver", "opener", "closer") for _ in range(2)
    ]
    assert all(declaration.source.startswith("tests.test_registry:") for declaration in declarations)


@pytest.mark.parametrize("arguments", [(post_save,), ([post_save],), (post_save, object)])
def test_a_signal_shows_which_receiver_was_meant(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(TypeError, match=r"django\.dispatch\.receiver"):
        djmease.receiver(*arguments, sender=object)


def test_misuse_of_a_decorator_is_answered() -> None:
    with pytest.raises(TypeError, match="routing='news'"):
        djmease.sender("news")
    with pytest.raises(TypeError, match="decorates a function, not 7"):
        djmease.opener(7)
    with pytest.raises(TypeError, match="takes one function, and got 2"):
        djmease.closer(print, print)


def test_the_senders_of_a_routing_are_every_match_in_order_each_once() -> None:
    def first() -> None: ...
    def second() -> None: ...

    djmease.sender(routing="chat.*")(first)
    djmease.sender(routing=["chat.message", "news"])(second)
    djmease.sender(routing="chat.message")(first)
    djmease.sender(lambda: None)
    registry = loader.load().registry
    assert [sender.function for sender in registry.senders_for("chat.message")][:2] == [first, second]
    assert len(registry.senders_for("chat.message")) == 3
    assert [sender.function for sender in registry.senders_for("chat.x")][0] is first
    assert len(registry.senders_for("else")) == 1


def test_an_empty_registry_has_nobody() -> None:
    assert Registry().senders_for("x") == ()
    assert Registry().receivers_for("x").calls == []
    assert Registry().closest_type("x") is None


@pytest.mark.parametrize(
    ("pattern", "routing", "expected"),
    [
        ("a.b", "a.b", True),
        ("a.b", "axb", False),
        ("*", "anything", True),
        ("a.*", "a.", True),
        ("a.*", "a", False),
        ("a.?", "a.b", True),
        ("a.?", "a.bc", False),
        ("*.*.b", "a.a.b", True),
        ("**" * 100 + "b", "a" * 199, False),
        ("A", "a", False),
    ],
)
def test_patterns(pattern: str, routing: str, expected: bool) -> None:
    assert matches(pattern, routing) is expected


@pytest.mark.parametrize("routing", [5, ["news", None], [["news"]]])
def test_a_routing_that_is_no_string_is_said_where_it_stands(routing: Any) -> None:
    with pytest.raises(TypeError, match=r"takes a routing as a string, or several in a list, not (5|\[)"):
        djmease.sender(routing=routing)


def test_a_callback_is_known_by_its_dotted_path() -> None:
    assert path_of(stars) == "tests.test_registry.stars"
    assert path_of(Object()) == "tests.test_registry.Object"
    assert path_of(functools.partial(stars)) == "tests.test_registry.stars"
    assert path_of(functools.partial(Object())) == "tests.test_registry.Object"
    assert Binding() == Binding()
