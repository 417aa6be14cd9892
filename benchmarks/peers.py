"""The servers that are compared, each with a publisher in a process of its own."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from site_of_benchmarks import DEADLINE, ROOT, Connections, environment_of, serving

from djmease.embedded import EmbeddedValkey

ECHO_PATHS = {"async": "async", "def": "def"}

REGISTRY = """
import djmease

@djmease.sender(routing="all")
def show(message, clients_list):
    for client in clients_list:
        client.write_message(message)

@djmease.receiver
async def echo(client, message):
    if client.request.path == "/async":
        await client.write_message(message)
"""
REGISTRY_DEF = """
import djmease

@djmease.receiver
def echo(client, message):
    client.write_message(message)
"""

# A publisher reads how many messages to publish, does it, and says how long it took.
PUBLISHER = """
import sys, time, django
django.setup()
{imports}
text = "x" * 100
for line in sys.stdin:
    started = time.perf_counter()
    for _ in range(int(line)):
        {statement}
    print(time.perf_counter() - started, flush=True)
"""
PUBLISH_DJMEASE = PUBLISHER.format(imports="import djmease", statement='djmease.publish("all", text)')
PUBLISH_CHANNELS = PUBLISHER.format(
    imports="from asgiref.sync import async_to_sync\nfrom channels.layers import get_channel_layer\n"
    "send = async_to_sync(get_channel_layer().group_send)",
    statement='send("all", {"type": "show", "text": text})',
)

CHANNELS_SETTINGS = """
SECRET_KEY = "benchmark"
ALLOWED_HOSTS = ["*"]
INSTALLED_APPS = ["channels"]
CHANNEL_LAYERS = {{"default": {{
    "BACKEND": "channels_redis.pubsub.RedisPubSubChannelLayer", "CONFIG": {{"hosts": [{url!r}]}}
}}}}
"""
CHANNELS_APP = """
import os
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "benchmark_settings")
import django
django.setup()
from channels.generic.websocket import AsyncWebsocketConsumer, WebsocketConsumer
from channels.routing import ProtocolTypeRouter, URLRouter
from django.urls import path

class Show(AsyncWebsocketConsumer):
    groups = ["all"]
    async def show(self, event):
        await self.send(text_data=event["text"])

class Echo(AsyncWebsocketConsumer):
    async def receive(self, text_data=None, bytes_data=None):
        await self.send(text_data=text_data)

class SyncEcho(WebsocketConsumer):
    def receive(self, text_data=None, bytes_data=None):
        self.send(text_data=text_data)

application = ProtocolTypeRouter({"websocket": URLRouter([
    path("", Show.as_asgi()), path("async", Echo.as_asgi()), path("def", SyncEcho.as_asgi()),
])})
"""

# The floor: one call of send for each client and message, in Python, and nothing else.
BARE_LOOP = """
import base64, hashlib, socket, sys
listening = socket.create_server(("127.0.0.1", 0), backlog=4096)
print("port", listening.getsockname()[1], flush=True)
frame = b"\\x81\\x64" + b"x" * 100
sockets = []
for line in sys.stdin:
    command, count = line.split()
    if command == "accept":
        for _ in range(int(count)):
            connection, _ = listening.accept()
            connection.recv(4096)
            connection.sendall(b"HTTP/1.1 101 Switching Protocols\\r\\n\\r\\n")
            sockets.append(connection)
    else:
        for _ in range(int(count)):
            for connection in sockets:
                connection.send(frame)
    print("done", flush=True)
"""


@dataclass(slots=True, kw_only=True)
class Peer:
    """A server that runs, and how it is made to send a message to all of its clients."""

    pid: int
    port: int
    publisher: subprocess.Popen[str]
    prefix: str = ""
    is_fast: bool = True
    can_echo: bool = True
    publish_cost: Callable[[int], float] | None = None

    def cpu(self) -> float:
        """Return the seconds of CPU, user and system, of the server so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory(self) -> int:
        """Return the server's resident bytes."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def publish(self, count: int, *, wait: bool = True) -> None:
        assert self.publisher.stdin is not None
        self.publisher.stdin.write(f"{self.prefix}{count}\n")
        self.publisher.stdin.flush()
        if wait:
            self.published()

    def published(self) -> str:
        """Wait until the publisher has done what it was asked, and return what it said."""
        assert self.publisher.stdout is not None
        return self.publisher.stdout.readline()

    def publish_wall(self, count: int) -> float:
        """Return the microseconds of one publish."""
        self.publish(count, wait=False)
        return float(self.published()) / count * 1e6

    def wait_until_ready(self, connections: Connections, count: int) -> None:
        """Wait until a message reaches every client: some servers subscribe them behind their handshake."""
        time.sleep(0.5 + count / 2000)


def publisher_process(code: str, home: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=home,
        env=environment_of(home),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@contextmanager
def djmease() -> Iterator[Peer]:
    with serving(REGISTRY) as server:
        publisher = publisher_process(PUBLISH_DJMEASE, server.home)
        peer = Peer(pid=server.process.pid, port=server.port, publisher=publisher)
        peer.publish_cost = peer.publish_wall
        with ending(publisher):
            yield peer


@contextmanager
def channels() -> Iterator[Peer]:
    home = Path(tempfile.mkdtemp(prefix="mease-"))
    valkey = EmbeddedValkey(home / "valkey")
    valkey.acquire()
    (home / "benchmark_settings.py").write_text(CHANNELS_SETTINGS.format(url=f"unix://{valkey.socket}"))
    (home / "application.py").write_text(CHANNELS_APP)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", "application:application", "--port", str(port), "--log-level", "error"]
    server = subprocess.Popen([*command, "--backlog", "4096"], cwd=home, env=environment_of(home))
    publisher = publisher_process(PUBLISH_CHANNELS, home)
    try:
        wait_for_port(port)
        peer = Peer(pid=server.pid, port=port, publisher=publisher, is_fast=False)
        peer.publish_cost = peer.publish_wall
        with ending(publisher):
            yield peer
    finally:
        server.kill()
        server.wait()
        valkey.release()
        shutil.rmtree(home)


@contextmanager
def bare_loop() -> Iterator[Peer]:
    server = subprocess.Popen(
        [sys.executable, "-c", BARE_LOOP], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert server.stdout is not None
    port = int(server.stdout.readline().split()[1])
    with ending(server):
        yield BareLoop(pid=server.pid, port=port, publisher=server, prefix="send ", can_echo=False)


class BareLoop(Peer):
    """The loop accepts only when it is told to."""


@contextmanager
def ending(process: subprocess.Popen[str]) -> Iterator[None]:
    try:
        yield
    finally:
        process.kill()
        process.communicate()


def wait_for_port(port: int) -> None:
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise TimeoutError(f"nothing listens on port {port}")
