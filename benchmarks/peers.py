"""The servers that are compared. Each is told by a line of JSON to send messages to all of its clients."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from site_of_benchmarks import DEADLINE, cpu_of, environment_of, memory_of, server_of, site, text_frame

from djmease.embedded import EmbeddedValkey


def frame_of_text(number: int) -> bytes:
    """Return the frame of a message: it has 100 bytes, and says which one it is."""
    return text_frame(f"{number:<100}")


def frame_of_dict(number: int) -> bytes:
    return text_frame(json.dumps({"text": f"{number:<89}"}, separators=(",", ":")))


FRAMES = {"text": frame_of_text, "dict": frame_of_dict, "send": frame_of_dict}
# Reads what to publish: the kind, the first number, how many, the seconds from one to the next, and for each the groups
# that it is for, if it is for any. It answers with when each was published, and when all were.
PUBLISH_LOOP = """
import json, sys, time
for line in sys.stdin:
    kind, first, count, interval, groups = json.loads(line)
    started = time.monotonic()
    times = []
    for number, names in zip(range(first, first + count), groups or [()] * count):
        if interval:
            time.sleep(max(0.0, started + (number - first) * interval - time.monotonic()))
        times.append(time.monotonic())
        publish[kind](number, *names)
    print(json.dumps([*times, time.monotonic()]), flush=True)
"""

REGISTRY = """
import djmease

@djmease.sender(routing="all")
def show(message, clients_list):
    for client in clients_list:
        client.write_message(message)

@djmease.sender(routing="send")
def show_at_once(message, clients_list):
    clients_list.send(message)
"""
ECHO_DEF = """
import djmease

@djmease.receiver
def echo(client, message):
    client.write_message(message)
"""
JOIN = """
@djmease.opener
def enter(client):
    for group in client.request.path.strip("/").split("+"):
        client.join(group)
    client.write_message("open")
"""
ECHO_ASYNC = ECHO_DEF.replace("def echo", "async def echo")
PUBLISH_TO_DJMEASE = """
import django
django.setup()
import djmease
publish = {
    "text": lambda number: djmease.publish("all", f"{number:<100}"),
    "dict": lambda number: djmease.publish("all", {"text": f"{number:<89}"}),
    "send": lambda number: djmease.publish("send", {"text": f"{number:<89}"}),
    "group": lambda number, *groups: djmease.publish("all", f"{number:<100}", group=groups),
}
"""

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

class Member(Show):
    async def websocket_connect(self, message):
        self.groups = self.scope["url_route"]["kwargs"]["groups"].split("+")
        await super().websocket_connect(message)
    async def connect(self):
        await self.accept()
        await self.send(text_data="open")

class Echo(AsyncWebsocketConsumer):
    async def receive(self, text_data=None, bytes_data=None):
        await self.send(text_data=text_data)

class SyncEcho(WebsocketConsumer):
    def receive(self, text_data=None, bytes_data=None):
        self.send(text_data=text_data)

application = ProtocolTypeRouter({"websocket": URLRouter([
    path("", Show.as_asgi()), path("async", Echo.as_asgi()), path("def", SyncEcho.as_asgi()),
    path("<str:groups>", Member.as_asgi()),
])})
"""
PUBLISH_TO_CHANNELS = """
import django
django.setup()
from asgiref.sync import async_to_sync
from channels.layers import get_channel_layer
send = async_to_sync(get_channel_layer().group_send)
publish = {
    "text": lambda number: send("all", {"type": "show", "text": f"{number:<100}"}),
    "group": lambda number, group: send(group, {"type": "show", "text": f"{number:<100}"}),
}
"""
# Pings would be counted among the messages, and a short queue of connections would be waited for.
UVICORN = ["uvicorn", "application:application", "--port", "{port}", "--log-level", "error"]
UVICORN += ["--backlog", "4096", "--ws-ping-interval", "3600"]
DAPHNE = ["daphne", "application:application", "-v", "0", "--ping-interval", "3600"]
DAPHNE += ["-e", "tcp:port={port}:interface=127.0.0.1:backlog=4096"]

# The library alone, without Django and without Redis.
WEBSOCKETS = """
import asyncio, logging, threading
from websockets.asyncio.server import broadcast, serve
logging.getLogger("websockets").disabled = True
logging.getLogger("websockets.server").disabled = True
clients = set()
async def handle(connection):
    if connection.request.path == "/async":
        async for message in connection:
            await connection.send(message)
    else:
        clients.add(connection)
        try:
            await connection.wait_closed()
        finally:
            clients.discard(connection)
async def main():
    async with serve(handle, "127.0.0.1", 0, ping_interval=None, backlog=4096) as server:
        print(server.sockets[0].getsockname()[1], flush=True)
        await server.serve_forever()
loop = asyncio.new_event_loop()
threading.Thread(target=loop.run_until_complete, args=[main()], daemon=True).start()
publish = {"text": lambda number: loop.call_soon_threadsafe(broadcast, clients, f"{number:<100}")}
"""
# The floor: one call of send for each client and message, in Python, and nothing else.
BARE_LOOP = """
import socket, threading
listening = socket.create_server(("127.0.0.1", 0), backlog=4096)
print(listening.getsockname()[1], flush=True)
sockets = []
def accept():
    while True:
        connection, _ = listening.accept()
        connection.recv(4096)
        sockets.append(connection)
        connection.sendall(b"HTTP/1.1 101 Switching Protocols\\r\\n\\r\\n")
threading.Thread(target=accept, daemon=True).start()
def send(number):
    frame = b"\\x81\\x64" + f"{number:<100}".encode()
    for connection in sockets:
        connection.send(frame)
publish = {"text": send}
"""


@dataclass(slots=True, kw_only=True)
class Peer:
    """A server that runs, in one process or more, and the process that makes it send messages to its clients."""

    pids: list[int]
    ports: list[int]
    publisher: subprocess.Popen[str]
    home: Path
    next_number: int = 0

    def cpu(self) -> float:
        """Return the seconds of CPU, user and system, of the server so far."""
        return sum(map(cpu_of, self.pids))

    def memory(self) -> int:
        """Return the server's resident bytes."""
        return sum(map(memory_of, self.pids))

    def publish(self, count: int, *, kind: str = "text", interval: float = 0.0) -> bytes:
        """Ask for so many messages, and return what each client has to get; call ``published`` behind it.

        ``interval`` is the seconds from one to the next: 0 publishes as fast as it goes.
        """
        return b"".join(map(FRAMES[kind], self._order(kind, count, interval, [])))

    def publish_to(self, groups: Sequence[Sequence[str]], *, interval: float = 0.0) -> list[bytes]:
        """Ask for a message to each of these lists of groups, and return their frames; ``published`` comes behind."""
        return list(map(frame_of_text, self._order("group", len(groups), interval, groups)))

    def _order(self, kind: str, count: int, interval: float, groups: Sequence[Sequence[str]]) -> range:
        assert self.publisher.stdin is not None
        first, self.next_number = self.next_number, self.next_number + count
        self.publisher.stdin.write(json.dumps([kind, first, count, interval, groups]) + "\n")
        self.publisher.stdin.flush()
        return range(first, first + count)

    def published(self) -> list[float]:
        """Wait until all are published; return when each was begun, and when the last was done."""
        assert self.publisher.stdout is not None
        return json.loads(self.publisher.stdout.readline())

    def wait_until_idle(self) -> None:
        """Wait until the server does nothing: some subscribe a client behind its handshake, and do not say when."""
        deadline = time.monotonic() + DEADLINE
        before = self.cpu()
        while time.monotonic() < deadline:
            time.sleep(0.2)
            after = self.cpu()
            if after - before < 0.002:
                return
            before = after
        raise TimeoutError(f"the server with the process ids {self.pids} is busy with nothing")


@contextmanager
def djmease(echo: str = "", settings: str = "") -> Iterator[Peer]:
    registry = {"async": ECHO_ASYNC, "def": ECHO_DEF}.get(echo, REGISTRY)
    with site(registry, settings=settings) as home, processes_of_djmease(home, 1) as peer:
        yield peer


def djmease_without_reports(echo: str = "") -> AbstractContextManager[Peer]:
    return djmease(echo, "MEASE_REPORT_INTERVAL = None\n")


@contextmanager
def djmease_groups(processes: int) -> Iterator[Peer]:
    """Run django-mease with clients that join the groups which their path names, and that are told when they have."""
    with site(REGISTRY + JOIN) as home, processes_of_djmease(home, processes) as peer:
        yield peer


@contextmanager
def processes_of_djmease(home: Path, count: int) -> Iterator[Peer]:
    with ExitStack() as stack:
        servers = [stack.enter_context(server_of(home)) for _ in range(count)]
        publisher = stack.enter_context(running(PUBLISH_TO_DJMEASE + PUBLISH_LOOP, home))
        yield Peer(
            pids=[server.process.pid for server in servers],
            ports=[server.port for server in servers],
            publisher=publisher,
            home=home,
        )


@contextmanager
def channels(command: list[str], processes: int = 1) -> Iterator[Peer]:
    """Run Channels by this command of a server, in which ``{port}`` stands for a free port."""
    home = Path(tempfile.mkdtemp(prefix="mease-"))
    valkey = EmbeddedValkey(home / "valkey")
    valkey.acquire()
    (home / "benchmark_settings.py").write_text(CHANNELS_SETTINGS.format(url=f"unix://{valkey.socket}"))
    (home / "application.py").write_text(CHANNELS_APP)
    try:
        with ExitStack() as stack:
            servers = [stack.enter_context(process_of_channels(command, home)) for _ in range(processes)]
            publisher = stack.enter_context(running(PUBLISH_TO_CHANNELS + PUBLISH_LOOP, home))
            yield Peer(
                pids=[pid for pid, _ in servers], ports=[port for _, port in servers], publisher=publisher, home=home
            )
    finally:
        valkey.release()
        shutil.rmtree(home)


@contextmanager
def process_of_channels(command: list[str], home: Path) -> Iterator[tuple[int, int]]:
    """Run a process, and yield its id and its port."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    arguments = [argument.format(port=port) for argument in command]
    server = subprocess.Popen([sys.executable, "-m", *arguments], cwd=home, env=environment_of(home))
    try:
        wait_for_port(port)
        yield server.pid, port
    finally:
        server.kill()
        server.wait()


def channels_on_uvicorn(echo: str = "") -> AbstractContextManager[Peer]:
    return channels(UVICORN)


def channels_groups(processes: int) -> AbstractContextManager[Peer]:
    """Run Channels on uvicorn with the same clients as ``djmease_groups``."""
    return channels(UVICORN, processes)


def channels_on_daphne(echo: str = "") -> AbstractContextManager[Peer]:
    return channels(DAPHNE)


@contextmanager
def script(code: str) -> Iterator[Peer]:
    """Run a server that prints its port, and that publishes by itself."""
    with running(code + PUBLISH_LOOP, Path.cwd()) as server:
        assert server.stdout is not None
        yield Peer(pids=[server.pid], ports=[int(server.stdout.readline())], publisher=server, home=Path.cwd())


def websockets(echo: str = "") -> AbstractContextManager[Peer]:
    return script(WEBSOCKETS)


def bare_loop(echo: str = "") -> AbstractContextManager[Peer]:
    return script(BARE_LOOP)


OURS, UVICORN_NAME, DAPHNE_NAME = "django-mease", "Channels, uvicorn", "Channels, daphne"
WEBSOCKETS_NAME, BARE_LOOP_NAME = "websockets", "bare loop"
WITHOUT_REPORTS_NAME = "without reports"
MAKERS: dict[str, Callable[..., AbstractContextManager[Peer]]] = {
    OURS: djmease,
    WITHOUT_REPORTS_NAME: djmease_without_reports,
    UVICORN_NAME: channels_on_uvicorn,
    DAPHNE_NAME: channels_on_daphne,
    WEBSOCKETS_NAME: websockets,
    BARE_LOOP_NAME: bare_loop,
}
MAKERS_OF_GROUPS: dict[str, Callable[[int], AbstractContextManager[Peer]]] = {
    OURS: djmease_groups,
    UVICORN_NAME: channels_groups,
}


@contextmanager
def running(code: str, home: Path) -> Iterator[subprocess.Popen[str]]:
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
