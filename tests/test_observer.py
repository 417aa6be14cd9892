"""What a server reports is what happened: counts, messages, clients, traces, and that it is gone when it is gone."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest
from redis import Redis

import djmease
from djmease import connections, messages, reporting
from djmease.embedded import EmbeddedValkey
from djmease.reporting import Status, get_status
from djmease.reports import CallbackReport, MessageTrace, ServerReport, read
from djmease.server import observer
from tests.support import DEADLINE, LiveServer, Project, eventually
from tests.test_metrics import samples, value

StartServer = Callable[[], LiveServer]


@pytest.fixture(autouse=True)
def often(settings: Any) -> None:
    settings.MEASE_REPORT_INTERVAL = 0.1


def status_with(servers: int = 1) -> Status:
    """Return the first status in which so many servers are."""
    return eventually(lambda: (status := get_status()) and len(status.servers) == servers and status, "the servers")


def report_when(condition: Callable[[ServerReport], Any]) -> ServerReport:
    """Return the first report of the one server that meets the condition."""

    def found() -> ServerReport | None:
        servers = get_status().servers
        return servers[0] if servers and condition(servers[0]) else None

    return eventually(found, "the report")


def callback_of(report: ServerReport, name: str) -> CallbackReport:
    (found,) = [callback for callback in report.callbacks if callback.path.endswith(name)]
    return found


def test_a_server_says_who_it_is_and_what_is_registered(start_server: StartServer) -> None:
    @djmease.sender(routing=["news", "chat.*"])
    async def show(message: Any, clients_list: Any) -> None: ...

    @djmease.receiver
    def hear(message: Any) -> None: ...

    began = time.time()
    server = start_server()
    (report,) = status_with().servers
    assert report.pid == os.getpid()
    assert report.addresses == (f"ws://127.0.0.1:{server.port}/",)
    assert began <= report.started_at <= report.reported_at <= time.time()
    assert (report.trouble, report.is_draining, report.clients) == (None, False, 0)
    assert report.memory > 1_000_000 and report.threads > 1 and report.cpu > 0
    found = [(callback.kind, callback.routing, callback.is_async) for callback in report.callbacks]
    assert found == [("sender", "news", True), ("sender", "chat.*", True), ("receiver", None, False)]
    assert "tests.test_observer:" in callback_of(report, "hear").source
    assert get_status().is_well


def test_what_is_delivered_is_counted_once_for_each_client_that_was_written_to(start_server: StartServer) -> None:
    @djmease.sender(routing="some")
    def to_two(message: Any, clients_list: Any) -> None:
        for client in clients_list[:2]:
            client.write_message(message)

    @djmease.sender(routing="some")
    def to_all(message: Any, clients_list: Any) -> None:
        clients_list.send(message)

    @djmease.sender(routing="some")
    async def to_one_later(message: Any, clients_list: Any) -> None:
        await asyncio.sleep(0.001)
        clients_list[0].write_message(message)

    server = start_server()
    clients = [server.connect() for _ in range(3)]
    for index in range(20):
        djmease.publish("some", f"message {index}")
    for count, client in zip((60, 40, 20), clients, strict=True):
        for _ in range(count):
            client.recv(timeout=DEADLINE)
    report = report_when(lambda report: callback_of(report, "to_one_later").calls == 20)
    assert (report.published, report.sent, report.clients, report.opened) == (20, 120, 3, 3)
    found = [(callback.heard, callback.calls, callback.delivered, callback.errors) for callback in report.callbacks]
    assert found == [(20, 20, 40, 0), (20, 20, 60, 0), (20, 20, 20, 0)]
    assert report.bytes_out == sum(6 * (2 + len(f"message {index}")) for index in range(20))
    assert [message.reached for message in report.messages] == [6] * 20
    assert all(message.lag is not None and message.lag < DEADLINE for message in report.messages)
    assert report.lag_p50 is not None and report.lag_p99 is not None and report.lag_p50 <= report.lag_p99
    for callback in report.callbacks:
        assert callback.p50 is not None and callback.p99 is not None and 0 < callback.p50 <= callback.p99
    assert callback_of(report, "to_one_later").p50 > 0.0008


def test_two_senders_that_write_the_same_message_are_told_apart(start_server: StartServer) -> None:
    @djmease.sender(routing="same")
    def first(message: Any, clients_list: Any) -> None:
        for client in clients_list:
            client.write_message(message)

    @djmease.sender(routing="same")
    def second(message: Any, clients_list: Any) -> None:
        for client in clients_list:
            client.write_message(message)

    client = start_server().connect()
    djmease.publish("same", "x")
    assert [client.recv(timeout=DEADLINE) for _ in range(2)] == ["x", "x"]
    report = report_when(lambda report: callback_of(report, "second").calls == 1)
    assert [callback.delivered for callback in report.callbacks] == [1, 1]


def test_receivers_are_counted_and_what_they_raise_is_shown(start_server: StartServer) -> None:
    @djmease.receiver
    def hear(message: Any) -> None:
        if message == "bad":
            raise ValueError("not <this>")

    client = start_server().connect()
    for text in ("good", "bad", "good"):
        client.send(text)
    report = report_when(lambda report: callback_of(report, "hear").calls == 3)
    callback = callback_of(report, "hear")
    assert (callback.errors, callback.last_error) == (1, "ValueError: not <this>")
    assert callback.last_error_at is not None and callback.last_at is not None
    assert (report.received, report.errors, report.recent_errors) == (3, 1, 1)
    assert report.bytes_in == 3 * 6 + len("goodbadgood")
    (problem,) = get_status().problems
    assert (problem.kind, problem.is_error) == ("errors", False)


def test_connections_that_end_are_counted_by_their_close_code(start_server: StartServer) -> None:
    server = start_server()
    server.connect().close(code=4000)
    server.connect().close()
    kept = server.connect()
    report = report_when(lambda report: report.clients == 1 and report.opened == 3 and report)
    assert report.closed == {"4000": 1, "1000": 1}
    assert kept.close_code is None


def test_a_routing_without_a_sender_is_named(start_server: StartServer, settings: Any) -> None:
    settings.MEASE_STRICT_ROUTING = False
    start_server()
    djmease.publish("nobody", "x")
    djmease.publish("nobody", "x")
    report = report_when(lambda report: report.unrouted and report.unrouted[0].count == 2)
    assert report.unrouted[0].routing == "nobody"
    assert report.published == 2 and report.messages == ()


def test_bodies_are_shown_only_where_the_setting_says_so(start_server: StartServer, settings: Any) -> None:
    settings.MEASE_ROUTES = {"news": "djmease.senders.broadcast"}
    start_server()
    djmease.publish("news", {"secret": 1})
    assert report_when(lambda report: report.messages).messages[0].body is None
    settings.MEASE_REPORT_BODIES = True
    second = start_server()
    djmease.publish("news", {"a": "ü" * 300})
    djmease.publish("news", b"\x00\x01")

    def bodies() -> list[str | None]:
        reports = [each for each in get_status().servers if each.addresses[0].endswith(f":{second.port}/")]
        return [message.body for message in reports[0].messages] if reports else []

    first, last = eventually(lambda: len(bodies()) == 2 and bodies())
    assert first == ('{"a":"' + "ü" * 300)[:200]
    assert last == "00 01"


def test_two_servers_are_put_together(start_server: StartServer, settings: Any) -> None:
    settings.MEASE_ROUTES = {"news": "djmease.senders.broadcast"}
    servers = [start_server(), start_server()]
    clients = [server.connect() for server in (servers[0], servers[0], servers[1])]
    djmease.publish("news", "x")
    for client in clients:
        client.recv(timeout=DEADLINE)
    status = eventually(lambda: (s := get_status()).callbacks and s.callbacks[0].delivered == 3 and s)
    assert (status.clients, len(status.servers), status.is_well) == (3, 2, True)
    (callback,) = status.callbacks
    assert (callback.heard, callback.calls) == (1, 2)
    (message,) = status.messages
    assert message.reached == 3


def test_a_server_that_stops_takes_its_report_back(start_server: StartServer) -> None:
    server = start_server()
    status_with(1)
    server.stop()
    assert get_status().servers == ()
    assert get_status().problems[0].kind == "no_server"


def test_a_server_that_was_killed_is_gone_within_three_intervals(project: Project, settings: Any) -> None:
    project.settings("MEASE_REPORT_INTERVAL = 0.5")
    settings.MEASE_REDIS_URL = "embedded://"
    settings.MEASE_KEY_PREFIX = "mease"
    settings.MEASE_EMBEDDED_DIR = str(project.runtime)
    killed, other = (
        project.start("run_websocket_server", "--noreload"),
        project.start("run_websocket_server", "--noreload"),
    )
    killed.port(), other.port()
    status_with(2)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    began = time.monotonic()
    (left,) = status_with(1).servers
    assert left.pid == other.pid
    assert time.monotonic() - began < 10


def test_a_redis_that_lost_everything_is_told_everything_again(
    start_server: StartServer, own_valkey: EmbeddedValkey
) -> None:
    @djmease.receiver
    def hear(message: Any) -> None: ...

    start_server()
    status_with(1)
    redis = Redis(connection_pool=connections.publisher_pool())
    redis.flushall()
    assert [callback.path for callback in status_with(1).servers[0].callbacks] == [f"{__name__}.{hear.__qualname__}"]
    os.kill(own_valkey._pid(), signal.SIGKILL)
    eventually(lambda: get_status().problems[0].kind == "redis")
    own_valkey.ensure_running()
    assert eventually(lambda: (s := get_status()).is_well and s).servers[0].reconnects == 1


def test_a_redis_that_forbids_reports_is_said_once_and_what_is_published_still_comes(
    start_server: StartServer, own_valkey: EmbeddedValkey, settings: Any, log_of: Callable[[], list[str]]
) -> None:
    settings.MEASE_ROUTES = {"news": "djmease.senders.broadcast"}
    redis = Redis(connection_pool=connections.publisher_pool())
    prefix = settings.MEASE_KEY_PREFIX
    redis.acl_setuser(
        "mease",
        enabled=True,
        nopass=True,
        channels=[f"{prefix}:*", f"{prefix}.*"],
        keys=[],
        commands=["+publish", "+subscribe", "+psubscribe"],
    )
    settings.MEASE_REDIS_URL = f"unix://mease:any@{own_valkey.socket}"
    client = start_server().connect()
    warned = eventually(lambda: [line for line in log_of() if "cannot report" in line])
    assert f"~{prefix}.*" in warned[0] and "+hset" in warned[0]
    djmease.publish("news", "x")
    assert client.recv(timeout=DEADLINE) == "x"
    assert len([line for line in log_of() if "cannot report" in line]) == 1


def test_without_an_interval_nothing_is_reported_and_questions_are_answered(
    start_server: StartServer, settings: Any
) -> None:
    settings.MEASE_REPORT_INTERVAL = None
    server = start_server()
    server.connect()
    assert get_status().servers == ()
    (answer,) = reporting.ask({"order": "list_clients"}, expected=1, timeout=DEADLINE)
    assert (answer["total"], len(answer["clients"])) == (1, 1)


def test_clients_are_listed_newest_first_and_searched(start_server: StartServer) -> None:
    @djmease.opener
    def enter(client: Any) -> None:
        client.join(f"room.{client.request.arguments['room'][0].decode()}")

    server = start_server()
    for room in ("a", "b", "a"):
        server.connect(f"?room={room}")
    status = status_with()
    found = reporting.list_clients(status)
    assert (found.total, found.silent) == (3, ())
    assert [client.groups for client in found.clients] == [("room.a",), ("room.b",), ("room.a",)]
    assert {client.server for client in found.clients} == {status.servers[0].id}
    assert found.clients[0].connected_at >= found.clients[2].connected_at
    assert reporting.list_clients(status, search="ROOM.B").total == 1
    assert reporting.list_clients(status, search=found.clients[0].id).clients == found.clients[:1]
    assert reporting.list_clients(status, search="no such").clients == ()
    limited = reporting.list_clients(status, limit=2)
    assert (limited.total, len(limited.clients)) == (3, 2)


def in_rooms(start_server: StartServer, *rooms: str) -> LiveServer:
    """Return a server with a client in each of these rooms, joined by "+"; declare ``enter`` once before."""
    server = start_server()
    for names in rooms:
        server.connect(f"?rooms={names.replace('+', '%2B')}")
    return server


@pytest.fixture
def rooms() -> None:
    @djmease.opener
    def enter(client: Any) -> None:
        for room in client.request.arguments["rooms"][0].decode().split("+"):
            client.join(room)


def told(**options: Any) -> list[tuple[str, int, int | None]]:
    found = reporting.list_groups(get_status(), timeout=DEADLINE, **options)
    assert found.silent == ()
    return [(group.name, group.connections, group.persons) for group in found.groups]


def test_groups_are_told_with_their_sizes_on_all_servers(start_server: StartServer, rooms: None) -> None:
    in_rooms(start_server, "lobby", "lobby+attic", "kitchen")
    last = in_rooms(start_server, "lobby", "attic+attic")
    status = status_with(2)
    assert told() == [("lobby", 3, None), ("attic", 2, None), ("kitchen", 1, None)]
    assert told(search="TT") == [("attic", 2, None)]
    assert told(search="cellar") == []
    members = reporting.list_clients(status, group="lobby")
    assert [client.groups for client in members.clients] == [("lobby",), ("attic", "lobby"), ("lobby",)]
    assert members.clients[0].connected_at > members.clients[2].connected_at
    both = reporting.list_clients(status, group="lobby", search="attic")
    assert (both.total, both.clients[0].groups) == (1, ("attic", "lobby"))
    assert reporting.list_clients(status, group="cellar").total == 0
    last.stop()
    status_with(1)
    assert told() == [("lobby", 2, None), ("attic", 1, None), ("kitchen", 1, None)]


def test_a_group_that_one_server_does_not_tell_of_is_counted_there_too(start_server: StartServer, rooms: None) -> None:
    in_rooms(start_server, "big", "big", "big", "even", "even")
    in_rooms(start_server, "even", "even", "small")
    status_with(2)
    # Each has two groups, and tells of one.
    assert told(limit=1) == [("even", 4, None)]
    assert reporting.list_groups(get_status(), limit=1).total == 2


def test_of_groups_with_presence_the_persons_are_told_too(
    start_server: StartServer, rooms: None, settings: Any
) -> None:
    settings.MEASE_PRESENCE = ["board.*"]
    in_rooms(start_server, "board.1+lobby", "board.1", "board.2")
    in_rooms(start_server, "board.1")
    status_with(2)
    expected = [("board.1", 3, 3), ("board.2", 1, 1), ("lobby", 1, None)]
    eventually(lambda: told() == expected, f"{expected}, and not {told()}")


def test_thousands_of_groups_are_looked_at_in_turns(start_server: StartServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observer, "TURN", 3)

    @djmease.opener
    def enter(client: Any) -> None:
        for number in range(int(client.request.arguments["rooms"][0])):
            client.join(f"room.{number}")

    server = start_server()
    for count in (10, 4, 1):
        server.connect(f"?rooms={count}")
    status_with()
    assert told(limit=5) == [(f"room.{number}", size, None) for number, size in enumerate((3, 2, 2, 2, 1))]
    assert reporting.list_groups(get_status(), limit=5).total == 10
    assert reporting.list_groups(get_status(), search="room.1", limit=5).total == 1


def test_that_redis_cannot_be_told_of_presence_is_reported(
    start_server: StartServer, own_valkey: EmbeddedValkey, settings: Any, rooms: None
) -> None:
    settings.MEASE_PRESENCE = ["board.*"]
    server = in_rooms(start_server, "board.1")
    assert report_when(lambda report: report.clients == 1).presence_trouble is None
    redis = Redis(connection_pool=connections.publisher_pool())
    redis.acl_setuser("default", enabled=True, nopass=True, keys=["*"], channels=["*"], commands=["+@all", "-evalsha"])
    server.connect("?rooms=board.2")
    report = report_when(lambda report: report.presence_trouble)
    assert report.presence_trouble is not None and "evalsha" in report.presence_trouble
    (problem,) = get_status().problems
    assert (problem.kind, problem.is_error) == ("presence", False) and "evalsha" in problem.text
    assert value(samples(server), "mease_presence_ready") == 0
    redis.acl_setuser("default", enabled=True, nopass=True, keys=["*"], channels=["*"], commands=["+@all"])
    report_when(lambda report: report.presence_trouble is None)
    assert get_status().problems == ()


def test_a_server_that_does_not_answer_is_named(start_server: StartServer) -> None:
    start_server()
    status = status_with()
    gone = Status(
        taken_at=status.taken_at,
        redis=status.redis,
        prefix=status.prefix,
        servers=(*status.servers, read(ServerReport, {**_fields(status.servers[0]), "id": "gone"})),
    )
    found = reporting.list_clients(gone, timeout=0.2)
    assert found.silent == ("gone",)


def _fields(server: ServerReport) -> dict[str, Any]:
    names = ("id", "host", "pid", "version", "settings", "registry", "started_at", "reported_at", "interval")
    return {**{name: getattr(server, name) for name in names}, "addresses": list(server.addresses)}


@pytest.mark.parametrize(
    "order",
    [
        {"search": 7, "limit": "many", "group": 7, "names": 7},
        {"search": "x" * 10_000, "limit": -1, "group": "\n", "names": [7, None, "x" * 10_000, *["a"] * 1000]},
        {},
    ],
)
@pytest.mark.parametrize("name", ["list_clients", "list_groups"])
def test_a_bad_question_harms_nobody(start_server: StartServer, order: dict[str, Any], name: str) -> None:
    server = start_server()
    server.connect()
    answers = reporting.ask({"order": name, **order}, expected=1, timeout=DEADLINE)
    assert answers[0]["server"] == status_with().servers[0].id


@pytest.mark.parametrize("token", [None, 7, "a b", "../../x", "x" * 65, ""])
def test_only_a_token_is_answered(start_server: StartServer, token: Any, redis: str) -> None:
    server = start_server()
    server.control({"order": "list_clients", "reply": token})
    assert reporting.ask({"order": "list_clients"}, expected=1, timeout=DEADLINE)
    names = Redis(connection_pool=connections.publisher_pool()).keys(f"{redis[:-1]}.reply*")
    assert names == []


# Traces


def publish_traced(routing: str, body: str, **targets: Any) -> dict[str, Any]:
    token = secrets.token_hex(16)
    payload = messages.encode(
        kind=b"t", body=body.encode(), message_id=messages.new_id(), published_at=time.time(), trace=token, **targets
    )
    redis = Redis(connection_pool=connections.publisher_pool())
    redis.publish(connections.names().routing_channel(routing), payload)
    (answer,) = reporting.answers(token, expected=1, timeout=DEADLINE)
    return answer


def test_a_trace_tells_what_each_sender_did(start_server: StartServer) -> None:
    @djmease.sender(routing="news")
    def show(message: Any, clients_list: Any) -> None:
        clients_list.send(message)

    @djmease.sender(routing="*")
    async def fail(message: Any, clients_list: Any) -> None:
        await asyncio.sleep(0)
        raise RuntimeError("broken")

    server = start_server()
    clients = [server.connect() for _ in range(2)]
    answer = publish_traced("news", "x")
    trace = read(MessageTrace, answer)
    assert (trace.clients, trace.chosen, trace.dropped, trace.pid) == (2, 2, None, os.getpid())
    assert 0 <= trace.lag < DEADLINE and 0 <= trace.waited < DEADLINE
    first, second = trace.senders
    assert (first.handed, first.reached, first.error) == (2, 2, None)
    assert (second.handed, second.reached, second.error) == (2, 0, "RuntimeError: broken")
    assert len(trace.names) == 2
    assert [client.recv(timeout=DEADLINE) for client in clients] == ["x", "x"]


def test_a_trace_says_why_nobody_got_it(start_server: StartServer, settings: Any) -> None:
    settings.MEASE_ROUTES = {"news": "djmease.senders.broadcast"}
    start_server().connect()
    assert "no sender" in publish_traced("other", "x")["dropped"]
    trace = read(MessageTrace, publish_traced("news", "x", groups=["empty"]))
    assert (trace.clients, trace.chosen, trace.senders[0].reached, trace.names) == (1, 0, 0, ())


# Plots


def test_the_plots_show_what_was_sent_and_received(start_server: StartServer, settings: Any) -> None:
    settings.MEASE_ROUTES = {"news": "djmease.senders.broadcast"}
    client = start_server().connect()
    for index in range(10):
        djmease.publish("news", str(index))
        client.send("x")
        client.recv(timeout=DEADLINE)
    history = report_when(lambda report: sum(report.history.sent) and sum(report.history.received)).history
    assert history.interval == 0.1
    assert len({len(getattr(history, name)) for name in ("clients", "received", "sent", "lag", "loop_delay")}) == 1
    assert max(history.clients) == 1 and max(history.lag) > 0


def test_clients_that_do_not_read_show_in_what_is_unsent(start_server: StartServer, settings: Any) -> None:
    settings.MEASE_ROUTES = {"news": "djmease.senders.broadcast"}
    settings.MEASE_MAX_CLIENT_BUFFER = 64 * 1024 * 1024
    client = start_server().connect(max_queue=1)
    for _ in range(40):
        djmease.publish("news", "x" * 500_000)
    report_when(lambda report: report.unsent > 1_000_000)
    for _ in range(40):
        client.recv(timeout=DEADLINE)
    report_when(lambda report: report.unsent == 0)
