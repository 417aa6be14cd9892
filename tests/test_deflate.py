"""permessage-deflate: what is agreed on, what is sent to whom, what comes, and what does not come through."""

from __future__ import annotations

import asyncio
import random
import socket
import zlib
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory
from websockets.sync.client import connect

import djmease
from djmease.server.deflate import TAIL, InflateError, TooLongError, deflated, inflated, negotiate
from djmease.server.outbox import Outbox, frame_of
from djmease.server.protocol import TEXT, Parser, build_frame
from tests.support import DEADLINE, LiveServer, eventually
from tests.test_hostile import HANDSHAKE, RawClient, masked_frame

StartServer = Callable[[], LiveServer]
OFFER = HANDSHAKE.replace(b"\r\n\r\n", b"\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n")
ANSWER = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"


def masked(first: int, payload: bytes) -> bytes:
    """Return a client's frame that begins with this byte."""
    return masked_frame(first & 0x0F, payload, first=first)


@pytest.mark.parametrize(
    ("offers", "answer"),
    [
        ("permessage-deflate", ANSWER),
        ("Permessage-Deflate ; client_max_window_bits", ANSWER),
        ("permessage-deflate; client_max_window_bits=10", ANSWER),
        ('permessage-deflate; client_max_window_bits="8"', ANSWER),
        ("permessage-deflate; server_no_context_takeover; client_no_context_takeover", ANSWER),
        ("permessage-deflate; server_max_window_bits=15", ANSWER + "; server_max_window_bits=15"),
        ("permessage-deflate; server_max_window_bits=10, permessage-deflate", ANSWER),
        ("x-other; a=b, permessage-deflate", ANSWER),
        ("", None),
        ("x-webkit-deflate-frame", None),
        ("permessage-deflate; server_max_window_bits=14", None),
        ("permessage-deflate; server_max_window_bits", None),
        ("permessage-deflate; client_max_window_bits=16", None),
        ("permessage-deflate; client_max_window_bits=08", None),
        ("permessage-deflate; server_no_context_takeover=1", None),
        ("permessage-deflate; client_max_window_bits; client_max_window_bits", None),
        ("permessage-deflate; unknown", None),
        ("permessage-deflate; ;", None),
        ("permessage-deflate; =", None),
    ],
)
def test_an_offer_is_accepted_as_a_whole_or_declined(offers: str, answer: str | None) -> None:
    assert negotiate(offers) == answer


@given(st.binary(max_size=5000).map(lambda part: part * 3))
def test_what_is_deflated_is_inflated_to_what_it_was(payload: bytes) -> None:
    frame = deflated(build_frame(TEXT, payload))
    if frame is not None:
        assert len(frame) < len(build_frame(TEXT, payload))
        assert frame[0] == 0xC1
        start = 2 if frame[1] < 126 else 4
        assert inflated(frame[start:], len(payload)) == payload
        with pytest.raises(TooLongError):
            inflated(frame[start:], len(payload) - 1)


@given(st.binary(max_size=200))
def test_rubbish_is_inflated_to_little_or_refused(payload: bytes) -> None:
    with suppress(InflateError, TooLongError):
        assert len(inflated(payload, 1000)) <= 1000


def test_a_block_that_says_that_it_is_the_last_is_taken() -> None:
    # RFC 7692, section 7.2.3.4, and the same twice.
    assert inflated(bytes.fromhex("f348cdc9c9070000"), 100) == b"Hello"
    whole = zlib.compressobj(wbits=-15)
    assert inflated((whole.compress(b"Hello") + whole.flush()) * 2, 100) == b"HelloHello"
    with pytest.raises(InflateError, match="more than 16 streams"):
        inflated(b"\x03\x00" * 17, 100)


@pytest.mark.parametrize("first", [0xC9, 0xC8, 0xA1, 0x91, 0xF1])
def test_a_reserved_bit_where_none_belongs_is_an_error(first: int) -> None:
    parser = Parser(1000)
    parser.takes_deflated = True
    parser.feed(bytes([first, 0x80]) + bytes(4))
    assert parser.error is not None and parser.error.code == 1002


def test_a_continuation_is_not_marked_as_compressed() -> None:
    parser = Parser(1000)
    parser.takes_deflated = True
    parser.feed(masked(0x41, b"") + masked(0xC0, b""))
    assert parser.error is not None and parser.error.code == 1002


def compressed(payload: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-15)
    return (compressor.compress(payload) + compressor.flush(zlib.Z_SYNC_FLUSH))[: -len(TAIL)]


def test_fragments_of_compressed_messages_and_plain_ones_in_turns() -> None:
    parser = Parser(1000)
    parser.takes_deflated = True
    data = compressed("grüß dich ".encode() * 50)
    half = len(data) // 2
    stream = (
        masked(0x41, data[:half])
        + masked(0x89, b"ping")
        + masked(0x80, data[half:])
        + masked(0x81, b"plain")
        + masked(0x01, b"pl")
        + masked(0x80, b"ain")
        + masked(0xC2, compressed(b"\xff" * 500))
        + masked(0x82, b"\xff")
    )
    whole = ["grüß dich " * 50, b"ping", "plain", "plain", b"\xff" * 500, b"\xff"]
    order = [whole[1], whole[0], *whole[2:]]
    assert [content for _, content in parser.feed(stream)] == order
    assert parser.error is None
    pieces = Parser(1000)
    pieces.takes_deflated = True
    assert [content for byte in stream for _, content in pieces.feed(bytes([byte]))] == order


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        (compressed(b"x" * 1001), 1009),
        (compressed(b"x" * 100_000_000), 1009),
        (compressed(b"\xff\xfe"), 1007),
        (b"\xff" * 20, 1007),
        (b"x" * 1200, 1009),
    ],
    ids=["too long", "a bomb", "not UTF-8", "not DEFLATE", "too long before"],
)
def test_what_must_not_come_through_is_closed_with_its_code(payload: bytes, code: int) -> None:
    parser = Parser(1000)
    parser.takes_deflated = True
    assert parser.feed(masked(0xC1, payload)) == []
    assert parser.error is not None and parser.error.code == code


def test_a_message_of_the_largest_size_that_cannot_be_compressed_comes_through() -> None:
    payload = random.Random(1).randbytes(65536)
    parser = Parser(len(payload))
    parser.takes_deflated = True
    assert parser.feed(masked(0xC2, compressed(payload))) == [(2, payload)]


def test_those_who_take_compression_and_those_who_do_not_get_the_same_in_order(
    start_server: StartServer, settings: Any
) -> None:
    settings.MEASE_COMPRESSION = True

    @djmease.sender(routing="news")
    def show(message: Any, clients_list: Any) -> None:
        clients_list.send(f"all {message}")
        for client in clients_list:
            client.write_message(message)

    server = start_server()
    messages = [f"{index} " + "text " * (index % 3) * 100 for index in range(200)]
    with connect(server.url, compression="deflate") as small, connect(server.url, compression=None) as plain:
        assert small.response is not None and small.response.headers["Sec-WebSocket-Extensions"] == ANSWER
        assert plain.response is not None and "Sec-WebSocket-Extensions" not in plain.response.headers
        eventually(lambda: server.call(lambda: len(server.server.clients.snapshot())) == 2)
        for message in messages:
            djmease.publish("news", message)
        for client in (small, plain):
            got = [client.recv(DEADLINE) for _ in range(2 * len(messages))]
            assert got == [text for message in messages for text in (f"all {message}", message)]


def test_what_is_sent_is_compressed_once_and_smaller(
    start_server: StartServer, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.MEASE_COMPRESSION = True
    calls: list[int] = []

    def counted(frame: bytes) -> bytes | None:
        calls.append(len(frame))
        return deflated(frame)

    monkeypatch.setattr("djmease.server.forms.deflated", counted)

    @djmease.sender(routing="news")
    def show(message: Any, clients_list: Any) -> None:
        for client in clients_list:
            client.write_message(message)

    server = start_server()
    text = "a text that repeats itself; " * 100
    with RawClient(server, handshake=OFFER) as first, RawClient(server, handshake=OFFER) as second:
        first.shake_hands()
        second.shake_hands()
        eventually(lambda: server.call(lambda: len(server.server.clients.snapshot())) == 2)
        djmease.publish("news", text)
        expected = deflated(frame_of(text))
        assert expected is not None and len(expected) < len(text) / 10
        for client in (first, second):
            assert client.socket.recv(len(expected), socket.MSG_WAITALL) == expected
    assert len(calls) == 1
    eventually(lambda: server.call(lambda: server.server._outbox.deflating) == 0)
    djmease.publish("news", text)


def test_compressed_messages_are_received_with_any_window(start_server: StartServer, settings: Any) -> None:
    settings.MEASE_COMPRESSION = True

    @djmease.receiver
    async def echo(client: Any, message: Any) -> None:
        client.write_message(message)

    server = start_server()
    for bits in (9, 12, 15):
        extension = ClientPerMessageDeflateFactory(client_max_window_bits=bits)
        with connect(server.url, extensions=[extension], compression=None) as client:
            for message in ("short", "long " * 5000, b"\x00" * 60_000):
                client.send(message)
                assert client.recv(DEADLINE) == message


def test_a_bomb_ends_its_connection_and_nothing_else(start_server: StartServer, settings: Any) -> None:
    settings.MEASE_COMPRESSION = True
    seen: list[Any] = []
    djmease.receiver(lambda message: seen.append(message))
    server = start_server()
    with connect(server.url, max_size=None) as client:
        client.send("x" * 50_000_000)
        with pytest.raises(ConnectionClosed) as closed:
            client.recv(DEADLINE)
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 1009
    with connect(server.url) as client:
        client.send("still here")
        eventually(lambda: seen == ["still here"])


def test_without_the_setting_nothing_is_agreed_on_nor_compressed(start_server: StartServer) -> None:
    server = start_server()
    with connect(server.url, compression="deflate") as client:
        assert client.response is not None and "Sec-WebSocket-Extensions" not in client.response.headers
        eventually(lambda: server.call(lambda: len(server.server.clients.snapshot())) == 1)
        assert server.server._outbox.deflating == 0


def test_an_outbox_that_nobody_asks_for_compression_compresses_nothing() -> None:
    outbox = Outbox(asyncio.new_event_loop(), limit=1000)
    assert outbox._forms(frame_of("x" * 1000), None) is None
    outbox._loop.close()
