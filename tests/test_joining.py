"""The subprotocol mease.v1: who may join which group, what is answered, and whose messages have a header."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.exceptions import PermissionDenied
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect
from websockets.typing import Subprotocol

import djmease
from djmease import loader
from djmease.embedded import EmbeddedValkey
from djmease.messages import Message, new_id
from djmease.server.client import Client
from djmease.server.forms import forms_of, header_of, read_header
from djmease.server.outbox import frame_of
from tests.support import DEADLINE, ROOT, LiveServer, eventually
from tests.test_groups import logged_in

StartServer = Callable[[], LiveServer]


def may_read(user: Any, group: str) -> bool:
    return group.endswith(f".{user.get_username()}")


def fails(user: Any) -> bool:
    raise OSError("the database is away")


def is_staff(user: Any) -> bool:
    return bool(user.is_staff)


def takes_nothing() -> bool:
    return True


class Page:
    """A client that speaks mease.v1."""

    def __init__(self, server: LiveServer, **options: Any) -> None:
        self.connection = server.connect(subprotocols=["mease.v1"], **options)
        assert self.connection.subprotocol == "mease.v1"
        self.ready = self.header()
        """What says that what is published from now on comes."""
        assert self.ready == {"type": "ready"}

    def ask(self, **fields: Any) -> dict[str, Any]:
        self.connection.send("\x1e" + json.dumps(fields))
        return self.header()

    def header(self) -> dict[str, Any]:
        fields, message = self.receive()
        assert message is None
        return fields

    def all_headers(self) -> Iterator[dict[str, Any]]:
        """Ask for everything there is, and yield what is asked and what is answered."""
        for fields in (
            {"type": "join", "group": "open.7", "ref": 1},
            {"type": "leave", "group": "open.7"},
            {"type": "join", "group": "other", "ref": -1},
            {"type": "join", "group": "users"},
            {"type": "ping"},
        ):
            yield fields
            yield self.ask(**fields)

    def receive(self) -> tuple[dict[str, Any], str | None]:
        text = self.connection.recv(DEADLINE)
        assert isinstance(text, str)
        return read_header(text) if text.startswith("\x1e") else ({}, text)


@pytest.fixture(autouse=True)
def routes(settings: Any) -> None:
    settings.MEASE_ROUTES = {"news": "djmease.senders.broadcast"}
    settings.MEASE_GROUPS = {
        "open.*": True,
        "open.closed": False,
        "mine.*": {"USER_PASSES_TEST": f"{__name__}.may_read"},
        "staff": {"USER_PASSES_TEST": f"{__name__}.is_staff"},
        "away": {"USER_PASSES_TEST": f"{__name__}.fails"},
        "users": {"LOGIN_REQUIRED": True},
    }


def test_a_client_joins_hears_and_leaves(start_server: StartServer) -> None:
    page = Page(start_server())
    assert page.ask(type="join", group="open.7", ref=1) == {"type": "joined", "group": "open.7", "ref": 1}
    djmease.publish("news", {"n": 1}, group="open.7")
    assert page.receive() == ({"groups": ["open.7"]}, '{"n":1}')
    djmease.publish("news", "to all")
    assert page.receive() == ({}, "to all")
    assert page.ask(type="leave", group="open.7") == {"type": "left", "group": "open.7"}
    djmease.publish("news", "x", group="open.7")
    djmease.publish("news", "end")
    assert page.receive() == ({}, "end")


def test_what_is_published_after_ready_is_received(start_server: StartServer) -> None:
    go_on = threading.Event()

    @djmease.opener
    def take_time(client: Any) -> None:
        client.send("greeting")
        assert go_on.wait(DEADLINE)

    server = start_server()
    with connect(server.url, subprotocols=["mease.v1"]) as connection:
        assert connection.recv(DEADLINE) == "greeting"
        djmease.publish("news", "before its openers are done")
        eventually(lambda: server.server._dispatch.published_count == 1)
        server.call(lambda: None)
        go_on.set()
        assert connection.recv(DEADLINE) == '\x1e{"type":"ready"}'
        djmease.publish("news", "after")
        assert connection.recv(DEADLINE) == "after"


def test_who_is_turned_away_is_never_told_that_all_is_ready(start_server: StartServer) -> None:
    @djmease.opener
    def turn_away() -> None:
        raise PermissionDenied("not here")

    with connect(start_server().url, subprotocols=["mease.v1"]) as connection:
        with pytest.raises(ConnectionClosed) as closed:
            connection.recv(DEADLINE)
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 4403


def test_what_is_published_after_the_answer_is_received(start_server: StartServer) -> None:
    page = Page(start_server())
    for number in range(100):
        page.ask(type="join", group=f"open.{number}")
        djmease.publish("news", str(number), group=f"open.{number}")
        assert page.receive() == ({"groups": [f"open.{number}"]}, str(number))


def test_each_reason_is_logged_with_the_setting_that_is_its_cure(start_server: StartServer, log_of: Any) -> None:
    page = Page(start_server())
    for fields in ({"type": "join", "group": "other"}, {"type": "dance"}, {"type": "join", "group": "users"}):
        page.ask(**fields)
    told = [line.partition(" may not ")[2] for line in log_of() if " may not " in line]
    assert told == [
        "'join' 'other': not_listed (no entry of MEASE_GROUPS allows it)",
        "'dance' None: unknown_type",
        "'join' 'users': login_required",
    ]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"type": "join", "group": "other"}, "not_listed"),
        ({"type": "join", "group": "open.closed"}, "not_listed"),
        ({"type": "join", "group": "mease.x"}, "not_listed"),
        ({"type": "join", "group": "a room"}, "not_listed"),
        ({"type": "join", "group": ["open.7"]}, "not_listed"),
        ({"type": "join"}, "not_listed"),
        ({"type": "dance", "group": "open.7"}, "unknown_type"),
        ({"type": 7}, "unknown_type"),
        ({}, "unknown_type"),
        ({"type": "join", "group": "users"}, "login_required"),
        ({"type": "join", "group": "staff"}, "user_passes_test"),
        ({"type": "join", "group": "away"}, "error"),
    ],
)
@pytest.mark.django_db(transaction=True)
def test_what_is_not_declared_is_refused(start_server: StartServer, fields: dict[str, Any], reason: str) -> None:
    server = start_server()
    page = Page(server)
    answer = page.ask(ref=3, **fields)
    assert (answer["type"], answer["reason"], answer["ref"]) == ("refused", reason, 3)
    assert server.server.clients.snapshot()[0].groups == frozenset()


def test_where_any_group_may_be_joined_those_of_ours_may_not(start_server: StartServer, settings: Any) -> None:
    settings.MEASE_GROUPS = {"*": True}
    server = start_server()
    page = Page(server)
    assert page.ask(type="join", group="mease.x", ref=1)["reason"] == "not_listed"
    assert page.ask(type="join", group="any", ref=2)["type"] == "joined"
    assert server.server.clients.snapshot()[0].own_groups == {"any"}


@pytest.mark.django_db(transaction=True)
def test_a_rule_is_asked_with_the_user_and_the_group(start_server: StartServer, settings: Any) -> None:
    headers = logged_in(User.objects.create_user("ada", is_staff=True), settings)
    page = Page(start_server(), additional_headers=headers)
    assert page.ask(type="join", group="mine.ada")["type"] == "joined"
    assert page.ask(type="join", group="mine.bob")["reason"] == "user_passes_test"
    assert page.ask(type="join", group="staff")["type"] == "joined"
    assert page.ask(type="join", group="users")["type"] == "joined"


def test_a_client_cannot_leave_where_it_was_put_in(start_server: StartServer) -> None:
    @djmease.opener
    def put(client: Any) -> None:
        client.join("open.given")

    server = start_server()
    page = Page(server)
    page.ask(type="leave", group="open.given")
    assert server.server.clients.snapshot()[0].groups == {"open.given"}


def test_the_groups_of_one_client_are_bounded(start_server: StartServer, settings: Any) -> None:
    settings.MEASE_MAX_GROUPS = 3
    page = Page(start_server())
    for number in range(3):
        assert page.ask(type="join", group=f"open.{number}")["type"] == "joined"
    assert page.ask(type="join", group="open.3")["reason"] == "too_many"
    assert page.ask(type="join", group="open.2")["type"] == "joined"
    page.ask(type="leave", group="open.0")
    assert page.ask(type="join", group="open.3")["type"] == "joined"


def test_questions_and_messages_are_taken_in_their_order(start_server: StartServer) -> None:
    @djmease.receiver
    def groups(client: Any, message: Any) -> None:
        client.send(sorted(client.groups))

    page = Page(start_server())
    for number in range(20):
        page.connection.send("\x1e" + json.dumps({"type": "join", "group": f"open.{number:02}"}))
        page.connection.send("which?")
    for number in range(20):
        assert page.header()["type"] == "joined"
        assert json.loads(page.receive()[1] or "") == [f"open.{each:02}" for each in range(number + 1)]


def test_groups_that_cannot_be_joined_are_not_named(start_server: StartServer) -> None:
    @djmease.opener
    def put(client: Any) -> None:
        client.join("secret")

    page = Page(start_server())
    page.ask(type="join", group="open.1")
    djmease.publish("news", "x", group=["secret", "open.1"])
    djmease.publish("news", "y", group="secret")
    assert page.receive() == ({"groups": ["open.1"]}, "x")
    assert page.receive() == ({}, "y")


def test_clients_with_and_without_headers_get_the_same_message(start_server: StartServer, settings: Any) -> None:
    settings.MEASE_COMPRESSION = True

    @djmease.opener
    def put(client: Any) -> None:
        client.join("open.all")

    server = start_server()
    page, small_page = Page(server), Page(server, compression="deflate")
    raw, small_raw = server.connect(), server.connect(compression="deflate")
    for body in ("short", "long " * 500, "\x1eodd", b"\x1ebytes", {"a": 1}):
        djmease.publish("news", body, group="open.all")
        djmease.publish("news", body)
        expected = body if isinstance(body, (str, bytes)) else json.dumps(body, separators=(",", ":"))
        for connection in (raw, small_raw):
            assert [connection.recv(DEADLINE) for _ in range(2)] == [expected] * 2
        for connection in (page.connection, small_page.connection):
            tagged, plain = (connection.recv(DEADLINE) for _ in range(2))
            mark = "\x1e" if isinstance(expected, str) else b"\x1e"
            header = '\x1e{"groups":["open.all"]}\n'
            escaped = "\x1e{}\n" if expected[:1] == mark else ""
            if isinstance(expected, bytes):
                assert tagged == header.encode() + expected
                assert plain == escaped.encode() + expected
            else:
                assert (tagged, plain) == (header + expected, escaped + expected)


def test_a_burst_of_both_kinds_comes_whole_and_in_order(start_server: StartServer) -> None:
    @djmease.opener
    def put(client: Any) -> None:
        client.join("open.all")

    server = start_server()
    page, raw = Page(server), server.connect()
    for number in range(200):
        whom = {"group": "open.all"} if number % 3 else {}
        djmease.publish("news", str(number), **whom)
    assert [raw.recv(DEADLINE) for _ in range(200)] == [str(number) for number in range(200)]
    for number in range(200):
        assert page.receive() == ({"groups": ["open.all"]} if number % 3 else {}, str(number))


def test_a_ping_is_answered_and_a_message_behind_an_empty_header_is_received(start_server: StartServer) -> None:
    heard: list[Any] = []
    djmease.receiver(heard_by(heard))
    page = Page(start_server())
    assert page.ask(type="ping") == {"type": "pong"}
    page.connection.send("\x1e{}\n\x1eodd\nlines")
    eventually(lambda: heard == ["\x1eodd\nlines"])


def test_questions_count_as_messages(start_server: StartServer, settings: Any) -> None:
    settings.MEASE_MAX_MESSAGE_RATE, settings.MEASE_MAX_MESSAGE_BURST = 1, 3
    page = Page(start_server())
    with pytest.raises(ConnectionClosed) as closed:
        for _ in range(1000):
            page.ask(type="ping")
    assert closed.value.rcvd is not None and closed.value.rcvd.code == 4429


def heard_by(heard: list[Any]) -> Callable[[Any], None]:
    def hear(message: Any) -> None:
        heard.append(message)

    return hear


def test_without_the_subprotocol_all_is_raw(start_server: StartServer) -> None:
    heard: list[Any] = []
    djmease.receiver(heard_by(heard))
    raw = start_server().connect()
    texts = ['\x1e{"type":"join","group":"open.7"}', '\x1e{"type":"ping"}', "\x1e"]
    for text in texts:
        raw.send(text)
    eventually(lambda: heard == texts)


def test_a_client_has_headers_in_text_alone(start_server: StartServer) -> None:
    heard: list[Any] = []
    djmease.receiver(heard_by(heard))
    page = Page(start_server())
    page.connection.send(b'\x1e{"type":"ping"}')
    page.connection.send(b"\x1e")
    assert page.ask(type="ping") == {"type": "pong"}
    eventually(lambda: heard == [b'\x1e{"type":"ping"}', b"\x1e"])


@pytest.mark.parametrize("text", ["\x1e", "\x1e[]", "\x1e{", "\x1e" + "[" * 3000, "\x1e" + " " * 5000 + "{}", "\x1e\n"])
def test_a_header_that_is_none_ends_the_connection(start_server: StartServer, text: str) -> None:
    server = start_server()
    page, other = Page(server), Page(server)
    page.connection.send(text)
    with pytest.raises(ConnectionClosed) as closed:
        page.connection.recv(DEADLINE)
    assert closed.value.rcvd is not None and closed.value.rcvd.code == 1002
    assert other.ask(type="ping") == {"type": "pong"}


def test_a_ticket_goes_with_it() -> None:
    assert Client.select_subprotocol(object(), ["mease.ticket", "mease.ticket.x", "mease.v1"]) == "mease.v1"  # type: ignore[arg-type]
    assert Client.select_subprotocol(object(), ["mease.ticket", "mease.ticket.x"]) == "mease.ticket"  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "texts"),
    [
        ([], ["djmease.E001", "MEASE_GROUPS is []"]),
        ({7: True}, ["djmease.E007", "7"]),
        ({"a b": True}, ["djmease.E007", "the group 'a b' can match nothing"]),
        ({"mease.x": True}, ["djmease.E007", "reserved"]),
        ({"a": "yes"}, ["djmease.E001", "MEASE_GROUPS['a'] is 'yes'"]),
        ({"a": {"LOGIN": True}}, ["djmease.E003", "'LOGIN'", "LOGIN_REQUIRED"]),
        ({"a": {"LOGIN_REQUIRED": 1}}, ["djmease.E001", "'login_required'"]),
        ({"a": {"USER_PASSES_TEST": "no.such"}}, ["djmease.E002", "no.such"]),
        ({"a": {"USER_PASSES_TEST": f"{__name__}.takes_nothing"}}, ["djmease.E006", "takes_nothing"]),
    ],
)
def test_a_fault_is_named_and_lets_nobody_in(settings: Any, value: Any, texts: list[str]) -> None:
    settings.MEASE_GROUPS = value
    loaded = loader.load()
    (fault,) = loaded.faults
    assert all(text in f"{fault.id} {fault.message} {fault.hint}" for text in texts), fault
    assert loaded.registry.groups == ()


@given(st.text(max_size=300) | st.binary(max_size=300), st.sampled_from([None, ("a", "b.c")]))
def test_what_has_a_header_is_read_as_it_was_written(body: str | bytes, groups: tuple[str, ...] | None) -> None:
    header = None if groups is None else header_of({"groups": groups})
    frame = frame_of(body)
    forms = forms_of(frame, header, deflating=0, heading=1)
    headed = frame if forms is None else forms[2]
    start = 2 if headed[1] < 126 else 4
    payload = headed[start:]
    text = payload.decode() if isinstance(body, str) else payload.decode("latin-1")
    expected = body if isinstance(body, str) else body.decode("latin-1")
    if text.startswith("\x1e"):
        fields, message = read_header(text)
        assert message == expected
        assert fields == ({} if groups is None else {"groups": list(groups)})
    else:
        assert text == expected and groups is None


@pytest.mark.parametrize("comes_from", ["sender", "receiver"])
def test_a_text_that_a_sender_and_a_receiver_write_has_the_header_of_the_sender_alone(
    start_server: StartServer, settings: Any, comes_from: str
) -> None:
    """The same object, as any constant is: written in one turn of the loop, in either order."""

    @djmease.sender(routing="tick")
    async def tick(clients_list: Any) -> None:
        for client in clients_list:
            client.send("reload")

    @djmease.receiver
    async def say(client: Any) -> None:
        client.send("reload")

    settings.MEASE_ROUTES = {}
    server = start_server()
    inside, outside = Page(server), Page(server)
    inside.ask(type="join", group="open.1")
    dispatch, clients = server.server._dispatch, server.server.clients.snapshot()
    (stranger,) = [client for client in clients if not client.groups]
    message = Message(
        routing="tick", body=None, id=new_id(), published_at=time.time(), size=1, groups=("open.1",), users=None
    )
    steps = [lambda: dispatch.publish(message), lambda: dispatch.received(stranger, "x")]
    server.call(lambda: [step() for step in (steps if comes_from == "sender" else reversed(steps))])
    assert outside.receive() == ({}, "reload")
    assert inside.receive() == ({"groups": ["open.1"]}, "reload")


def test_who_takes_headers_gets_them_also_where_others_took_compressed_frames_before(
    start_server: StartServer, settings: Any
) -> None:
    settings.MEASE_COMPRESSION = True
    settings.MEASE_ROUTES = {}

    @djmease.opener
    def enter(client: Any) -> None:
        client.join("open.1")

    @djmease.sender(routing="tick")
    def tick(clients_list: Any) -> None:
        clients_list.send("reload" * 100)

    server = start_server()
    small = server.connect(compression="deflate")
    djmease.publish("tick", None, group="open.1")
    assert small.recv(DEADLINE) == "reload" * 100
    page = Page(server)
    djmease.publish("tick", None, group="open.1")
    assert page.receive() == ({"groups": ["open.1"]}, "reload" * 100)


def test_what_cannot_be_a_name_is_answered_without_it(start_server: StartServer) -> None:
    page = Page(start_server())
    assert page.ask(type="join", group="\ud800", ref=1) == {"type": "refused", "ref": 1, "reason": "not_listed"}
    assert page.ask(type="leave", group="\ud800", ref=2) == {"type": "left", "ref": 2}


def test_a_client_whose_opener_goes_on_is_told_of_a_gap_too(
    start_server: StartServer, own_valkey: EmbeddedValkey
) -> None:
    go_on = threading.Event()

    @djmease.opener
    def enter(client: Any) -> None:
        client.join("open.1")
        client.send("joined")
        assert go_on.wait(DEADLINE)

    server = start_server()
    with connect(server.url, subprotocols=["mease.v1"]) as connection:
        assert connection.recv(DEADLINE) == "joined"
        os.kill(own_valkey._pid(), signal.SIGKILL)
        eventually(lambda: not server.server._listener.is_hearing)
        own_valkey.ensure_running()
        assert read_header(str(connection.recv(DEADLINE)))[0]["type"] == "gap"
        go_on.set()


def test_after_a_gap_pages_are_told_that_something_may_be_missing(
    start_server: StartServer, own_valkey: EmbeddedValkey
) -> None:
    server = start_server()
    page, raw = Page(server), server.connect()
    page.ask(type="join", group="open.7")
    os.kill(own_valkey._pid(), signal.SIGKILL)
    eventually(lambda: not server.server._listener.is_hearing)
    own_valkey.ensure_running()
    gap = page.header()
    assert gap.keys() == {"type", "seconds"} and gap["type"] == "gap" and 0 <= gap["seconds"] < DEADLINE
    schema().validate(gap)
    djmease.publish("news", "x", group="open.7")
    assert page.receive() == ({"groups": ["open.7"]}, "x"), "from then on nothing is missed"
    djmease.publish("news", "y")
    assert raw.recv(DEADLINE) == "y", "who takes no headers is told nothing"


def schema() -> Draft202012Validator:
    text = (ROOT / "docs" / "mease-v1.rst").read_text().partition(".. code-block:: json\n")[2]
    return Draft202012Validator(json.loads(text))


def test_the_schema_in_the_docs_is_that_of_what_is_said(start_server: StartServer) -> None:
    validator = schema()
    Draft202012Validator.check_schema(validator.schema)
    page = Page(start_server())
    said = [page.ready, *page.all_headers(), page.ask(type="join", group="open.1")]
    djmease.publish("news", "x", group="open.1")
    for fields in (*said, page.receive()[0], {}):
        validator.validate(fields)
    for wrong in (
        {"type": "join"},
        {"type": "dance"},
        {"ref": 1},
        {"groups": []},
        {"type": "refused"},
        {"type": "gap"},
        {"groups": "a"},
    ):
        assert not validator.is_valid(wrong)
    reasons = set(validator.schema["properties"]["reason"]["enum"])
    source = "".join(
        (ROOT / "djmease" / name).read_text() for name in ("server/joining.py", "server/running.py", "registry.py")
    )
    assert all(f'"{reason}"' in source for reason in reasons)


def test_a_page_that_asks_for_as_many_groups_as_it_may_has_its_pings_answered_while_openers_run(
    start_server: StartServer, settings: Any
) -> None:
    settings.MEASE_GROUPS = {"board.*": True}
    may_go_on = threading.Event()

    @djmease.opener
    def slow() -> None:
        assert may_go_on.wait(DEADLINE)

    with connect(start_server().url, subprotocols=[Subprotocol("mease.v1")]) as page:
        for number in range(settings.MEASE_MAX_GROUPS):
            page.send(f'\x1e{{"type":"join","group":"board.{number}"}}')
        page.send('\x1e{"type":"ping"}')
        assert page.recv(DEADLINE) == '\x1e{"type":"pong"}'
        may_go_on.set()
        assert page.recv(DEADLINE) == '\x1e{"type":"ready"}'
        for number in range(settings.MEASE_MAX_GROUPS):
            assert page.recv(DEADLINE) == f'\x1e{{"type":"joined","group":"board.{number}"}}'
