"""RFC 6455 by the parser alone, frames by another library's eyes, and the end of a connection on a socket pair."""

from __future__ import annotations

import ast
import asyncio
import functools
import inspect
import itertools
import socket
import struct
import textwrap
import time
import tracemalloc
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tornado.iostream import IOStream
from tornado.web import RequestHandler
from tornado.websocket import WebSocketHandler
from tornado.websocket import WebSocketProtocol as TornadoWebSocketProtocol
from websockets.exceptions import WebSocketException
from websockets.frames import Close, Frame, Opcode
from websockets.protocol import State
from websockets.server import ServerProtocol
from websockets.streams import StreamReader

from djmease.server import protocol as protocol_module
from djmease.server.client import Client
from djmease.server.outbox import Outbox
from djmease.server.protocol import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    Event,
    Parser,
    WebSocketProtocol,
    build_close,
    build_frame,
    is_sendable_close_code,
)
from djmease.server.readers import Readers
from tests.support import DEADLINE, masked_frame

MAX_SIZE = 64 * 1024
MASK = b"\x37\xfa\x21\x3d"
Outcome = tuple[list[Event], tuple[int, str] | None]


def frame(opcode: int, payload: bytes = b"", *, final: bool = True, mask: bytes = MASK) -> bytes:
    """Return a client's frame, as the ``websockets`` library has it, with a mask that is always the same."""
    return masked_frame(opcode, payload, first=(0x80 if final else 0) | opcode, mask=mask)


def parse(*chunks: bytes, max_size: int = MAX_SIZE) -> Outcome:
    """Return what a new parser makes of these chunks."""
    parser = Parser(max_size)
    events = [event for chunk in chunks for event in parser.feed(chunk)]
    return events, None if parser.error is None else (parser.error.code, parser.error.reason)


def assert_cuts_do_not_matter(stream: bytes, max_size: int = MAX_SIZE) -> Outcome:
    """Assert that a stream means the same as one piece, byte by byte, and in two pieces cut at every byte."""
    whole = parse(stream, max_size=max_size)
    assert parse(*(stream[index : index + 1] for index in range(len(stream))), max_size=max_size) == whole
    for index in range(1, len(stream)):
        assert parse(stream[:index], stream[index:], max_size=max_size) == whole, f"cut at {index}"
    return whole


def code_of(*frames: bytes, max_size: int = MAX_SIZE) -> int | None:
    """Return the close code with which these frames are refused, however they are cut, or ``None``."""
    error = assert_cuts_do_not_matter(b"".join(frames), max_size)[1]
    return None if error is None else error[0]


# What is right


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 255, 256, 65534, 65535, 65536, 65537, 200_000])
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_a_message_of_every_width_of_length_arrives(opcode: int, size: int) -> None:
    payload = bytes(97 + index % 26 for index in range(size))
    message = payload.decode() if opcode == TEXT else payload
    stream = frame(opcode, payload)
    assert parse(stream, max_size=size) == ([(opcode, message)], None)
    for index in (1, 2, 3, 5, 9, 10, 13, 14, 15, len(stream) - 1):
        assert parse(stream[:index], stream[index:], max_size=size) == ([(opcode, message)], None)


def test_the_examples_of_the_rfc() -> None:
    """RFC 6455, section 5.7."""
    assert parse(bytes.fromhex("8185 37fa213d 7f9f4d5158")) == ([(TEXT, "Hello")], None)
    assert parse(bytes.fromhex("8985 37fa213d 7f9f4d5158")) == ([(PING, b"Hello")], None)
    assert parse(bytes.fromhex("8a85 37fa213d 7f9f4d5158")) == ([(PONG, b"Hello")], None)
    assert build_frame(TEXT, b"Hello") == bytes.fromhex("8105 48656c6c6f")
    assert build_frame(PING, b"Hello") == bytes.fromhex("8905 48656c6c6f")
    assert build_frame(BINARY, bytes(256)) == bytes.fromhex("827e0100") + bytes(256)
    assert build_frame(BINARY, bytes(65536)) == bytes.fromhex("827f0000000000010000") + bytes(65536)


@pytest.mark.parametrize("mask", [bytes(4), b"\xff" * 4, b"\x00\x00\x00\x01", MASK])
def test_any_mask_is_taken_off(mask: bytes) -> None:
    assert parse(frame(BINARY, bytes(range(256)), mask=mask)) == ([(BINARY, bytes(range(256)))], None)


def test_fragments_are_joined_and_control_frames_between_them_come_at_once() -> None:
    stream = (
        frame(TEXT, b"on", final=False)
        + frame(PING, b"1")
        + frame(CONTINUATION, final=False)
        + frame(PONG, b"2")
        + frame(CONTINUATION, b"e")
        + frame(BINARY, b"t", final=False)
        + frame(CONTINUATION, b"wo")
    )
    expected = [(PING, b"1"), (PONG, b"2"), (TEXT, "one"), (BINARY, b"two")]
    assert assert_cuts_do_not_matter(stream) == (expected, None)


def test_a_character_may_be_spread_over_fragments() -> None:
    text = "ß€𝄞"
    stream = frame(TEXT, final=False)
    stream += b"".join(frame(CONTINUATION, bytes([byte]), final=False) + frame(PING) for byte in text.encode())
    events, error = assert_cuts_do_not_matter(stream + frame(CONTINUATION))
    assert error is None
    assert events[-1] == (TEXT, text)


@pytest.mark.parametrize("text", ["", "\ufeffbom", "\x00", "\ud7ff", "\ue000", "\uffff", "\U0010ffff", "κόσμε"])
def test_text_at_the_borders_of_unicode_is_text(text: str) -> None:
    assert assert_cuts_do_not_matter(frame(TEXT, text.encode())) == ([(TEXT, text)], None)


def test_a_close_frame_has_no_code_or_a_code_and_a_reason() -> None:
    assert parse(frame(CLOSE)) == ([(CLOSE, (None, ""))], None)
    assert parse(frame(CLOSE, b"\x03\xe8")) == ([(CLOSE, (1000, ""))], None)
    assert parse(frame(CLOSE, b"\x0f\xa0bye \xe2\x82\xac")) == ([(CLOSE, (4000, "bye €"))], None)
    assert parse(frame(CLOSE, b"\x03\xe8" + b"x" * 123)) == ([(CLOSE, (1000, "x" * 123))], None)


def test_only_codes_that_may_be_on_the_wire_are_taken_or_sent() -> None:
    """RFC 6455, sections 7.4.1 and 7.4.2, and what IANA has registered since; another library agrees."""
    for code in range(5100):
        try:
            Close(code, "").check()
        except WebSocketException:
            is_allowed = False
        else:
            is_allowed = True
        assert is_sendable_close_code(code) is is_allowed, code
        events, error = parse(frame(CLOSE, struct.pack("!H", code)))
        assert events == ([(CLOSE, (code, ""))] if is_allowed else [])
        assert error is None if is_allowed else error is not None and error[0] == 1002


# What is wrong, and with which code it is refused


@pytest.mark.parametrize("bits", [0x40, 0x20, 0x10, 0x70])
@pytest.mark.parametrize("opcode", [CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG])
def test_a_reserved_bit_is_1002(opcode: int, bits: int) -> None:
    assert code_of(masked_frame(opcode, b"", first=0x80 | bits | opcode)) == 1002


@pytest.mark.parametrize("opcode", [3, 4, 5, 6, 7, 0xB, 0xC, 0xD, 0xE, 0xF])
@pytest.mark.parametrize("final", [True, False])
def test_an_unknown_opcode_is_1002(opcode: int, final: bool) -> None:
    assert code_of(frame(opcode, b"", final=final)) == 1002
    assert code_of(frame(TEXT, b"x", final=False), frame(opcode, b"", final=final)) == 1002


@pytest.mark.parametrize("opcode", [TEXT, BINARY, CLOSE, PING, PONG])
def test_an_unmasked_frame_is_1002(opcode: int) -> None:
    assert code_of(build_frame(opcode, b"")) == 1002


@pytest.mark.parametrize("opcode", [CLOSE, PING, PONG])
def test_a_control_frame_that_is_long_or_fragmented_is_1002(opcode: int) -> None:
    assert code_of(frame(opcode, b"\x03\xe8" + bytes(124))) == 1002
    assert code_of(frame(opcode, b"", final=False)) == 1002
    assert parse(frame(opcode, b"\x03\xe8" + b"x" * 123))[1] is None


def test_a_fragment_that_is_out_of_place_is_1002() -> None:
    assert code_of(frame(CONTINUATION, b"x")) == 1002
    assert code_of(frame(CONTINUATION, b"x", final=False)) == 1002
    assert code_of(frame(TEXT, b"x", final=False), frame(TEXT, b"y")) == 1002
    assert code_of(frame(TEXT, b"x", final=False), frame(BINARY, b"y", final=False)) == 1002
    assert code_of(frame(TEXT, b"x", final=False), frame(CONTINUATION, b"y"), frame(CONTINUATION, b"z")) == 1002


INVALID_UTF8 = [
    b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5\xed\xa0\x80edited",
    b"\xff",
    b"\xc0\xaf",
    b"\xe0\x80\xaf",
    b"\xf0\x80\x80\xaf",
    b"\xed\xa0\x80",
    b"\xed\xbf\xbf",
    b"\xf4\x90\x80\x80",
    b"\xf8\x88\x80\x80\x80",
    b"\x80",
    b"a\xbf",
    b"\xe2\x82",
    b"\xf0\x9f\x98",
]


@pytest.mark.parametrize("payload", INVALID_UTF8)
def test_text_that_is_not_utf8_is_1007_whole_or_in_fragments(payload: bytes) -> None:
    assert code_of(frame(TEXT, payload)) == 1007
    pieces = [frame(CONTINUATION, payload[index : index + 1], final=False) for index in range(len(payload))]
    assert code_of(frame(TEXT, final=False), *pieces, frame(CONTINUATION)) == 1007
    assert code_of(frame(BINARY, payload)) is None
    assert code_of(frame(CLOSE, b"\x03\xe8" + payload)) == 1007


def test_text_that_cannot_become_utf8_any_more_is_refused_before_its_last_fragment() -> None:
    assert code_of(frame(TEXT, b"\xf4\x90", final=False)) == 1007
    assert code_of(frame(TEXT, b"\xf4", final=False), frame(CONTINUATION, b"\x90", final=False)) == 1007


@pytest.mark.parametrize(
    "payload", [b"\x03", b"\x00\x00", b"\x03\xe7", b"\x03\xed", b"\x03\xee", b"\x03\xf7", b"\xff\xff"]
)
def test_a_close_frame_with_a_broken_code_is_1002(payload: bytes) -> None:
    assert code_of(frame(CLOSE, payload)) == 1002


@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_a_message_over_the_limit_is_1009_at_its_header_before_its_payload_came(opcode: int) -> None:
    limit = 1000
    assert parse(frame(opcode, b"x" * limit), max_size=limit)[1] is None
    for size in (limit + 1, 65536, 2**32, 2**63 - 1):
        whole = b"\x81\xfe" + size.to_bytes(2) if size < 65536 else b"\x81\xff" + size.to_bytes(8)
        header = bytes([0x80 | opcode]) + whole[1:]
        events, error = parse(header, max_size=limit)
        assert events == []
        assert error is not None
        assert error[0] == 1009


def test_fragments_that_add_up_to_more_than_the_limit_are_1009_at_the_header_of_the_one_too_many() -> None:
    limit = 10
    first = frame(BINARY, b"12345", final=False)
    assert code_of(first, frame(CONTINUATION, b"67890"), max_size=limit) is None
    assert code_of(first, frame(CONTINUATION, b"678901")[:2], max_size=limit) == 1009
    assert code_of(first, frame(CONTINUATION, b"67890", final=False), frame(CONTINUATION, b"1"), max_size=limit) == 1009
    assert code_of(first, frame(PING, b"x" * 125), frame(CONTINUATION, b"67890"), max_size=limit) is None
    assert code_of(first, frame(CONTINUATION, b"67890"), first, frame(CONTINUATION, b"67890"), max_size=limit) is None


def test_a_length_with_its_highest_bit_set_is_1002() -> None:
    assert code_of(b"\x82\xff" + (2**63).to_bytes(8)) == 1002
    assert code_of(b"\x82\xff" + b"\xff" * 8) == 1002


def test_what_came_before_an_error_is_kept_and_nothing_after_it_is_parsed() -> None:
    stream = frame(TEXT, b"good") + frame(PING, b"p") + frame(3) + frame(TEXT, b"bad")
    events, error = assert_cuts_do_not_matter(stream)
    assert events == [(TEXT, "good"), (PING, b"p")]
    assert error is not None and error[0] == 1002
    parser = Parser(MAX_SIZE)
    parser.feed(frame(3))
    assert parser.feed(frame(TEXT, b"later")) == []
    assert parser.error is not None


# Any stream whatever

payloads = st.one_of(st.binary(max_size=40), st.integers(120, 135).map(bytes))
texts = st.text(max_size=40)
masks = st.binary(min_size=4, max_size=4)
closes = st.one_of(
    st.just((None, "")), st.tuples(st.sampled_from([1000, 1001, 1003, 1007, 1014, 3000, 4999]), st.text(max_size=20))
)


@st.composite
def control_frames(draw: st.DrawFn) -> tuple[bytes, Event]:
    mask = draw(masks)
    opcode = draw(st.sampled_from([PING, PONG, CLOSE]))
    if opcode == CLOSE:
        code, reason = draw(closes)
        payload = b"" if code is None else struct.pack("!H", code) + reason.encode()
        return frame(CLOSE, payload, mask=mask), (CLOSE, (code, reason))
    content = draw(st.binary(max_size=125))
    return frame(opcode, content, mask=mask), (opcode, content)


@st.composite
def messages(draw: st.DrawFn) -> tuple[bytes, list[Event]]:
    """A message in one to four frames with control frames between them, and its events."""
    content: str | bytes = draw(st.one_of(texts, payloads))
    raw = content.encode() if isinstance(content, str) else content
    opcode = TEXT if isinstance(content, str) else BINARY
    cuts = sorted(draw(st.lists(st.integers(0, len(raw)), max_size=3)))
    pieces = [raw[start:end] for start, end in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    stream, events = b"", []
    for index, piece in enumerate(pieces):
        if index:
            for control, event in draw(st.lists(control_frames(), max_size=2)):
                stream += control
                events.append(event)
        is_last = index == len(pieces) - 1
        stream += frame(CONTINUATION if index else opcode, piece, final=is_last, mask=draw(masks))
    return stream, [*events, (opcode, content)]


@st.composite
def streams(draw: st.DrawFn) -> tuple[bytes, list[Event]]:
    parts = draw(st.lists(st.one_of(messages(), control_frames().map(lambda pair: (pair[0], [pair[1]]))), max_size=4))
    return b"".join(part[0] for part in parts), [event for part in parts for event in part[1]]


@st.composite
def broken_streams(draw: st.DrawFn) -> bytes:
    """A good stream with a few bytes changed, put in or left out, mostly near where headers are, or any bytes."""
    stream = bytearray(draw(streams())[0] + draw(streams())[0])
    for _ in range(draw(st.integers(1, 3))):
        position = draw(st.integers(0, max(0, len(stream) - 1)))
        action = draw(st.sampled_from(["flip", "set", "insert", "delete"]))
        if action == "insert" or not stream:
            stream[position:position] = draw(st.binary(min_size=1, max_size=4))
        elif action == "delete":
            del stream[position : position + draw(st.integers(1, 8))]
        elif action == "flip":
            stream[position] ^= 1 << draw(st.integers(0, 7))
        else:
            stream[position] = draw(st.sampled_from([0, 1, 2, 8, 0x7E, 0x7F, 0x80, 0x81, 0x88, 0xFE, 0xFF]))
    return bytes(stream)


@settings(deadline=None, max_examples=80)
@given(streams())
def test_any_valid_frames_cut_at_every_byte_are_the_same_events(stream: tuple[bytes, list[Event]]) -> None:
    data, expected = stream
    assert assert_cuts_do_not_matter(data) == (expected, None)


@settings(deadline=None, max_examples=200)
@given(st.one_of(broken_streams(), broken_streams(), st.binary(max_size=200)), st.sampled_from([10, 130, MAX_SIZE]))
@example(b"\xff\xff", 10)
@example(b"\x88\xfe\x00\x02" + MASK + b"\x34\x12", 10)
def test_any_broken_stream_cut_at_every_byte_is_the_same_events_and_error(stream: bytes, max_size: int) -> None:
    assert_cuts_do_not_matter(stream, max_size)


def parse_with_websockets(stream: bytes) -> tuple[list[Event], bool]:
    """Return what the ``websockets`` library makes of a stream up to a close frame, and whether it refuses it."""
    other = ServerProtocol(state=State.OPEN, max_size=MAX_SIZE)
    other.receive_data(stream)
    events: list[Event] = []
    parts: list[bytes] = []
    opcode = CONTINUATION
    for received in other.events_received():
        assert isinstance(received, Frame)
        data = bytes(received.data)
        if received.opcode in (Opcode.CLOSE, Opcode.PING, Opcode.PONG):
            events.append((int(received.opcode), data))
            continue
        opcode = opcode if received.opcode is Opcode.CONT else int(received.opcode)
        parts.append(data)
        if received.fin:
            events.append((opcode, b"".join(parts)))
            parts.clear()
    return list(itertools.takewhile(lambda event: event[0] != CLOSE, events)), other.parser_exc is not None


@settings(deadline=None, max_examples=200)
@given(st.one_of(broken_streams(), streams().map(lambda stream: stream[0])))
def test_another_library_takes_and_refuses_the_same_streams(stream: bytes) -> None:
    """Before a close frame: behind it the other one stops. UTF-8 it leaves to its caller."""
    events, error = parse(stream)
    ours = [(opcode, content.encode() if opcode == TEXT else content) for opcode, content in events]
    ours = list(itertools.takewhile(lambda event: event[0] != CLOSE, ours))
    theirs, is_refused = parse_with_websockets(stream)
    if error is not None and error[0] == 1007:
        assert theirs[: len(ours)] == ours
        return
    assert theirs == ours
    if len(ours) == len(events):
        # It refuses some frames by their first two bytes, where ours waits for the length behind them; and others
        # only behind their payload, where ours needs no more than their header.
        assert error is None or is_refused or parse_with_websockets(stream + bytes(70_000))[1]
        assert not is_refused or error is not None or parse(stream, bytes(8))[1] is not None


# Memory and time


def peak_of(function: Callable[[], object]) -> int:
    """Return how many bytes more than before were in use while ``function`` ran."""
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_many_empty_fragments_take_no_memory() -> None:
    parser = Parser(MAX_SIZE)
    parser.feed(frame(TEXT, final=False))
    many = frame(CONTINUATION, final=False) * 1000

    def feed() -> None:
        for _ in range(50):
            assert parser.feed(many) == []

    assert peak_of(feed) < 4 * len(many)
    assert parser.feed(frame(CONTINUATION)) == [(TEXT, "")]


def test_a_length_that_is_announced_takes_no_memory_before_the_payload_comes() -> None:
    parser = Parser(64 * 1024 * 1024)
    header = b"\x82\xff" + (64 * 1024 * 1024).to_bytes(8) + MASK
    assert peak_of(lambda: parser.feed(header)) < 100_000
    assert peak_of(lambda: parser.feed(b"x" * 1000)) < 100_000
    assert parser.error is None


def test_nothing_is_kept_after_an_error() -> None:
    parser = Parser(MAX_SIZE)
    parser.feed(frame(BINARY, bytes(60_000), final=False) + frame(3))
    assert peak_of(lambda: [parser.feed(bytes(65536)) for _ in range(100)]) < 300_000


def test_a_long_message_in_small_pieces_takes_time_by_its_length_alone() -> None:
    """Copying what has come with every piece would take 32 GB of copies here."""
    size, step = 8 * 1024 * 1024, 1024
    parser = Parser(size)
    stream = b"\x82\xff" + size.to_bytes(8) + bytes(4) + bytes(size)
    started = time.process_time()
    events = [event for index in range(0, len(stream), step) for event in parser.feed(stream[index : index + step])]
    assert events == [(BINARY, bytes(size))]
    assert time.process_time() - started < 2


# Frames that we build, by the eyes of the other library


def read_with_websockets(data: bytes) -> Frame:
    reader = StreamReader()
    reader.feed_data(data)
    parsing = Frame.parse(reader.read_exact, mask=False)
    try:
        next(parsing)
    except StopIteration as done:
        assert reader.at_eof() is not None
        assert not reader.buffer, "more than a frame"
        return done.value  # type: ignore[no-any-return]
    raise AssertionError("less than a frame")


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65535, 65536, 65537, 300_000])
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_another_library_reads_the_frames_we_build_and_would_build_the_same(opcode: int, size: int) -> None:
    payload = bytes(97 + index % 26 for index in range(size))
    built = build_frame(opcode, payload)
    assert built == Frame(Opcode(opcode), payload).serialize(mask=False)
    received = read_with_websockets(built)
    assert (received.opcode, received.fin, bytes(received.data)) == (opcode, True, payload)


@settings(deadline=None)
@given(
    st.one_of(st.none(), st.integers(1000, 1003), st.integers(1007, 1014), st.integers(3000, 4999)),
    st.one_of(st.none(), st.text(max_size=200), st.text("€𝄞a", min_size=30, max_size=80)),
)
@example(1000, "\ud800 half a surrogate")
@example(None, "a reason alone")
def test_a_close_frame_is_valid_whatever_its_reason(code: int | None, reason: str | None) -> None:
    received = read_with_websockets(build_close(code, reason))
    data = bytes(received.data)
    assert received.opcode == CLOSE
    assert len(data) <= 125
    if code is None and not reason:
        assert data == b""
        return
    close = Close.parse(data)
    assert close.code == (1000 if code is None else code)
    text = (reason or "").encode(errors="replace").decode()
    assert text.startswith(close.reason)
    assert close.reason == text or len(close.reason.encode()) > 119


# Nothing that Tornado's classes do to a stream is left


def methods_that_touch(owner: type, names: set[str]) -> Iterator[str]:
    """Yield the methods defined by a class whose source reads or writes an attribute of one of these names."""
    for name, member in vars(owner).items():
        function = (
            inspect.unwrap(member.fget if isinstance(member, property) else member)
            if callable(member) or isinstance(member, property)
            else None
        )
        if not inspect.isfunction(function):
            continue
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
        if any(isinstance(node, ast.Attribute) and node.attr in names for node in ast.walk(tree)):
            yield name


def test_no_method_of_tornados_protocol_that_touches_the_stream_is_left() -> None:
    """What would close the stream is replaced: there is only the socket, and one way to end."""
    touching = set(methods_that_touch(TornadoWebSocketProtocol, {"stream", "client_terminated", "server_terminated"}))
    touching -= {"__init__"}
    assert "_abort" in touching, "the test does not see what it looks for"
    assert touching <= set(vars(WebSocketProtocol))
    abstract = set(TornadoWebSocketProtocol.__abstractmethods__)
    assert abstract <= set(vars(WebSocketProtocol))


def test_what_is_left_of_tornados_protocol_reaches_the_stream_only_through_what_is_replaced() -> None:
    left = {name for name in vars(TornadoWebSocketProtocol) if inspect.isfunction(vars(TornadoWebSocketProtocol)[name])}
    assert left - set(vars(WebSocketProtocol)) == {"_run_callback"}, "look at what is new in Tornado"


def test_no_method_of_tornados_handler_that_touches_the_connection_is_left_but_those_known() -> None:
    """All of a client's methods may be called from any thread, and with a client that has gone."""
    touching = set(methods_that_touch(WebSocketHandler, {"ws_connection", "stream", "_detach_stream"}))
    assert {"close", "ping", "write_message"} <= touching
    # The handshake and the end, which only Tornado and the protocol call, on the loop.
    internal = {"__init__", "get", "on_connection_close"}
    assert touching - internal <= set(vars(Client))
    on_stream = set(methods_that_touch(RequestHandler, {"stream"}))
    assert on_stream == set(), "look at what is new in Tornado"


# The connection on a pair of real sockets, without a server


class Handler:
    """Notes what the protocol tells a ``WebSocketHandler``."""

    id = "a-handler"

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.ends: list[tuple[int | None, str | None]] = []

    def on_message(self, message: str | bytes) -> None:
        self.events.append((TEXT if isinstance(message, str) else BINARY, message))

    def on_ping(self, data: bytes) -> None:
        self.events.append((PING, data))

    def on_pong(self, data: bytes) -> None:
        self.events.append((PONG, data))

    def on_small_fragments(self, count: int) -> None: ...

    def on_ws_connection_close(self, code: int | None = None, reason: str | None = None) -> None:
        self.ends.append((code, reason))


def protocol_of(handler: Handler, outbox: Outbox, readers: Readers) -> WebSocketProtocol:
    return WebSocketProtocol(handler, outbox=outbox, readers=readers, max_message_size=MAX_SIZE)  # type: ignore[arg-type]


class Link:
    """A connection that has been taken over from a stream, and its other end: two TCP sockets on the loopback."""

    def __init__(
        self, outbox: Outbox | None = None, *, limit: int = 1024 * 1024, kernel_buffer: int | None = None
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.outbox = outbox or Outbox(self.loop, limit=limit)
        self.handler = Handler()
        self.readers = Readers(self.loop, self.outbox)
        self.protocol = protocol_of(self.handler, self.outbox, self.readers)
        with socket.create_server(("127.0.0.1", 0)) as listening:
            self.peer = socket.socket()
            if kernel_buffer is not None:
                # So that little is on its way unread, as on a network that is not the loopback.
                self.peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, kernel_buffer)
            self.peer.connect(listening.getsockname())
            ours, _ = listening.accept()
        if kernel_buffer is not None:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, kernel_buffer)
        self.peer.setblocking(False)
        ours.setblocking(False)
        self.number = ours.fileno()
        self.stream = IOStream(ours)
        self.early = self.protocol._take_over(self.stream)

    def __enter__(self) -> Link:
        return self

    def __exit__(self, *_: object) -> None:
        self.protocol.abort()
        self.readers.close()
        self.peer.close()

    async def send(self, data: bytes) -> None:
        await self.loop.sock_sendall(self.peer, data)

    async def read(self) -> bytes:
        """Return everything up to the end; a reset raises."""
        data = b""
        async with asyncio.timeout(DEADLINE):
            while chunk := await self.loop.sock_recv(self.peer, 65536):
                data += chunk
        return data

    async def read_bytes(self, size: int) -> bytes:
        data = b""
        async with asyncio.timeout(DEADLINE):
            while len(data) < size:
                chunk = await self.loop.sock_recv(self.peer, size - len(data))
                assert chunk, "the connection has ended"
                data += chunk
        return data

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(DEADLINE):
            while not condition():
                await asyncio.sleep(0.001)


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """Run an asynchronous test on a loop of its own, where no callback of the loop may raise."""

    @functools.wraps(test)
    def wrapped() -> None:
        async def guarded() -> None:
            raised: list[Any] = []
            asyncio.get_running_loop().set_exception_handler(lambda _, context: raised.append(context))
            await test()
            assert raised == []

        asyncio.run(guarded())

    del wrapped.__wrapped__  # type: ignore[attr-defined]
    return wrapped


def reset(sock: socket.socket) -> None:
    """Close a socket with RST instead of FIN."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


@run
async def test_the_stream_is_left_as_if_closed_and_cannot_touch_the_socket_any_more() -> None:
    with Link() as link:
        assert link.stream.closed()
        link.stream.close()
        link.stream.set_close_callback(lambda: None)
        await link.send(frame(TEXT, b"still read"))
        await link.until(lambda: link.handler.events)
        link.outbox.write(link.protocol, build_frame(TEXT, b"and written"))
        assert await link.read_bytes(13) == build_frame(TEXT, b"and written")


@run
async def test_a_protocol_that_has_no_socket_yet_takes_everything_and_does_nothing() -> None:
    loop = asyncio.get_running_loop()
    handler = Handler()
    outbox = Outbox(loop, limit=1)
    readers = Readers(loop, outbox)
    protocol = protocol_of(handler, outbox, readers)
    protocol.close(1000, "x")
    protocol.pause_reading()
    protocol.resume_reading()
    protocol.write_ping(b"")
    protocol.set_nodelay(True)
    protocol.start_pinging()
    await protocol._receive_frame_loop()
    assert protocol.is_closing()
    assert protocol.stream is None
    assert protocol.selected_subprotocol is None
    protocol.abort()
    readers.close()
    assert handler.ends == []


@run
async def test_the_client_closes_first() -> None:
    with Link() as link:
        await link.send(frame(TEXT, b"last") + frame(CLOSE, b"\x0f\xa0why") + frame(TEXT, b"behind the close"))
        assert await link.read() == build_close(4000, None)
        assert link.handler.events == [(TEXT, "last")]
        assert link.handler.ends == [(4000, "why")]


@run
async def test_the_server_closes_first_behind_what_is_written_and_waits_for_the_answer() -> None:
    with Link() as link:
        link.outbox.write(link.protocol, build_frame(TEXT, b"1"))
        link.protocol.close(4001, "bye")
        link.outbox.write(link.protocol, build_frame(TEXT, b"too late"))
        link.protocol.close(4002, "too late as well")
        expected = build_frame(TEXT, b"1") + build_close(4001, "bye")
        assert await link.read_bytes(len(expected)) == expected
        assert link.handler.ends == []
        await link.send(frame(TEXT, b"dropped") + frame(PING, b"dropped") + frame(CLOSE, b"\x0f\xa1"))
        assert await link.read() == b""
        assert link.handler.ends == [(4001, None)]
        assert TEXT not in dict(link.handler.events)


@run
async def test_both_close_at_once_and_each_sends_one_close_frame() -> None:
    with Link() as link:
        await link.send(frame(CLOSE, b"\x0f\xa2client"))
        link.protocol.close(4003, "server")
        assert await link.read() == build_close(4003, "server")
        assert link.handler.ends == [(4002, "client")]


@run
async def test_the_clients_close_is_parsed_before_the_servers_close_has_left() -> None:
    with Link() as link:
        link.protocol.close(4003, "server")
        link.protocol._feed(frame(CLOSE, b"\x0f\xa2client"))
        assert link.handler.ends == [(4002, "client")]
        assert await link.read() == build_close(4003, "server")
        assert link.handler.ends == [(4002, "client")]


@run
async def test_a_violation_while_the_server_closes_ends_it_without_a_second_close_frame() -> None:
    with Link() as link:
        link.protocol.close(1000, None)
        await link.send(frame(3))
        assert await link.read() == build_close(1000, None)
        assert [end[0] for end in link.handler.ends] == [1002]
        link.peer.close()
        await link.until(lambda: link.protocol._socket is None)
        assert len(link.handler.ends) == 1


@run
async def test_a_violation_is_answered_and_what_still_comes_is_read_until_the_client_has_seen_why() -> None:
    """A socket that is closed with unread input resets the connection, and the reason is lost with it."""
    with Link() as link:
        await link.send(frame(3) + bytes(100_000))
        await link.until(lambda: link.handler.ends)
        assert link.protocol._socket is not None
        for _ in range(50):
            await link.send(frame(BINARY, bytes(50_000)))
        assert await link.read() == build_close(1002, "unknown opcode 3")
        link.peer.close()
        await link.until(lambda: link.protocol._socket is None)
        assert link.handler.ends == [(1002, "unknown opcode 3")]
        assert link.handler.events == []


@run
async def test_a_cut_off_connection_sends_nothing_after_its_close_frame_and_ends_once() -> None:
    with Link() as link:
        link.outbox.write(link.protocol, build_frame(TEXT, b"1"))
        link.protocol.cut_off(1013, "slow")
        link.protocol.cut_off(1013, "again")
        link.protocol.close(1000, None)
        link.outbox.write(link.protocol, build_frame(TEXT, b"2"))
        link.protocol.write_ping(b"")
        assert await link.read() == build_frame(TEXT, b"1") + build_close(1013, "slow")
        await link.send(frame(CLOSE, b"\x03\xf5"))
        link.peer.close()
        await link.until(lambda: link.protocol._socket is None)
        assert link.handler.ends == [(1013, "slow")]


@pytest.mark.parametrize("kind", ["fin", "reset", "abort", "write to a reset", "flush behind an abort"])
def test_an_end_without_a_close_frame_is_told_once_and_leaves_nothing_registered(kind: str) -> None:
    @run
    async def test() -> None:
        with Link() as link:
            if kind == "fin":
                link.peer.close()
            elif kind == "reset":
                reset(link.peer)
            elif kind == "write to a reset":
                link.protocol.pause_reading()
                reset(link.peer)
                link.outbox.write(link.protocol, build_frame(TEXT, b"x"))
                await asyncio.sleep(0)
                link.outbox.write(link.protocol, build_frame(TEXT, b"x"))
            else:
                link.outbox.write(link.protocol, build_frame(TEXT, b"x"))
                link.protocol.abort()
            await link.until(lambda: link.protocol._socket is None)
            assert link.handler.ends == [(None, None)]
            assert not link.loop.remove_reader(link.number)
            assert not link.loop.remove_writer(link.number)
            link.protocol.abort()
            link.protocol.close()
            link.protocol.cut_off(1013, "")
            link.protocol.pause_reading()
            link.protocol.resume_reading()
            link.protocol.on_connection_close()
            link.outbox.write(link.protocol, build_frame(TEXT, b"x"))
            link.outbox.ping(link.protocol)
            await asyncio.sleep(0)
            assert link.handler.ends == [(None, None)]
            assert not link.protocol.waiting and not link.protocol.backlog

    test()


def test_a_client_that_does_not_answer_the_close_is_given_up_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol_module, "CLOSE_TIMEOUT", 0.05)

    @run
    async def test() -> None:
        with Link() as link:
            link.protocol.close(1000, "anybody there?")
            assert await link.read() == build_close(1000, "anybody there?")
            assert link.handler.ends == [(None, None)]

    test()


def test_a_client_that_was_refused_and_never_goes_is_given_up_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol_module, "CLOSE_TIMEOUT", 0.05)

    @run
    async def test() -> None:
        with Link() as link:
            await link.send(frame(3))
            assert await link.read() == build_close(1002, "unknown opcode 3")
            await link.until(lambda: link.protocol._socket is None)
            assert link.handler.ends == [(1002, "unknown opcode 3")]

    test()


@run
async def test_a_close_frame_waits_behind_what_the_kernel_does_not_take() -> None:
    large = build_frame(BINARY, bytes(8 * 1024 * 1024))
    with Link(limit=64 * 1024 * 1024) as link:
        link.outbox.write(link.protocol, large)
        await link.until(lambda: link.protocol.backlog)
        link.protocol.close(1000, "after all")
        assert await link.read_bytes(len(large)) == large
        assert await link.read_bytes(len(build_close(1000, "after all"))) == build_close(1000, "after all")
        await link.send(frame(CLOSE, b"\x03\xe8"))
        assert await link.read() == b""
        assert link.handler.ends == [(1000, None)]


@run
async def test_the_answer_to_a_close_waits_behind_what_the_kernel_does_not_take() -> None:
    large = build_frame(BINARY, bytes(8 * 1024 * 1024))
    with Link(limit=64 * 1024 * 1024) as link:
        link.outbox.write(link.protocol, large)
        await link.until(lambda: link.protocol.backlog)
        await link.send(frame(CLOSE, b"\x03\xe8"))
        assert await link.read() == large + build_close(1000, None)
        assert link.handler.ends == [(1000, None)]


@run
async def test_a_connection_that_is_not_read_leaves_what_comes_in_the_kernel_and_reads_it_later() -> None:
    with Link() as link:
        link.protocol.pause_reading()
        assert not link.protocol.is_reading
        await link.send(frame(TEXT, b"later"))
        for _ in range(20):
            await asyncio.sleep(0)
        assert link.handler.events == []
        link.protocol.resume_reading()
        assert link.protocol.is_reading
        await link.until(lambda: link.handler.events == [(TEXT, "later")])


@run
async def test_a_connection_that_is_not_read_is_read_again_once_it_is_closed() -> None:
    """A flooder that is closed would otherwise hold its connection for the whole time of the close, and get a reset."""
    with Link() as link:
        link.protocol.pause_reading()
        link.protocol.close(4000, "too many")
        assert await link.read_bytes(len(build_close(4000, "too many"))) == build_close(4000, "too many")
        await link.send(frame(TEXT, b"dropped") + frame(CLOSE, b"\x0f\xa0"))
        await link.until(lambda: link.handler.ends)
        assert link.handler.ends == [(4000, None)]
        assert link.handler.events == []
        assert await link.read() == b""


@run
async def test_a_ping_is_answered_with_its_payload_and_a_pong_with_nothing() -> None:
    with Link() as link:
        await link.send(frame(PING, b"") + frame(PING, b"x" * 125) + frame(PONG, b"unasked") + frame(PING, b"end"))
        expected = build_frame(PONG, b"") + build_frame(PONG, b"x" * 125) + build_frame(PONG, b"end")
        assert await link.read_bytes(len(expected)) == expected


@run
async def test_the_bytes_of_a_whole_connection_one_by_one_are_the_same() -> None:
    with Link() as link:
        stream = frame(TEXT, b"a", final=False) + frame(PING, b"p") + frame(CONTINUATION, b"b") + frame(CLOSE)
        for index in range(len(stream)):
            await link.send(stream[index : index + 1])
            await asyncio.sleep(0)
        assert await link.read() == build_frame(PONG, b"p") + build_close(None, None)
        assert link.handler.events == [(PING, b"p"), (TEXT, "ab")]
        assert link.handler.ends == [(None, None)]


@run
async def test_a_reused_number_is_not_deaf() -> None:
    """A socket closed with its reader registered makes the next connection with that number deaf, without an error."""
    for end in ("abort", "fin", "reset", "close", "violate"):
        with Link() as first:
            number = first.number
            if end == "abort":
                first.protocol.abort()
            elif end == "reset":
                reset(first.peer)
            elif end == "fin":
                first.peer.close()
            else:
                await first.send(frame(CLOSE) if end == "close" else frame(3))
                await first.read()
                first.peer.close()
            await first.until(lambda first=first: first.protocol._socket is None)  # type: ignore[misc]
            spare: list[socket.socket] = []
            try:
                # Take the numbers below, so that the next connection's is the one that was freed.
                while not spare or spare[-1].fileno() < number:
                    spare.append(socket.socket())
                taken = [sock for sock in spare if sock.fileno() == number]
                assert len(taken) == 1
                taken[0].close()
                with Link() as second:
                    await second.send(frame(TEXT, b"hear me"))
                    await second.until(lambda second=second: second.handler.events)  # type: ignore[misc]
            finally:
                for sock in spare:
                    sock.close()


@run
async def test_what_the_stream_has_not_sent_yet_is_sent_first() -> None:
    ours, peer = socket.socketpair()
    peer.setblocking(False)
    stream = IOStream(ours)
    loop = asyncio.get_running_loop()
    head = b"HTTP/1.1 101 " + bytes(3_000_000)
    stream.write(head)
    assert stream.writing()
    outbox = Outbox(loop, limit=10_000_000)
    handler = Handler()
    readers = Readers(asyncio.get_running_loop(), outbox)
    protocol = protocol_of(handler, outbox, readers)
    assert protocol._take_over(stream) == b""
    outbox.write(protocol, build_frame(TEXT, b"first"))
    protocol.close(1000, None)
    expected = head + build_frame(TEXT, b"first") + build_close(1000, None)
    received = b""
    async with asyncio.timeout(DEADLINE):
        while len(received) < len(expected):
            received += await loop.sock_recv(peer, 65536)
    assert received == expected
    protocol.abort()
    readers.close()
    peer.close()


@run
async def test_a_unix_socket_does_as_well_and_tells_what_is_not_delivered() -> None:
    ours, peer = socket.socketpair(socket.AF_UNIX)
    peer.setblocking(False)
    loop = asyncio.get_running_loop()
    outbox = Outbox(loop, limit=10_000_000)
    handler = Handler()
    readers = Readers(asyncio.get_running_loop(), outbox)
    protocol = protocol_of(handler, outbox, readers)
    protocol._take_over(IOStream(ours))
    assert protocol.undelivered() == 0
    outbox.write(protocol, build_frame(BINARY, bytes(1000)))
    await asyncio.sleep(0)
    before = protocol.delivered()
    assert protocol.undelivered() > 0
    assert await loop.sock_recv(peer, 65536) == build_frame(BINARY, bytes(1000))
    assert protocol.undelivered() == 0
    assert protocol.delivered() > before
    await loop.sock_sendall(peer, frame(CLOSE, b"\x03\xe8"))
    async with asyncio.timeout(DEADLINE):
        assert await loop.sock_recv(peer, 65536) == build_close(1000, None)
        assert await loop.sock_recv(peer, 65536) == b""
    assert protocol.undelivered() == 0
    assert handler.ends == [(1000, None)]
    readers.close()
    peer.close()


@run
async def test_a_stream_that_has_closed_is_not_taken_over() -> None:
    ours, peer = socket.socketpair()
    stream = IOStream(ours)
    stream.close()
    handler = Handler()
    outbox = Outbox(asyncio.get_running_loop(), limit=1)
    readers = Readers(asyncio.get_running_loop(), outbox)
    protocol = protocol_of(handler, outbox, readers)
    assert protocol._take_over(stream) == b""
    assert protocol._socket is None
    assert protocol.closing
    readers.close()
    peer.close()


@run
async def test_what_tornado_may_call_and_we_do_not_have_says_so_or_ends_the_connection() -> None:
    with Link() as link:
        with pytest.raises(NotImplementedError):
            link.protocol.write_message("x")
        with pytest.raises(NotImplementedError):
            link.protocol._process_server_headers("", {})

        def fail() -> None:
            raise ZeroDivisionError

        logged: list[Any] = []
        link.handler.log_exception = lambda *error: logged.append(error[0])  # type: ignore[attr-defined]
        assert link.protocol._run_callback(fail) is None
        assert logged == [ZeroDivisionError]
        assert link.handler.ends == [(None, None)]
        assert await link.read() == b""
    with Link() as link:
        link.protocol.on_connection_close()
        assert link.handler.ends == [(None, None)]
        assert await link.read() == b""
