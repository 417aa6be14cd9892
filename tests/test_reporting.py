"""get_status and list_clients: what is put together, what is wrong, and what comes of garbage; with a real Redis."""

from __future__ import annotations

import json
import os
import signal
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.utils.translation import override
from redis import Redis
from redis.exceptions import RedisError

import djmease
from djmease import connections, reporting
from djmease.embedded import EmbeddedValkey
from djmease.reporting import MAX_CLIENTS, Status, answers, ask, get_status, list_clients, list_groups
from djmease.reports import to_plain
from tests import reported
from tests.support import DEADLINE
from tests.test_reports import CLIENT


def kinds(status: Status) -> list[str]:
    return [problem.kind for problem in status.problems]


# What is put together


def test_nothing_reports(redis: str) -> None:
    status = get_status()
    assert (status.servers, status.callbacks, status.messages, status.clients) == ((), (), (), 0)
    assert kinds(status) == ["no_server"] and not status.is_well
    assert status.prefix == redis.removesuffix(":") and status.redis == connections.address()
    assert abs(status.taken_at - time.time()) < DEADLINE


def test_it_is_a_public_name() -> None:
    assert djmease.get_status is get_status


def test_servers_stand_in_the_order_in_which_they_started(redis: str) -> None:
    now = time.time()
    reported.put(*(reported.server(name, started_at=now - age) for name, age in [("b", 5), ("c", 9), ("a", 5)]))
    status = get_status()
    assert [server.id for server in status.servers] == ["c", "a", "b"]
    assert status.is_well and status.clients == 36


def test_a_callback_is_one_for_all_servers(redis: str) -> None:
    first = reported.sender(
        heard=5, calls=5, rate=1.5, delivered=7, errors=1, last_at=10.0, last_error="old", last_error_at=4.0, p99=0.5
    )
    second = reported.sender(
        heard=4, calls=4, rate=0.5, delivered=3, errors=2, last_at=9.0, last_error="new", last_error_at=8.0, p50=0.1
    )
    reported.put(
        reported.server("a", callbacks=(first, reported.receiver(calls=1))), reported.server("b", callbacks=(second,))
    )
    sender, receiver = get_status().callbacks
    assert (sender.heard, sender.calls, sender.rate, sender.delivered, sender.errors) == (5, 9, 2.0, 10, 3)
    assert (sender.last_at, sender.last_error, sender.last_error_at) == (10.0, "new", 8.0)
    assert (sender.p50, sender.p99) == (0.1, 0.5)
    assert receiver.calls == 1


def test_a_sender_of_two_routes_is_two(redis: str) -> None:
    reported.put(reported.server(callbacks=(reported.sender("a"), reported.sender("b"))))
    assert [callback.routing for callback in get_status().callbacks] == ["a", "b"]


def test_messages_are_put_together_and_the_newest_comes_first(redis: str) -> None:
    now = time.time()
    one = [reported.message(f"{index}", published_at=now - index, reached=1, lag=None) for index in range(40)]
    two = [reported.message(f"{index}", published_at=now - index, reached=2, errors=1) for index in range(20, 60)]
    reported.put(reported.server("a", messages=tuple(one)), reported.server("b", messages=tuple(two)))
    messages = get_status().messages
    assert [message.id for message in messages] == [f"{index}" for index in range(50)]
    assert [(messages[at].reached, messages[at].errors, messages[at].lag) for at in (0, 30, 45)] == [
        (1, 0, None),
        (3, 1, 0.0009),
        (2, 1, 0.0009),
    ]


# What is wrong


@pytest.mark.parametrize(
    ("fields", "kind", "is_well"),
    [
        ({}, None, True),
        ({"trouble": "it is deaf"}, "deaf", False),
        ({"presence_trouble": "it may not"}, "presence", True),
        ({"recent_errors": 1}, "errors", True),
        ({"recent_lost": 3}, "lost", False),
    ],
)
def test_what_is_wrong_with_a_server(redis: str, fields: dict[str, Any], kind: str | None, is_well: bool) -> None:
    reported.put(reported.server(**fields))
    status = get_status()
    assert (kinds(status), status.is_well) == ([kind] if kind else [], is_well)
    assert all(problem.cure and problem.text.endswith(".") for problem in status.problems)


@pytest.mark.parametrize(
    ("ago", "interval", "is_late"), [(5.5, 2.0, False), (7.0, 2.0, True), (7.0, 10.0, False), (-60, 2, False)]
)
def test_a_server_that_reports_late(redis: str, ago: float, interval: float, is_late: bool) -> None:
    reported.put(reported.server(reported_at=time.time() - ago, interval=interval))
    status = get_status()
    assert kinds(status) == (["late"] if is_late else []) and status.is_well


def test_the_only_server_stops(redis: str) -> None:
    reported.put(reported.server(is_draining=True, trouble="it is stopping"))
    status = get_status()
    assert kinds(status) == ["draining", "stopping"] and not status.is_well


def test_one_of_two_stops(redis: str) -> None:
    old = reported.server("a", is_draining=True, settings="old.settings", registry="old")
    reported.put(old, reported.server("b"))
    status = get_status()
    assert kinds(status) == ["stopping"] and status.is_well


def test_two_sites_on_one_prefix(redis: str) -> None:
    reported.put(reported.server("a", settings="shop.staging"), reported.server("b", settings="shop.production"))
    status = get_status()
    assert kinds(status) == ["mixed"] and not status.is_well
    assert "shop.production and shop.staging" in status.problems[0].text
    assert "MEASE_KEY_PREFIX" in status.problems[0].cure


def test_servers_with_other_callbacks(redis: str) -> None:
    reported.put(reported.server("a", registry="1"), reported.server("b", registry="2"))
    status = get_status()
    assert kinds(status) == ["mixed"] and status.is_well


def test_the_worst_comes_first(redis: str) -> None:
    reported.put(reported.server("a", recent_errors=2), reported.server("b", pid=2, trouble="it is deaf"))
    assert kinds(get_status()) == ["deaf", "errors"]


def test_servers_that_do_not_report_are_not_called_absent(redis: str, settings: Any) -> None:
    settings.MEASE_REPORT_INTERVAL = None
    status = get_status()
    assert kinds(status) == ["unreported"] and not status.is_well
    reported.put(reported.server())
    assert get_status().is_well, "another process may know better"


def test_it_is_said_in_the_language_of_the_reader(redis: str, settings: Any, tmp_path: Path) -> None:
    english, german = "Start one: %s", "So startet einer: %s"
    heading = "Content-Type: text/plain; charset=UTF-8\n"
    messages = tmp_path / "de" / "LC_MESSAGES" / "django.mo"
    messages.parent.mkdir(parents=True)
    messages.write_bytes(compiled({"": heading, english: german}))
    settings.LOCALE_PATHS = [tmp_path]
    assert get_status().problems[0].cure.startswith("Start one: python")
    with override("de"):
        assert get_status().problems[0].cure.startswith("So startet einer: python")


def compiled(messages: dict[str, str]) -> bytes:
    """Return the catalogue that GNU gettext would make of messages."""
    texts = [text.encode() for text in (*sorted(messages), *(messages[each] for each in sorted(messages)))]
    count, place = len(messages), 28 + 8 * len(texts)
    table = b""
    for text in texts:
        table += struct.pack("<2I", len(text), place)
        place += len(text) + 1
    head = struct.pack("<7I", 0x950412DE, 0, count, 28, 28 + 8 * count, 0, 0)
    return head + table + b"".join(text + b"\0" for text in texts)


# Redis


def test_no_redis_in_the_settings(settings: Any) -> None:
    settings.MEASE_REDIS_URL, settings.DEBUG = None, False
    with pytest.raises(ImproperlyConfigured, match="MEASE_REDIS_URL is not set"):
        get_status()


@pytest.mark.parametrize(
    ("url", "cure"),
    [
        ("redis://:secret@127.0.0.1:1/0", "it does not answer"),
        ("unix:///nonexistent/redis.sock", "it does not answer"),
        ("nonsense://x", "redis-py does not take"),
        ("redis://localhost:port/0", "redis-py does not take"),
    ],
)
def test_redis_away_is_a_problem_and_no_error(redis: str, settings: Any, url: str, cure: str) -> None:
    settings.MEASE_REDIS_URL = url
    status = get_status()
    assert kinds(status) == ["redis"] and not status.is_well
    assert cure in status.problems[0].cure and "secret" not in repr(status)


def test_redis_that_goes_and_comes_back(own_valkey: EmbeddedValkey) -> None:
    reported.put(reported.server())
    assert get_status().is_well
    os.kill(own_valkey._pid(), signal.SIGKILL)
    assert kinds(get_status()) == ["redis"]
    own_valkey.ensure_running()
    reported.put(reported.server())
    assert get_status().is_well


def test_an_embedded_valkey_that_no_server_uses_is_no_failure_of_redis(settings: Any, short_directory: Path) -> None:
    settings.MEASE_REDIS_URL, settings.MEASE_EMBEDDED_DIR = "embedded://", str(short_directory / "valkey")
    assert kinds(get_status()) == ["no_server"]
    assert not (short_directory / "valkey").exists()


def test_an_embedded_valkey_of_somebody_else(settings: Any, short_directory: Path) -> None:
    settings.MEASE_REDIS_URL, settings.MEASE_EMBEDDED_DIR = "embedded://", str(short_directory)
    (short_directory / "start.lock").mkdir()  # It can be opened for writing by nobody.
    status = get_status()
    assert kinds(status) == ["redis"]


def test_a_redis_that_does_not_let_this_process_read(own_valkey: EmbeddedValkey, settings: Any) -> None:
    reported.put(reported.server())
    client = reported.redis_client()
    client.acl_setuser("some", enabled=True, nopass=True, commands=["+zrange", "+ping"], keys=["*"], channels=["*"])
    settings.MEASE_REDIS_URL = f"unix://some:x@{own_valkey.socket}"
    status = get_status()
    assert kinds(status) == ["redis"] and "does not permit its user" in status.problems[0].cure


def test_a_redis_client_that_decodes_what_it_reads(redis: str, settings: Any) -> None:
    reported.put(reported.server())
    settings.MEASE_REDIS_OPTIONS = {"decode_responses": True}
    assert get_status().is_well
    reported.redis_client().rpush(connections.names().reply_key("t"), '{"a": 1}')
    assert list(answers("t", expected=1, timeout=DEADLINE)) == [{"a": 1}]


# Garbage


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        ({"report": "no JSON", "callbacks": "[]"}, "it is not JSON"),
        ({"report": b"\xff\xfe", "callbacks": "[]"}, "it is not JSON"),
        ({"report": "{}", "callbacks": "[]"}, "'id'"),
        ({"report": json.dumps(to_plain(reported.server("other"))), "callbacks": "[]"}, "callbacks is"),
        (
            {"report": json.dumps({**to_plain(reported.server("other")), "callbacks": {}}), "callbacks": "[]"},
            "it is of the server 'other'",
        ),
    ],
)
def test_a_report_that_cannot_be_read_hides_no_other(redis: str, parts: dict[str, Any], told: str) -> None:
    reported.put(reported.server("a"))
    reported.put_raw("b", **parts)
    status = get_status()
    assert [server.id for server in status.servers] == ["a"]
    assert kinds(status) == ["unread"] and status.is_well
    assert "the server b cannot be read" in status.problems[0].text and told in status.problems[0].text


def test_where_no_report_can_be_read_it_is_not_well(redis: str) -> None:
    reported.put_raw("b", report="{}", callbacks="[]")
    status = get_status()
    assert kinds(status) == ["unread"] and not status.is_well


def test_a_key_of_another_kind_hides_no_other(redis: str) -> None:
    reported.put(reported.server("a"), reported.server("b"))
    client = reported.redis_client()
    client.delete(connections.names().server_key("b"))
    client.set(connections.names().server_key("b"), "text")
    status = get_status()
    assert [server.id for server in status.servers] == ["a"]
    assert kinds(status) == ["unread"] and "WRONGTYPE" in status.problems[0].text


def test_a_name_that_is_no_text_is_nobody(redis: str) -> None:
    reported.put(reported.server("a"))
    reported.redis_client().zadd(connections.names().servers_key, {b"\xff": 1})
    assert get_status().is_well


@pytest.mark.parametrize("parts", [{"report": "{}"}, {"callbacks": "[]"}])
def test_a_server_that_has_gone_or_only_begins_is_passed_over(redis: str, parts: dict[str, Any]) -> None:
    reported.put_raw("a", **parts)
    reported.put(reported.server("b"))
    status = get_status()
    assert [server.id for server in status.servers] == ["b"] and status.is_well


def test_a_report_of_a_newer_version(redis: str) -> None:
    parts = reported.fields_of(reported.server("a", callbacks=(reported.sender(),)))
    parts["report"]["novelty"] = parts["callbacks"][0]["novelty"] = {"a": [1]}
    reported.put_raw("a", **{name: json.dumps(value) for name, value in parts.items()})
    assert get_status().is_well and get_status().callbacks[0].routing == "news"


# Questions


@contextmanager
def servers_that_answer(*told: Any) -> Iterator[list[dict[str, Any]]]:
    """Take the next order as servers do, and answer with these; yields the orders."""
    client = Redis.from_url(connections.connection_url())
    pubsub = client.pubsub()
    pubsub.subscribe(connections.names().control_channel)
    assert pubsub.get_message(timeout=DEADLINE) is not None
    orders: list[dict[str, Any]] = []

    def take() -> None:
        heard = pubsub.get_message(timeout=DEADLINE)
        assert heard is not None
        orders.append(json.loads(heard["data"]))
        for each in told:
            payload = each if isinstance(each, (str, bytes)) else json.dumps(each)
            client.rpush(connections.names().reply_key(orders[0]["reply"]), payload)

    thread = threading.Thread(target=take)
    thread.start()
    yield orders
    thread.join(DEADLINE)
    pubsub.close()
    client.close()


def clients_of(server: str, *ages: float, total: int | None = None) -> dict[str, Any]:
    """Return the answer of a server with clients that came so many seconds ago."""
    clients = [{**to_plain(CLIENT), "server": server, "id": f"{age:g}", "connected_at": 1000 - age} for age in ages]
    return {"server": server, "total": len(clients) if total is None else total, "clients": clients}


@pytest.fixture
def status(redis: str) -> Status:
    reported.put(reported.server("a"), reported.server("b"))
    return get_status()


def test_clients_of_all_servers_the_newest_first(status: Status) -> None:
    with servers_that_answer(clients_of("a", 1, 4), clients_of("b", 2, 3, total=70)) as orders:
        found = list_clients(status, search="ada", limit=3, timeout=DEADLINE)
    assert [client.id for client in found.clients] == ["1", "2", "3"]
    assert (found.total, found.silent) == (72, ())
    assert orders[0] == {"order": "list_clients", "search": "ada", "limit": 3, "reply": orders[0]["reply"]}


@pytest.mark.parametrize(("limit", "asked"), [(10_000, MAX_CLIENTS), (-1, 0)])
def test_how_many_clients_are_told_has_its_bounds(status: Status, limit: int, asked: int) -> None:
    many = [clients_of(server, *range(400)) for server in "ab"]
    with servers_that_answer(*many) as orders:
        found = list_clients(status, limit=limit, timeout=DEADLINE)
    assert orders[0]["limit"] == len(found.clients) == asked


def test_a_server_that_does_not_answer_is_named(status: Status) -> None:
    with servers_that_answer(clients_of("b", 1)):
        found = list_clients(status, timeout=1)
    assert (len(found.clients), found.total, found.silent) == (1, 1, ("a",))


@pytest.mark.parametrize(
    "told",
    [
        {"server": "a"},
        {"server": "a", "total": "1", "clients": []},
        {"server": "a", "total": 1, "clients": {}},
        {"server": "a", "total": 1, "clients": [3]},
        {"server": "a", "total": 1, "clients": [{"id": "1"}]},
        {"server": ["a"], "total": 1, "clients": []},
    ],
)
def test_an_answer_that_cannot_be_read_hides_no_other(status: Status, told: Any) -> None:
    with servers_that_answer(told, clients_of("b", 1)):
        found = list_clients(status, timeout=DEADLINE)
    assert [client.id for client in found.clients] == ["1"] and found.silent == ("a",)


def test_the_clients_of_a_group_are_asked_for(status: Status) -> None:
    with servers_that_answer(clients_of("a", 1), clients_of("b")) as orders:
        found = list_clients(status, group="room.7", timeout=DEADLINE)
    assert orders[0]["group"] == "room.7" and (len(found.clients), found.total) == (1, 1)


def groups_of(server: str, total: int | None = None, **sizes: int) -> dict[str, Any]:
    """Return the answer of a server with these groups."""
    groups = [{"name": name, "connections": count, "persons": None} for name, count in sizes.items()]
    return {"server": server, "total": len(groups) if total is None else total, "groups": groups}


def test_groups_of_all_servers_together_the_biggest_first(status: Status) -> None:
    with servers_that_answer(groups_of("a", lobby=5, zoo=2, attic=2), groups_of("b", zoo=4, attic=4)) as orders:
        found = list_groups(status, search="o", limit=2, timeout=DEADLINE)
    assert [(group.name, group.connections, group.persons) for group in found.groups] == [
        ("attic", 6, None),
        ("zoo", 6, None),
    ]
    assert (found.total, found.silent) == (3, ())
    assert orders[0] == {"order": "list_groups", "search": "o", "limit": 2, "reply": orders[0]["reply"]}


def test_of_more_groups_than_one_server_tells_it_is_said_how_many(status: Status) -> None:
    with servers_that_answer(groups_of("a", total=5000, lobby=5)):
        found = list_groups(status, timeout=1)
    assert (len(found.groups), found.total, found.silent) == (1, 5000, ("b",))


@pytest.mark.parametrize(
    "told",
    [
        {"server": "a"},
        {"server": "a", "total": 1, "groups": {}},
        {"server": "a", "total": 1, "groups": [{"name": "x"}]},
        {"server": "a", "total": 1, "groups": [{"name": "x", "connections": "1"}]},
    ],
)
def test_an_answer_about_groups_that_cannot_be_read_hides_no_other(status: Status, told: Any) -> None:
    with servers_that_answer(told, groups_of("b", lobby=1)):
        found = list_groups(status, timeout=DEADLINE)
    assert [group.name for group in found.groups] == ["lobby"] and found.silent == ("a",)


def test_without_servers_nobody_is_asked(redis: str) -> None:
    found = list_clients(get_status(), timeout=DEADLINE)
    assert (found.clients, found.total, found.silent) == ((), 0, ())
    groups = list_groups(get_status(), timeout=DEADLINE)
    assert (groups.groups, groups.total, groups.silent) == ((), 0, ())


def test_an_order_that_redis_does_not_take_has_no_answers(status: Status, settings: Any) -> None:
    settings.MEASE_REDIS_URL = "unix:///nonexistent/redis.sock"
    assert ask({"order": "list_clients"}, expected=2, timeout=DEADLINE) == []
    assert list_clients(status, timeout=DEADLINE).silent == ("a", "b")


def test_answers_come_until_there_are_enough(redis: str) -> None:
    key = connections.names().reply_key("token")
    reported.redis_client().rpush(key, '{"a": 1}', "no JSON", "[]", "[" * 100_000, '{"b": 2}', '{"c": 3}')
    assert list(answers("token", expected=2, timeout=DEADLINE)) == [{"a": 1}, {"b": 2}]
    assert list(answers("token", expected=0, timeout=DEADLINE)) == []


def test_answers_are_waited_for_no_longer_than_is_said(redis: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reporting, "MAX_SLICE", 0.05)
    began = time.monotonic()
    assert list(answers("token", expected=1, timeout=0.2)) == []
    assert 0.2 <= time.monotonic() - began < DEADLINE


def test_an_answer_that_comes_late_is_waited_for(redis: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reporting, "MAX_SLICE", 0.05)
    client = reported.redis_client()
    timer = threading.Timer(0.2, lambda: client.rpush(connections.names().reply_key("token"), '{"a": 1}'))
    timer.start()
    assert list(answers("token", expected=1, timeout=DEADLINE)) == [{"a": 1}]
    timer.join()


def test_an_impatient_connection_is_not_kept_waiting(
    redis: str, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reporting, "MAX_SLICE", DEADLINE)
    settings.MEASE_REDIS_OPTIONS = {"socket_timeout": 1}
    assert list(answers("token", expected=1, timeout=1.2)) == []
    settings.MEASE_REDIS_OPTIONS = {"socket_timeout": None}
    assert list(answers("token", expected=1, timeout=0.1)) == []


def test_redis_that_goes_while_answers_are_waited_for(own_valkey: EmbeddedValkey) -> None:
    kill: Callable[[], None] = lambda: os.kill(own_valkey._pid(), signal.SIGKILL)  # noqa: E731
    timer = threading.Timer(0.1, kill)
    timer.start()
    with pytest.raises((RedisError, OSError)):
        list(answers("token", expected=1, timeout=DEADLINE))
    timer.join()
