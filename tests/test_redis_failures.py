"""Redis fails in every way while messages are published throughout: the listener heals, and says what it was."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import ssl
import subprocess
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    InvalidResponse,
    NoPermissionError,
    RedisError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.retry import Retry

import djmease
from djmease import connections
from djmease.embedded import EmbeddedValkey
from djmease.server import link as link_module
from djmease.server import listener as listener_module
from djmease.server import pulse as pulse_module
from djmease.server import server as server_module
from djmease.server.listener import Listener
from tests.support import DEADLINE, Project, eventually
from tests.test_listener import make_listener, running, within

Log = Callable[[], list[str]]
INTERVAL = 0.2
NEW = 30
"""Messages that must arrive after the healing."""


@pytest.fixture(autouse=True)
def short_timeouts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener_module, "CONNECT_TIMEOUT", 0.3)
    monkeypatch.setattr(pulse_module, "ANSWER_TIMEOUT", 0.3)
    monkeypatch.setattr(link_module, "MAX_BACKOFF", 0.1)


class Traffic(threading.Thread):
    """Publishes numbered messages all the time."""

    def __init__(self, path: Path, channel: str) -> None:
        super().__init__(daemon=True)
        self._client = Redis(unix_socket_path=str(path), retry=Retry(NoBackoff(), 0), socket_timeout=0.3)
        self._channel = channel
        self._ends = threading.Event()
        self.number = 0
        self.failed: set[int] = set()

    def run(self) -> None:
        while not self._ends.wait(0.002):
            self.number += 1
            try:
                self._client.publish(self._channel, str(self.number))
            except (RedisError, OSError):
                self.failed.add(self.number)
        self._client.close()

    def end(self) -> None:
        self._ends.set()
        self.join()


class Scene:
    """A listener under traffic, and what it has heard."""

    def __init__(self, listener: Listener, traffic: Traffic, heard: list[int], admin: Redis) -> None:
        self.listener = listener
        self.traffic = traffic
        self.heard = heard
        self.admin = admin

    async def hears(self) -> None:
        """Wait until new messages have come, and look that they came all, in order, and none twice."""
        await within(lambda: self.listener.is_hearing)
        mark = self.traffic.number
        await within(lambda: self.heard and self.heard[-1] >= mark + NEW)
        new = [number for number in self.heard if number > mark]
        sent = [number for number in range(mark + 1, new[-1] + 1) if number not in self.traffic.failed]
        assert new == sent
        assert len(set(self.heard)) == len(self.heard)

    async def has_come_back(self, log_of: Log) -> None:
        await within(lambda: self.listener.reconnects and self.listener.is_hearing)
        await self.hears()
        lines = log_of()
        assert any("messages published meanwhile are lost" in line for line in lines)
        assert any(line.startswith("Redis is back after") and "lost" in line for line in lines)
        assert self.listener.away > 0


@asynccontextmanager
async def scene(redis: str, valkey: EmbeddedValkey, **options: Any) -> AsyncIterator[Scene]:
    heard: list[int] = []
    listener = make_listener(
        on_message=lambda message: heard.append(int(message.body)),
        **{"heartbeat_interval": INTERVAL, **options},
    )
    traffic = Traffic(valkey.socket, f"{redis}numbers")
    with Redis(unix_socket_path=str(valkey.socket)) as admin:
        async with running(listener):
            traffic.start()
            try:
                play = Scene(listener, traffic, heard, admin)
                await play.hears()
                yield play
            finally:
                await asyncio.to_thread(traffic.end)


def pid_of(valkey: EmbeddedValkey) -> int:
    return int((valkey.home / "valkey.pid").read_text())


def test_a_redis_that_is_killed_and_restarted_empty_is_heard_again(
    redis: str, own_valkey: EmbeddedValkey, log_of: Log
) -> None:
    async def run() -> None:
        async with scene(redis, own_valkey) as play:
            os.kill(pid_of(own_valkey), signal.SIGKILL)
            await within(lambda: play.listener.trouble)
            await within(lambda: any("it does not answer" in line for line in log_of()))
            assert "it does not answer" in str(play.listener.trouble)
            await asyncio.to_thread(own_valkey.ensure_running)
            await play.has_come_back(log_of)

    asyncio.run(run())
    assert len([line for line in log_of() if line.startswith("Redis is gone")]) == 1


def test_a_redis_that_hangs_is_found_out_by_the_heartbeat_and_heard_again(
    redis: str, own_valkey: EmbeddedValkey, log_of: Log
) -> None:
    async def run() -> None:
        async with scene(redis, own_valkey) as play:
            os.kill(pid_of(own_valkey), signal.SIGSTOP)
            try:
                await within(lambda: "heartbeat has not come back" in str(play.listener.trouble))
                await within(lambda: any("own heartbeat has not come for" in line for line in log_of()))
            finally:
                os.kill(pid_of(own_valkey), signal.SIGCONT)
            await play.has_come_back(log_of)
            assert play.listener.away >= 2 * INTERVAL

    asyncio.run(run())


def test_a_subscription_that_is_killed_is_made_anew(redis: str, own_valkey: EmbeddedValkey, log_of: Log) -> None:
    async def run() -> None:
        async with scene(redis, own_valkey) as play:
            for times in (1, 2):
                play.admin.client_kill_filter(_type="pubsub")
                await within(lambda times=times: play.listener.reconnects == times)
                await play.has_come_back(log_of)

    asyncio.run(run())


def test_a_heartbeats_connection_that_is_killed_is_made_anew_and_nothing_is_lost(
    redis: str, own_valkey: EmbeddedValkey, log_of: Log
) -> None:
    async def run() -> None:
        async with scene(redis, own_valkey) as play:
            before = play.listener._pulse._link._connection
            play.admin.client_kill_filter(_type="normal", skipme=True)
            await within(lambda: play.listener._pulse._link._connection not in (before, None))
            await play.hears()
            assert play.listener.reconnects == 0

    asyncio.run(run())
    assert not log_of()


def test_a_password_that_was_changed_is_no_absence(
    redis: str, own_valkey: EmbeddedValkey, settings: Any, log_of: Log
) -> None:
    async def run() -> None:
        async with scene(redis, own_valkey) as play:
            play.admin.config_set("requirepass", "secret")
            try:
                play.admin.client_kill_filter(_type="normal", skipme=True)
                await within(lambda: "refuses the user or password" in str(play.listener.trouble))
                assert play.listener.reconnects == 0, "what still hears is left alone"
                play.admin.client_kill_filter(_type="pubsub")
                await within(lambda: any("cannot be heard: it refuses the user" in line for line in log_of()))
                assert "refuses the user or password" in str(play.listener.trouble)
            finally:
                play.admin.config_set("requirepass", "")
            await play.has_come_back(log_of)

    asyncio.run(run())
    assert not any("secret" in line for line in log_of())


def test_a_user_who_loses_the_channels_is_told_which_rights_it_needs(
    redis: str, own_valkey: EmbeddedValkey, settings: Any, log_of: Log
) -> None:
    with Redis(unix_socket_path=str(own_valkey.socket)) as admin:
        admin.execute_command("ACL", "SETUSER", "site", "on", ">secret", "+@all", "allchannels")
    settings.MEASE_REDIS_URL = f"unix://site:secret@{own_valkey.socket}"
    prefix = settings.MEASE_KEY_PREFIX

    async def run() -> None:
        async with scene(redis, own_valkey) as play:
            play.admin.execute_command("ACL", "SETUSER", "site", "resetchannels")
            await within(lambda: "cannot be heard: it does not permit" in str(play.listener.trouble))
            assert f"&{prefix}:* and &{prefix}.*" in str(play.listener.trouble)
            assert "+publish +subscribe +psubscribe" in str(play.listener.trouble)
            play.admin.execute_command("ACL", "SETUSER", "site", f"&{prefix}:*", f"&{prefix}.*")
            await play.has_come_back(log_of)

    asyncio.run(run())
    assert not any("secret" in line for line in log_of())


def test_a_heartbeat_that_may_not_be_published_is_trouble_and_no_reason_to_stop_hearing(
    redis: str, own_valkey: EmbeddedValkey, settings: Any, log_of: Log
) -> None:
    with Redis(unix_socket_path=str(own_valkey.socket)) as admin:
        admin.execute_command("ACL", "SETUSER", "site", "on", "nopass", "+@all", "allchannels")
    settings.MEASE_REDIS_URL = f"unix://site:x@{own_valkey.socket}"

    async def run() -> None:
        async with scene(redis, own_valkey, deaf_after=6 * INTERVAL) as play:
            play.admin.execute_command("ACL", "SETUSER", "site", "-publish")
            await within(lambda: "does not permit" in str(play.listener.trouble))
            await within(lambda: len([line for line in log_of() if "has heard no heartbeat" in line]) == 2)
            assert play.listener.reconnects == 0
            play.admin.execute_command("ACL", "SETUSER", "site", "+publish")
            await play.hears()

    asyncio.run(run())
    assert len([line for line in log_of() if "does not take this server's heartbeat" in line]) >= 1


def test_a_server_that_stays_deaf_says_so_again_and_again(redis: str, own_valkey: EmbeddedValkey, log_of: Log) -> None:
    async def run() -> None:
        async with scene(redis, own_valkey, deaf_after=3 * INTERVAL) as play:
            os.kill(pid_of(own_valkey), signal.SIGKILL)
            await within(lambda: len([line for line in log_of() if "has heard no heartbeat" in line]) == 3)
            await asyncio.to_thread(own_valkey.ensure_running)
            await play.has_come_back(log_of)

    asyncio.run(run())


def test_a_server_is_ready_again_when_it_hears_again(
    start_server: Callable[[], Any], own_valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "HEARTBEAT_INTERVAL", INTERVAL)

    @djmease.sender(routing="news")
    def show(message: str, clients_list: Any) -> None:
        for client in clients_list:
            client.write_message(message)

    live = start_server()
    client = live.connect()
    assert live.server.trouble is None
    os.kill(pid_of(own_valkey), signal.SIGSTOP)
    try:
        eventually(lambda: live.server.trouble, "the trouble")
    finally:
        os.kill(pid_of(own_valkey), signal.SIGCONT)
    eventually(lambda: live.server.trouble is None, "the healing")
    djmease.publish("news", "again")
    assert client.recv(DEADLINE) == "again"


# At the start, and the reasons


async def start_and_end(redis: str) -> None:
    async with running(make_listener()):
        pass


def reason_at_the_start(redis: str) -> str:
    with pytest.raises((RedisError, OSError)) as caught:
        asyncio.run(start_and_end(redis))
    return connections.reason(caught.value)


@pytest.mark.parametrize("rights", ["-psubscribe", "-subscribe", "-publish", "resetchannels"])
def test_a_right_that_is_missing_is_told_at_the_start(
    redis: str, own_valkey: EmbeddedValkey, settings: Any, rights: str
) -> None:
    with Redis(unix_socket_path=str(own_valkey.socket)) as admin:
        admin.execute_command("ACL", "SETUSER", "site", "on", ">secret", "+@all", "allchannels", rights)
    settings.MEASE_REDIS_URL = f"unix://site:secret@{own_valkey.socket}"
    assert "does not permit" in reason_at_the_start(redis)


@pytest.mark.parametrize("login", ["", ":wrong@", "nobody:wrong@"])
def test_a_wrong_password_is_told_at_the_start(
    redis: str, own_valkey: EmbeddedValkey, settings: Any, login: str
) -> None:
    settings.MEASE_REDIS_URL = f"unix://{login}{own_valkey.socket}"
    with Redis(unix_socket_path=str(own_valkey.socket)) as admin:
        admin.config_set("requirepass", "secret")
        try:
            told = reason_at_the_start(redis)
        finally:
            admin.config_set("requirepass", "")
    assert "refuses the user or password" in told and "wrong" not in told


def test_the_command_says_what_is_wrong_and_not_that_redis_is_away(
    own_valkey: EmbeddedValkey, project: Project
) -> None:
    project.settings(f"MEASE_REDIS_URL = 'unix://:wrong@{own_valkey.socket}'")
    with Redis(unix_socket_path=str(own_valkey.socket)) as admin:
        admin.config_set("requirepass", "secret")
        try:
            ended = project.run("run_websocket_server")
        finally:
            admin.config_set("requirepass", "")
    assert ended.code == 1
    assert "it refuses the user or password" in ended.err and "does not answer" not in ended.err


def test_absence_is_told_apart_from_silence(redis: str, settings: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        settings.MEASE_REDIS_URL = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
        assert "does not answer in time" in reason_at_the_start(redis)
    assert "it does not answer (" in reason_at_the_start(redis)
    settings.MEASE_REDIS_URL = "redis://nowhere.invalid/0"
    assert "it does not answer" in reason_at_the_start(redis)


@pytest.fixture
def tls_port(short_directory: Path) -> Iterator[tuple[int, Path]]:
    """The port of a TLS listener whose certificate nobody knows, and its certificate."""
    certificate, key = short_directory / "cert.pem", short_directory / "key.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*command.split(), *names], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with serving(context) as port:
        yield port, certificate


@contextmanager
def serving(context: ssl.SSLContext) -> Iterator[int]:
    """Take connections and speak TLS to each, until it fails or ends."""

    def serve() -> None:
        while True:
            try:
                plain, _ = listening.accept()
            except OSError:
                return
            with plain:
                plain.settimeout(DEADLINE)
                try:
                    with context.wrap_socket(plain, server_side=True) as peer:
                        peer.recv(1)
                except OSError:
                    continue

    listening = socket.create_server(("localhost", 0))
    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield listening.getsockname()[1]
    listening.shutdown(socket.SHUT_RDWR)
    listening.close()
    thread.join(DEADLINE)


def test_tls_troubles_are_told_with_their_cures(redis: str, settings: Any, tls_port: tuple[int, Path]) -> None:
    port, _ = tls_port
    settings.MEASE_REDIS_URL = f"rediss://localhost:{port}/0"
    assert "certificate verify failed" in (told := reason_at_the_start(redis)) and "ssl_ca_certs" in told
    with pytest.raises(djmease.PublishError, match="ssl_ca_certs"):
        settings.MEASE_STRICT_ROUTING = False
        djmease.publish("news", "x")
    settings.MEASE_REDIS_URL = f"redis://localhost:{port}/0"
    assert "rediss://" in reason_at_the_start(redis)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (AuthenticationError("Authentication required."), "refuses the user or password"),
        (NoPermissionError("No permissions"), "does not permit"),
        (BusyLoadingError("Redis is loading the dataset in memory"), "still loading"),
        (ssl.SSLError("[SSL: WRONG_VERSION_NUMBER] wrong version number"), "does not speak TLS"),
        (InvalidResponse('Protocol error, got "H" as reply type byte'), "does not speak as a Redis"),
        (RedisConnectionError("max number of clients reached"), "takes no more connections"),
        (TimeoutError(), "does not answer in time (TimeoutError)"),
        (RedisError("unknown command 'AUTH', with args beginning with: 's3cr3t'"), "unknown command 'AUTH'"),
        (ValueError("Port could not be cast to integer value as 's3cr3t'"), "ValueError"),
    ],
)
def test_a_reason_has_no_secret(error: Exception, told: str) -> None:
    assert told in connections.reason(error)
    assert "s3cr3t" not in connections.reason(error)


def test_a_reason_is_that_of_redis_and_not_of_what_the_site_was_about() -> None:
    try:
        try:
            raise ssl.SSLError("the site's own")
        except ssl.SSLError:
            raise ConnectionRefusedError("refused") from None
    except ConnectionRefusedError as error:
        assert "it does not answer (refused)" in connections.reason(error)
