"""The servers that are compared, each with a publisher in a process of its own."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from site_of_benchmarks import DEADLINE, environment_of, serving

from djmease.embedded import EmbeddedValkey

REGISTRY = """
import djmease

@djmease.sender(routing="all")
def show(message, clients_list):
    for client in clients_list:
        client.write_message(message)
"""
ECHO_DEF = """
import djmease

@djmease.receiver
def echo(client, message):
    client.write_message(message)
"""
ECHO_ASYNC = ECHO_DEF.replace("def echo", "async def echo")

# A publisher reads how many messages to publish, does it, and says how many seconds it took.
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
import socket, sys, threading
listening = socket.create_server(("127.0.0.1", 0), backlog=4096)
print(listening.getsockname()[1], flush=True)
frame = b"\\x81\\x64" + b"x" * 100
sockets = []
def accept():
    while True:
        connection, _ = listening.accept()
        connection.recv(4096)
        sockets.append(connection)
        connection.sendall(b"HTTP/1.1 101 Switching Protocols\\r\\n\\r\\n")
threading.Thread(target=accept, daemon=True).start()
for line in sys.stdin:
    for _ in range(int(line)):
        for connection in sockets:
            connection.send(frame)
    print("0", flush=True)
"""


@dataclass(slots=True, kw_only=True)
class Peer:
    """A server that runs, and the process that makes it send a message to all of its clients."""

    pid: int
    port: int
    publisher: subprocess.Popen[str]

    def cpu(self) -> float:
        """Return the seconds of CPU, user and system, of the server so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory(self) -> int:
        """Return the server's resident bytes."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def publish(self, count: int) -> None:
        """Ask for so many messages, as fast as they can be published."""
        assert self.publisher.stdin is not None
        self.publisher.stdin.write(f"{count}\n")
        self.publisher.stdin.flush()

    def published(self) -> float:
        """Wait until they are published, and return how many seconds that took."""
        assert self.publisher.stdout is not None
        return float(self.publisher.stdout.readline())


@contextmanager
def djmease(echo: str = "") -> Iterator[Peer]:
    registry = {"async": ECHO_ASYNC, "def": ECHO_DEF}.get(echo, REGISTRY)
    with serving(registry) as server, publishing(PUBLISH_DJMEASE, server.home) as publisher:
        yield Peer(pid=server.process.pid, port=server.port, publisher=publisher)


@contextmanager
def channels(echo: str = "") -> Iterator[Peer]:
    home = Path(tempfile.mkdtemp(prefix="mease-"))
    valkey = EmbeddedValkey(home / "valkey")
    valkey.acquire()
    (home / "benchmark_settings.py").write_text(CHANNELS_SETTINGS.format(url=f"unix://{valkey.socket}"))
    (home / "application.py").write_text(CHANNELS_APP)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", "application:application", "--port", str(port), "--log-level", "error"]
    # Pings would be counted among the messages.
    command += ["--backlog", "4096", "--ws-ping-interval", "3600"]
    server = subprocess.Popen(command, cwd=home, env=environment_of(home))
    try:
        wait_for_port(port)
        with publishing(PUBLISH_CHANNELS, home) as publisher:
            yield Peer(pid=server.pid, port=port, publisher=publisher)
    finally:
        server.kill()
        server.wait()
        valkey.release()
        shutil.rmtree(home)


@contextmanager
def bare_loop(echo: str = "") -> Iterator[Peer]:
    with publishing(BARE_LOOP, Path.cwd()) as server:
        assert server.stdout is not None
        yield Peer(pid=server.pid, port=int(server.stdout.readline()), publisher=server)


@contextmanager
def publishing(code: str, home: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=home,
        env=environment_of(home),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
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
