"""Everything at once, at random, for ten minutes: steady clients, churn, floods, deaf clients, rubbish, publishes.

::

    python benchmarks/soak.py                  # ten minutes
    python benchmarks/soak.py --seconds 30     # with looser bounds for memory, which it prints
    python benchmarks/soak.py --seed 7         # the same choices again, as far as the scheduling allows

One real server with a real Valkey. It ends with 1 and one sentence for the first thing that is wrong: a message that a
client misses, or gets twice, out of order, or altered; a wrong close code; a client that is cut off though it reads;
a connection without its closer; a line in the server's log that should not be there; memory that grows; files that
stay open. It needs the ``embedded`` extra.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import socket
import statistics
import struct
import sys
import tempfile
import time
import zlib
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from site_of_benchmarks import HANDSHAKE, MANAGE, Server, environment_of, serving

REGISTRY = """
import asyncio, os
import djmease

visits = open("visits", "ab", buffering=0)

@djmease.opener
def enter(client):
    # A connection that is kept by mistake shows in the memory.
    client.storage["ballast"] = os.urandom(10_000)
    visits.write(f"+{client.id}\\n".encode())
    client.write_message({"type": "welcome", "id": client.id})

@djmease.closer
def leave(client):
    visits.write(f"-{client.id}\\n".encode())

@djmease.sender(routing=["soak.def", "soak.group"])
def show(message, clients_list):
    for client in clients_list:
        client.write_message(message)

@djmease.sender(routing="soak.redis")
def show_all(message, clients_list):
    clients_list.send(message)

@djmease.sender(routing=["soak.async", "soak.large"])
async def show_slowly(message, clients_list):
    await asyncio.sleep(0)
    clients_list.send(message)

@djmease.receiver(type="echo.def")
def echo(client, message):
    client.write_message(message)

@djmease.receiver(type="echo.async")
async def echo_on_loop(client, message):
    await asyncio.sleep(0)
    client.write_message(message)

@djmease.receiver(type="join")
def join(client, message):
    client.join(message["group"])
    client.write_message({"type": "done"})

@djmease.receiver(type="leave")
def leave_group(client, message):
    client.leave(message["group"])
    client.write_message({"type": "done"})
"""
# Pings often enough to be tried, and a deadline that no pause of a client that is well comes near.
SETTINGS = """
MEASE_PING_INTERVAL = 3
MEASE_PING_TIMEOUT = 8
MEASE_MAX_MESSAGE_RATE = None
"""
PUBLISHER = """
import json, sys, django
django.setup()
import djmease
for line in sys.stdin.buffer:
    kind, routing, group, body = json.loads(line)
    whom = {} if group is None else {"group": group}
    djmease.publish(routing, body.encode("latin-1") if kind == "bytes" else body, **whom)
"""
TEXT, BINARY, CLOSE, PING, PONG = 0x81, 0x82, 0x88, 0x89, 0x8A
PAD = "all of it, zuverlässig und der Reihe nach; " * 6000
PAD_OF_BYTES = bytes(range(256)) * 1000
HEAD = re.compile(rb'(?:\{"of":")?([a-z]+) (\d+)')
PATIENCE = 60.0
"""Seconds for anything that should take one."""
MAX_LAG = 500
"""Messages of one stream that may be behind at any steady client before publishing waits for it."""


class Fault(Exception):  # noqa: N818 (it is what the run looks for)
    """Something is wrong, in one sentence."""


@dataclass(slots=True, kw_only=True)
class Stream:
    """Numbered messages on one routing for the same clients; each number has one body."""

    name: str
    routing: str
    groups: tuple[str, ...] | None = None
    sizes: tuple[int, int] = (20, 2000)
    kinds: tuple[str, ...] = ("text", "json", "bytes")
    ordered: int = 0
    """How many there are to be so far."""

    def kind(self, number: int) -> str:
        return self.kinds[number * 7 // 3 % len(self.kinds)]

    def body(self, number: int) -> Any:
        """Return what is published under this number."""
        head = f"{self.name} {number}"
        low, high = self.sizes
        size = low + zlib.crc32(head.encode()) % (high - low)
        if self.kind(number) == "bytes":
            return head.encode() + b" " + PAD_OF_BYTES[:size]
        return {"of": head, "pad": PAD[:size]} if self.kind(number) == "json" else f"{head} {PAD[:size]}"

    def frame(self, number: int) -> tuple[int, bytes]:
        """Return the first byte of the frame in which a client gets it, and the payload."""
        body = self.body(number)
        if isinstance(body, bytes):
            return BINARY, body
        return TEXT, body.encode() if isinstance(body, str) else to_json(body)


def to_json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def frame(first: int, payload: bytes, *, mask: bytes = b"\xa5\x17\x00\xc3") -> bytes:
    """Return a masked frame with that first byte, whether it makes sense or not."""
    size = len(payload)
    if size < 126:
        head = struct.pack("!BB", first, 0x80 | size)
    elif size < 65536:
        head = struct.pack("!BBH", first, 0xFE, size)
    else:
        head = struct.pack("!BBQ", first, 0xFF, size)
    masks = (mask * (size // 4 + 1))[:size]
    return head + mask + (int.from_bytes(payload) ^ int.from_bytes(masks)).to_bytes(size)


class Client:
    """One WebSocket that reads only while it is awaited, and checks each message that it gets."""

    def __init__(self, soak: Soak, kind: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.kind = kind
        self.id = ""
        self.reader = reader
        self.writer = writer
        self.echoes: deque[bytes] = deque()
        """What has been sent to an echo receiver and has not come back."""
        self.next: dict[str, int] = {}
        """The number that has to come next, of each stream that has begun."""
        self.is_closed = False
        self.close_code: int | None = None
        self.answers_pings = True
        self._soak = soak
        self._buffer = bytearray()
        self._answers = 0
        self._begins_by: dict[str, int] = {}
        self._ends_before = {stream.name: float("inf") for stream in soak.streams.values() if stream.groups is None}

    def __str__(self) -> str:
        return f"the {self.kind} client {self.id}"

    # Speaking

    def send(self, payload: bytes, *, pieces: int = 1) -> None:
        """Send a text, if wanted in fragments with pings between them."""
        size = len(payload) // pieces + 1
        for start in range(0, len(payload), size):
            first = (0x80 if start + size >= len(payload) else 0) | (0 if start else 1)
            self.writer.write((frame(PING, b"?") if start else b"") + frame(first, payload[start : start + size]))

    def ask_echo(self, kind: str, size: int, *, pieces: int = 1) -> None:
        self._soak.counts["echoes"] += 1
        payload = to_json({"type": f"echo.{kind}", "n": self._soak.counts["echoes"], "pad": PAD[:size]})
        self.echoes.append(payload)
        self.send(payload, pieces=pieces)

    async def settle(self) -> None:
        """Be sure to be counted among the clients: from here on nothing that is for everybody may be missed."""
        self.ask_echo("def", 10)
        await self.read_until(lambda: not self.echoes, "an echo")
        self._must_have_begun(self._ends_before)

    async def join(self, group: str) -> None:
        names = self._soak.streams_of(group)
        self._ends_before.update(dict.fromkeys(names, float("inf")))
        await self._request({"type": "join", "group": group})
        self._must_have_begun(names)

    async def leave(self, group: str) -> None:
        """Leave a group with all that was to be published while it was a member."""
        for name in self._soak.streams_of(group):
            ordered = self._soak.streams[name].ordered
            if ordered > self._begins_by[name]:
                await self.read_until(lambda name=name, ordered=ordered: self.next.get(name, 0) >= ordered, name)
        await self._request({"type": "leave", "group": group})
        for name in self._soak.streams_of(group):
            self._ends_before[name] = self._soak.streams[name].ordered
            self.next.pop(name, None)
            del self._begins_by[name]

    async def _request(self, request: dict[str, str]) -> None:
        answers = self._answers + 1
        self.send(to_json(request))
        await self.read_until(lambda: self._answers == answers, f"the answer to {request}")

    async def close(self) -> None:
        self.writer.write(frame(CLOSE, struct.pack("!H", 1000)))
        await self.expect_end(1000)

    def reset(self) -> None:
        """Let the other side see a RST."""
        reset(self.writer)

    # Hearing

    async def read_until(self, done: Callable[[], bool], what: str, *, within: float | None = PATIENCE) -> None:
        try:
            async with asyncio.timeout(within):
                while not done():
                    if not await self._read():
                        raise Fault(f"{self} was disconnected ({self.close_code}) while it waited for {what}")
        except TimeoutError:
            raise Fault(f"{self} has waited {within} s for {what}") from None

    async def read_for(self, seconds: float) -> None:
        """Read for a while, in which the connection must not end."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while await self._read():
                    pass
                raise Fault(f"{self} was disconnected ({self.close_code}) though it reads")

    async def read_to_end(self, *, within: float = PATIENCE) -> int | None:
        """Read until the connection ends, however it does; return the code of the close frame."""
        try:
            async with asyncio.timeout(within):
                while await self._read():
                    pass
        except TimeoutError:
            raise Fault(f"the connection of {self} has not ended in {within} s") from None
        return self.close_code

    async def expect_end(self, *codes: int | None) -> None:
        code = await self.read_to_end()
        if code not in codes:
            raise Fault(f"{self} was closed with {code}, and should have been with {codes}")

    async def _read(self) -> bool:
        try:
            data = await self.reader.read(1 << 16)
        except OSError:
            return False
        self._buffer += data
        position = 0
        while (end := self._frame_from(position)) is not None:
            position = end
        del self._buffer[:position]
        return bool(data)

    def _frame_from(self, start: int) -> int | None:
        """Take one frame, which servers send whole and unmasked, and return where it ends."""
        buffer = self._buffer
        if len(buffer) < start + 2:
            return None
        size, at = buffer[start + 1], start + 2
        if size > 125:
            at += 2 if size == 126 else 8
            size = int.from_bytes(buffer[start + 2 : at])
        if len(buffer) < at + size:
            return None
        self._take(buffer[start], bytes(buffer[at : at + size]))
        return at + size

    def _take(self, first: int, payload: bytes) -> None:
        if self.is_closed:
            raise Fault(f"{self} got {payload[:50]!r} behind a close frame")
        if first == CLOSE:
            self.is_closed = True
            self.close_code = int.from_bytes(payload[:2]) if payload else None
        elif first == PING:
            if self.answers_pings:
                self.writer.write(frame(PONG, payload))
        elif first == TEXT and payload.startswith(b'{"type":"echo'):
            if not self.echoes or self.echoes.popleft() != payload:
                raise Fault(f"{self} got another echo than is next: {payload[:60]!r}")
            self._soak.counts["echoes back"] += 1
        elif first == TEXT and payload.startswith(b'{"type":'):
            self.id = json.loads(payload).get("id", self.id)
            self._answers += 1
        elif first != PONG:
            self._take_published(first, payload)

    def _take_published(self, first: int, payload: bytes) -> None:
        head = HEAD.match(payload)
        if head is None:
            raise Fault(f"{self} got {payload[:60]!r}, which nobody has published")
        name, number = head[1].decode(), int(head[2])
        if self._soak.streams[name].frame(number) != (first, payload):
            raise Fault(f"{self} got {name} {number} altered")
        if number >= self._ends_before.get(name, 0):
            raise Fault(f"{self} got {name} {number}, which is for a group that it is not in")
        self._soak.counts["deliveries"] += 1
        if name in self._begins_by:
            # The first may be one that was on its way when the client joined.
            if number != self._wanted(name) and (name in self.next or number > self._wanted(name)):
                raise Fault(f"{self} got {name} {number}, and {self._wanted(name)} was next")
            self.next[name] = number + 1

    def _must_have_begun(self, names: Any) -> None:
        for name in names:
            self._begins_by.setdefault(name, self._soak.streams[name].ordered)

    def _wanted(self, name: str) -> int:
        return self.next.get(name, self._begins_by.get(name, 0))

    def missing(self) -> dict[str, int]:
        """Return how many messages of which streams have been ordered, and have not come yet."""
        behind = {name: self._soak.streams[name].ordered - self._wanted(name) for name in self._begins_by}
        return {name: count for name, count in behind.items() if count}


def reset(writer: asyncio.StreamWriter) -> None:
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


# What clients do while the others are there: each is one visit.

Visit = Callable[["Soak", random.Random], Awaitable[None]]


async def churn(soak: Soak, rng: random.Random) -> None:
    """Come, perhaps say something, and go in one of the ways in which browsers and networks go."""
    early = rng.random() < 0.2
    async with soak.visit("churn", early=early) as client:
        if not early and rng.random() < 0.7:
            await client.settle()
        for _ in range(rng.randrange(20)):
            client.ask_echo(rng.choice(["def", "async"]), rng.randrange(3000), pieces=rng.choice([1, 1, 3]))
        if rng.random() < 0.7:
            await client.read_until(lambda: not client.echoes, "its echoes")
        how = rng.choice(["close", "abort", "half-close", "drop", "in a frame"])
        soak.counts[f"churn: {how}"] += 1
        if how == "close":
            await client.close()
        elif how == "abort":
            client.reset()
        elif how == "half-close":
            client.writer.write_eof()
            await client.expect_end(None)
        elif how == "in a frame":
            client.writer.write(frame(TEXT, PAD.encode()[:5000])[: rng.randrange(1, 5000)])
            await client.writer.drain()
            if rng.random() < 0.5:
                client.reset()


async def vanish(soak: Soak, rng: random.Random) -> None:
    """Go, or never speak properly, before there is a WebSocket."""
    how = rng.choice(["partly", "partly", "partly", "no answer read", "not HTTP", "another origin", "dawdle"])
    soak.counts[f"vanish: {how}"] += 1
    request = HANDSHAKE.format(path="", headers="").encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", soak.server.port)
    try:
        if how == "not HTTP":
            writer.write(b"\x16\x03\x01\x02 no handshake\r\n\r\n")
        elif how == "another origin":
            writer.write(HANDSHAKE.format(path="", headers="Origin: https://other.example\r\n").encode())
            if b" 403 " not in await reader.readline():
                raise Fault("a handshake from another origin was not answered with 403")
            return
        elif how == "no answer read":
            soak.perhaps += 1
            writer.write(request)
        else:
            writer.write(request[: rng.randrange(len(request) - 1)])
        await writer.drain()
        if how in ("dawdle", "not HTTP"):
            await soak.ended(reader, f"a connection that went {how}")
        elif rng.random() < 0.5:
            reset(writer)
    finally:
        writer.transport.abort()


async def flood(soak: Soak, rng: random.Random) -> None:
    """Send as fast as the server takes it, and count every echo."""
    kinds = rng.choice([["def"], ["async"], ["def", "async"]])
    async with soak.visit("flooding") as client:
        await client.settle()

        async def send() -> None:
            for _ in range(rng.randrange(100, 2000)):
                client.ask_echo(rng.choice(kinds), rng.randrange(300))
                await client.writer.drain()

        sending = asyncio.create_task(send())
        await client.read_until(lambda: sending.done() and not client.echoes, "all of its echoes")
        await sending
        await client.close()


async def deafness(soak: Soak, rng: random.Random) -> None:
    """Stop reading what is published, or the echoes of what one sends, until the server has enough of it."""
    async with soak.visit("deaf", receive_buffer=1 << 16) as client:
        soak.log.may_be_cut.add(client.id)
        if rng.random() < 0.7:
            await client.join("large")
            await soak.log.wait_for(lambda: soak.log.ended(client.id), f"{client} to be cut off")
        else:
            sending = asyncio.create_task(keep_asking(client))
            await soak.log.wait_for(lambda: soak.log.ended(client.id), f"{client} to be cut off")
            sending.cancel()
        if client.id in soak.log.given_up:
            soak.counts["deaf: given up for no pong"] += 1
            await client.read_to_end()
        elif rng.random() < 0.7:
            soak.counts["deaf: read why"] += 1
            await client.expect_end(1013)
        else:
            soak.counts["deaf: for too long"] += 1
            await asyncio.sleep(7)  # The server gives a closing handshake five seconds.
            await client.read_to_end()


async def keep_asking(client: Client) -> None:
    with suppress(OSError):
        while True:
            client.ask_echo("async", 5000)
            await client.writer.drain()
            await asyncio.sleep(0)


async def pause(soak: Soak, rng: random.Random) -> None:
    """Stop reading for a moment, or for longer where little is sent: nothing may be lost."""
    is_large = rng.random() < 0.6
    async with soak.visit("pausing") as client:
        await client.settle()
        if is_large:
            await client.join("large")
        for _ in range(rng.randrange(1, 5)):
            await asyncio.sleep(rng.uniform(0.1, 0.6) if is_large else rng.uniform(1, 4))
            client.ask_echo("def", 100)
            await client.read_until(lambda: not client.echoes, "an echo behind its pause")
            await client.read_for(rng.uniform(0.1, 1))
        if is_large:
            await client.leave("large")
        await client.close()


async def rove(soak: Soak, rng: random.Random) -> None:
    """Join a group, leave it with everything that was for it, and join it again."""
    async with soak.visit("roving") as client:
        await client.settle()
        for _ in range(rng.randrange(1, 6)):
            await client.join("rovers")
            await client.read_for(rng.uniform(0, 1))
            await client.leave("rovers")
            await client.read_for(rng.uniform(0.1, 0.3))
        await client.close()


async def silence(soak: Soak, rng: random.Random) -> None:
    """Answer no ping: the server gives it up, but for a ping that was sent together with what was read."""
    async with soak.visit("silent") as client:
        client.answers_pings = False
        soak.log.may_be_given_up.add(client.id)
        await client.expect_end(None)


RUBBISH = {
    "an unmasked frame": (b"\x81\x05hello", 1002),
    "a reserved bit": (frame(0xC1, b"x"), 1002),
    "an unknown opcode": (frame(0x83, b"x"), 1002),
    "a continuation of nothing": (frame(0x80, b"x"), 1002),
    "a text in a text": (frame(0x01, b"x") + frame(0x01, b"x"), 1002),
    "a ping in fragments": (frame(0x09, b"x"), 1002),
    "a long ping": (frame(PING, bytes(126)), 1002),
    "a length of 2 ** 63": (b"\x82\xff" + b"\xff" * 8 + bytes(4), 1002),
    "half a close code": (frame(CLOSE, b"\x03"), 1002),
    "a close code of none": (frame(CLOSE, struct.pack("!H", 1005)), 1002),
    "text that is not UTF-8": (frame(TEXT, b"\xff"), 1007),
    "half a letter": (frame(0x01, b"\xc3") + frame(0x80, b"\x28"), 1007),
    "a large message": (frame(BINARY, bytes(65537)), 1009),
    "a large message in fragments": (frame(0x02, bytes(40000)) + frame(0x80, bytes(40000)), 1009),
    "a close code of its own": (frame(CLOSE, struct.pack("!H", 3999)), 3999),
    "an empty close frame": (frame(CLOSE, b""), None),
}


async def rubbish(soak: Soak, rng: random.Random) -> None:
    """Break the protocol in one way, and be told so with the right code, whatever is sent behind it."""
    data, code = RUBBISH[rng.choice(list(RUBBISH))]
    soak.counts[f"rubbish: {code}"] += 1
    async with soak.visit("broken") as client:
        if rng.random() < 0.5:
            await client.settle()
        # Behind a close frame nothing may follow, and a server need not wait for it.
        behind = 0 if data[0] == CLOSE else rng.choice([0, 0, 100, 100_000])
        client.writer.write(data + rng.randbytes(behind))
        await client.expect_end(code)


VISITS: dict[Visit, tuple[int, float]] = {
    churn: (4, 0.1),
    vanish: (2, 0.2),
    flood: (2, 1.0),
    deafness: (2, 1.0),
    pause: (3, 0.5),
    rove: (2, 0.2),
    silence: (1, 1.0),
    rubbish: (2, 0.1),
}
"""How many do each at a time, and the most seconds that they rest between two visits."""


class Log:
    """What the server and the publisher write to stderr: each line is expected of somebody, or a fault."""

    CUT_OFF = re.compile(r"\[[\d:]+\] WARNING client (\w+) does not read: .*1013")
    GIVEN_UP = re.compile(r"\[[\d:]+\] INFO client (\w+) has not answered a ping .*")
    REFUSED = re.compile(r"\[[\d:]+\] WARNING refused .*other\.example.*")

    def __init__(self, written: IO[str], file: IO[str]) -> None:
        self.written = written
        self._file = file
        self._rest = ""
        self.may_be_cut: set[str] = set()
        self.may_be_given_up: set[str] = set()
        self.cut: set[str] = set()
        self.given_up: set[str] = set()

    def ended(self, client_id: str) -> bool:
        return client_id in self.cut or client_id in self.given_up

    def read(self) -> None:
        *lines, self._rest = (self._rest + self._file.read()).split("\n")
        for number, line in enumerate(lines):
            if (match := self.CUT_OFF.fullmatch(line)) and match[1] in self.may_be_cut:
                self.cut.add(match[1])
            elif (match := self.GIVEN_UP.fullmatch(line)) and match[1] in self.may_be_cut | self.may_be_given_up:
                self.given_up.add(match[1])
            elif not self.REFUSED.fullmatch(line):
                raise Fault("the log has what should not be in it:\n" + "\n".join(lines[number : number + 50]))

    async def watch(self) -> None:
        while True:
            self.read()
            await asyncio.sleep(0.05)

    async def wait_for(self, done: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not done():
            if time.monotonic() > deadline:
                raise Fault(f"waited {PATIENCE} s for {what}")
            await asyncio.sleep(0.05)


class Health:
    """Memory, open files and threads of the server, as the operating system tells them."""

    def __init__(self, pid: int, *, seconds: float) -> None:
        self._proc = Path(f"/proc/{pid}")
        self._warm_at = time.monotonic() + max(10.0, seconds / 10)
        self._is_long = seconds >= 300
        self.memory: list[float] = []
        self.most_files = 0
        self.most_threads = 0
        self.files: list[str] = []

    async def watch(self) -> None:
        while True:
            self.most_files = max(self.most_files, len(self.open_files()))
            self.most_threads = max(self.most_threads, len(list((self._proc / "task").iterdir())))
            if time.monotonic() > self._warm_at:
                pages = int((self._proc / "statm").read_text().split()[1])
                self.memory.append(pages * os.sysconf("SC_PAGE_SIZE") / 1e6)
            await asyncio.sleep(0.25)

    def open_files(self) -> list[str]:
        """Return what the server's descriptors are open on, without the numbers of sockets and the like."""
        names = []
        for entry in (self._proc / "fd").iterdir():
            with suppress(FileNotFoundError):
                names.append(re.sub(r":\[\d+\]", "", os.readlink(entry)))
        return sorted(names)

    async def check_files(self) -> None:
        """Wait until as many files are open as before there were any clients."""
        deadline = time.monotonic() + PATIENCE
        while len(self.open_files()) != len(self.files):
            if time.monotonic() > deadline:
                more = Counter(self.open_files())
                more.subtract(self.files)
                raise Fault(f"the server's open files are not what they were: {dict(+more)} more, {dict(-more)} less")
            await asyncio.sleep(0.1)

    def check_threads(self) -> None:
        # Its main thread, those for callbacks, one of asgiref's and one of asyncio's.
        bound = 3 + min(32, (os.cpu_count() or 1) + 4)
        if self.most_threads > bound:
            raise Fault(f"the server had {self.most_threads} threads, more than {bound}")

    def check_memory(self) -> str:
        """Compare the first third behind the warm-up with the last one, and return what was found."""
        third = len(self.memory) // 3
        if not third:
            raise Fault("the run is too short to say anything about memory: give it 30 seconds or more")
        first, last = statistics.median(self.memory[:third]), statistics.median(self.memory[-third:])
        share, more = (0.05, 2) if self._is_long else (0.25, 10)
        told = (
            f"memory {first:.1f} MB in the first third, {last:.1f} MB in the last (at most {share:.0%} + {more} MB more"
            f"{'' if self._is_long else ', the bound of short runs'}), most {max(self.memory):.1f} MB"
        )
        if last > first * (1 + share) + more:
            raise Fault(f"the server's memory grows: {told}")
        return told


class Soak:
    """One run: the server, its clients, what is published to them, and what has been counted."""

    def __init__(self, server: Server, log: Log, *, seconds: float, seed: int) -> None:
        self.server = server
        self.log = log
        self.health = Health(server.process.pid, seconds=seconds)
        self.counts: Counter[str] = Counter()
        self.streams = {
            stream.name: stream
            for stream in (
                Stream(name="def", routing="soak.def"),
                Stream(name="async", routing="soak.async"),
                Stream(name="redis", routing="soak.redis", kinds=("text",)),
                Stream(name="east", routing="soak.group", groups=("east",)),
                Stream(name="west", routing="soak.group", groups=("west",)),
                Stream(name="both", routing="soak.group", groups=("east", "west")),
                Stream(name="rovers", routing="soak.group", groups=("rovers",)),
                Stream(name="large", routing="soak.large", groups=("large",), sizes=(50_000, 200_000)),
            )
        }
        self.perhaps = 0
        """Handshakes that the server may have seen or not."""
        self._welcomed: list[str] = []
        self._steady: list[Client] = []
        self._is_over = False
        self._seed = seed
        self._end = time.monotonic() + seconds
        self._publisher: asyncio.subprocess.Process

    def streams_of(self, group: str) -> list[str]:
        return [stream.name for stream in self.streams.values() if stream.groups and group in stream.groups]

    @asynccontextmanager
    async def visit(self, kind: str, *, early: bool = False, receive_buffer: int = 0) -> AsyncIterator[Client]:
        """Connect a client that has been welcomed; what it leaves open is closed behind it."""
        sock = socket.socket()
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self.server.port))
        client = Client(self, kind, *await asyncio.open_connection(sock=sock))
        try:
            client.writer.write(HANDSHAKE.format(path="", headers="").encode())
            if early:
                client.ask_echo("def", 100)
            answer = await client.reader.readuntil(b"\r\n\r\n")
            if not answer.startswith(b"HTTP/1.1 101 "):
                raise Fault(f"a handshake was answered with {answer!r}")
            await client.read_until(lambda: bool(client.id), "its welcome")
            self._welcomed.append(client.id)
            yield client
        finally:
            client.writer.transport.abort()

    async def ended(self, reader: asyncio.StreamReader, what: str) -> None:
        """Wait until the server ends a connection that never became a WebSocket."""
        try:
            async with asyncio.timeout(PATIENCE):
                with suppress(OSError):
                    await reader.read()
        except TimeoutError:
            raise Fault(f"{what} was still open after {PATIENCE} s") from None

    # The run

    async def run(self) -> None:
        """Do everything at once until the time is over, then see that everybody has everything."""
        await self._baseline()
        async with self._publishing(), asyncio.TaskGroup() as watchers:
            watching = [watchers.create_task(self.log.watch()), watchers.create_task(self.health.watch())]
            async with asyncio.TaskGroup() as steady:
                for index in range(12):
                    steady.create_task(self._stay(index))
                await self.log.wait_for(lambda: len(self._steady) == 12, "the steady clients to join")
                await self._bustle()
                await self._finish_publishing()
                self._is_over = True
                for client in self._steady:
                    client.ask_echo("async", 10)
            for task in watching:
                task.cancel()
        await self.health.check_files()
        await self._stop()

    async def _baseline(self) -> None:
        """See what is open once each kind of callback has run, and nobody is there any more."""
        async with self.visit("first") as client:
            await client.settle()
            client.ask_echo("async", 10)
            await client.read_until(lambda: not client.echoes, "an echo")
            await client.close()
        await self.log.wait_for(lambda: len(self._visits()) == 2, "the first closer")
        self.health.files = self.health.open_files()

    async def _stay(self, index: int) -> None:
        """Be there all the time, and get everything once, in order."""
        async with self.visit(f"steady (number {index})") as client:
            await client.settle()
            groups = {"east": index % 2 == 0, "west": index % 3 == 0, "large": index < 2}
            for group in [name for name, joins in groups.items() if joins]:
                await client.join(group)
            self._steady.append(client)
            await client.read_until(lambda: self._is_over, "the end of the run", within=None)
            try:
                await client.read_until(lambda: not client.echoes and not client.missing(), "the rest")
            except Fault as fault:
                raise Fault(f"{fault}: it misses {client.missing()}, {len(client.echoes)} echoes") from fault
            # What was sent twice would come before this.
            await client.settle()
            await client.close()

    async def _bustle(self) -> None:
        """Let clients come and go while there is time, and publish for as long as any is there."""
        async with asyncio.TaskGroup() as publishing:
            tasks = [publishing.create_task(self._publish(number)) for number in range(2)]
            tasks.append(publishing.create_task(self._publish_large()))
            async with asyncio.TaskGroup() as visits:
                for visit, (count, rest) in VISITS.items():
                    for number in range(count):
                        visits.create_task(self._repeat(visit, rest, number))
            for task in tasks:
                task.cancel()

    async def _repeat(self, visit: Visit, rest: float, number: int) -> None:
        rng = random.Random(f"{self._seed} {visit.__name__} {number}")
        while time.monotonic() < self._end:
            await visit(self, rng)
            self.counts[visit.__name__] += 1
            await asyncio.sleep(rng.uniform(0, rest))

    # Publishing

    @asynccontextmanager
    async def _publishing(self) -> AsyncIterator[None]:
        """Run the process that calls ``djmease.publish``."""
        self._publisher = await asyncio.create_subprocess_exec(
            *[MANAGE[0], "-c", PUBLISHER],
            cwd=self.server.home,
            env=environment_of(self.server.home),
            stdin=asyncio.subprocess.PIPE,
            stderr=self.log.written,
        )
        try:
            yield
        finally:
            if self._publisher.returncode is None:
                self._publisher.kill()
                await self._publisher.wait()

    async def _finish_publishing(self) -> None:
        assert self._publisher.stdin is not None
        self._publisher.stdin.close()
        if await self._publisher.wait():
            raise Fault("the process that publishes has failed")

    async def _publish(self, number: int) -> None:
        rng = random.Random(f"{self._seed} publish {number}")
        small = [stream for stream in self.streams.values() if stream.name != "large"]
        while True:
            stream = rng.choice(small)
            for _ in range(rng.choice([1, 1, 1, 1, rng.randrange(2, 60)])):
                await self._order(stream)
            await self._catch_up(stream, MAX_LAG)
            await asyncio.sleep(rng.uniform(0, 0.06))

    async def _publish_large(self) -> None:
        rng = random.Random(f"{self._seed} large")
        while True:
            for _ in range(rng.randrange(1, 16)):
                await self._order(self.streams["large"])
            await self._catch_up(self.streams["large"], 10)
            await asyncio.sleep(rng.uniform(0.2, 1.2))

    async def _order(self, stream: Stream) -> None:
        """Publish the next message of a stream: from another process, or straight to Redis in either form."""
        number = stream.ordered
        stream.ordered += 1
        body = stream.body(number)
        if stream.name != "redis":
            assert self._publisher.stdin is not None
            sent = body.decode("latin-1") if isinstance(body, bytes) else body
            self._publisher.stdin.write(to_json([stream.kind(number), stream.routing, stream.groups, sent]) + b"\n")
            await self._publisher.stdin.drain()
        elif number % 2:
            self.server.publish(stream.routing, body.encode())
        else:
            self.server.redis.publish(f"mease:{stream.routing}", body)

    async def _catch_up(self, stream: Stream, most: int) -> None:
        """Wait until no steady client is far behind, so that a slow machine is not taken for a lost message."""
        await self.log.wait_for(
            lambda: all(client.missing().get(stream.name, 0) <= most for client in self._steady),
            f"all steady clients to get at least the message {stream.ordered - most} of {stream.name}",
        )

    # The end

    async def _stop(self) -> None:
        """Stop the server under clients that are there: they are told, and it ends well."""
        async with self.visit("last") as first, self.visit("last") as second:
            await first.settle()
            self.server.process.terminate()
            await first.expect_end(1012)
            await second.expect_end(1012)
        code = await asyncio.to_thread(self.server.process.wait, PATIENCE)
        self.log.read()
        if code:
            raise Fault(f"the server has ended with {code}")

    def _visits(self) -> list[str]:
        return (self.server.home / "visits").read_text().split()

    def check(self) -> None:
        """See that each connection had its opener and its closer, once, in that order."""
        opened: set[str] = set()
        there: set[str] = set()
        for line in self._visits():
            sign, client_id = line[0], line[1:]
            if (client_id in opened) if sign == "+" else (client_id not in there):
                raise Fault(f"the client {client_id} had an opener twice, or a closer without one")
            (opened.add if sign == "+" else there.discard)(client_id)
            if sign == "+":
                there.add(client_id)
        if there:
            raise Fault(f"{len(there)} of {len(opened)} connections had no closer: {sorted(there)[:10]}")
        if unknown := set(self._welcomed) - opened:
            raise Fault(f"{len(unknown)} clients were welcomed and had no opener")
        if len(opened) > len(self._welcomed) + self.perhaps:
            raise Fault(f"{len(opened)} openers ran for {len(self._welcomed)} clients")
        self.counts["openers and closers"] = len(opened)
        self.health.check_threads()

    def summary(self) -> str:
        published = ", ".join(f"{stream.name} {stream.ordered}" for stream in self.streams.values())
        counts = ", ".join(f"{name} {count}" for name, count in sorted(self.counts.items()))
        health = self.health
        files = f"{len(health.files)} files open before and behind, {health.most_files} at most"
        return f"published: {published}\n{counts}\n{files}; {health.most_threads} threads at most\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    options = parser.parse_args()
    sys.stdout.write(f"{options.seconds:.0f} s with --seed {options.seed}\n")
    sys.stdout.flush()
    faults = soaked(seconds=options.seconds, seed=options.seed)
    for fault in faults:
        sys.stdout.write(f"WRONG: {fault}\n")
    return 1 if faults else 0


def soaked(*, seconds: float, seed: int) -> list[str]:
    """Run it, print what was done, and return what is wrong."""
    faults: list[str] = []
    # Who writes it and who reads it must not share a place in it.
    with (
        tempfile.NamedTemporaryFile("a") as written,
        open(written.name) as log,
        serving(REGISTRY, settings=SETTINGS, stderr=written) as server,
    ):
        soak = Soak(server, Log(written, log), seconds=seconds, seed=seed)
        try:
            asyncio.run(soak.run())
            soak.check()
            sys.stdout.write(soak.health.check_memory() + "\n")
        except* Fault as group:
            faults.extend(str(fault) for fault in leaves(group))
        sys.stdout.write(soak.summary())
    return faults


def leaves(error: BaseException) -> list[BaseException]:
    """Return what a group holds, whatever is in groups of its own."""
    if not isinstance(error, BaseExceptionGroup):
        return [error]
    return [leaf for each in error.exceptions for leaf in leaves(each)]


if __name__ == "__main__":
    sys.exit(main())
