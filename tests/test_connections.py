"""Where Redis is, by the settings, and the connections that go there."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from redis.credentials import CredentialProvider

import djmease
from djmease import connections, embedded
from djmease.embedded import EmbeddedValkey
from tests.support import ROOT, eventually

SECRET = "s3cr3t"


# The URL


@pytest.mark.parametrize("url", ["redis://h:1/0", "rediss://h", "unix:///s", "embedded://"])
@pytest.mark.parametrize("debug", [True, False])
def test_a_url_that_is_set_is_taken_whatever_debug_is(settings: Any, url: str, debug: bool) -> None:
    settings.MEASE_REDIS_URL, settings.DEBUG = url, debug
    assert connections.redis_url() == url


def test_unset_is_embedded_while_debug_is_on_and_an_error_with_both_cures_else(settings: Any) -> None:
    settings.MEASE_REDIS_URL, settings.DEBUG = None, True
    assert connections.redis_url() == "embedded://"
    assert connections.is_embedded()
    settings.DEBUG = False
    with pytest.raises(ImproperlyConfigured, match=r"MEASE_REDIS_URL.*'redis://localhost:6379/0'.*'embedded://'"):
        connections.redis_url()


def test_embedded_is_the_socket_in_the_directory_of_the_moment(settings: Any, short_directory: Path) -> None:
    settings.MEASE_REDIS_URL = "embedded://"
    for name in ("one", "two"):
        settings.MEASE_EMBEDDED_DIR = str(short_directory / name)
        assert connections.connection_url() == f"unix://{short_directory / name / 'valkey.sock'}"
        assert connections.address() == connections.connection_url()


def test_a_real_url_is_not_embedded_and_is_handed_on_as_it_is(settings: Any) -> None:
    settings.MEASE_REDIS_URL = "redis://h:1/0"
    assert not connections.is_embedded()
    assert connections.connection_url() == "redis://h:1/0"


def test_the_prefix_of_channels_is_the_settings_with_a_colon(settings: Any) -> None:
    assert connections.channel_prefix() == "mease:"
    settings.MEASE_KEY_PREFIX = "shop-staging"
    assert connections.channel_prefix() == "shop-staging:"


# Passwords


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://localhost:6379/0", "redis://localhost:6379/0"),
        (f"redis://:{SECRET}@h:1/0", "redis://:***@h:1/0"),
        (f"redis://user:{SECRET}@h", "redis://user:***@h"),
        (f"rediss://:{SECRET}@[::1]:1/0", "rediss://:***@[::1]:1/0"),
        (f"redis://:{SECRET}%2F%40@h", "redis://:***@h"),
        (f"redis://:a:{SECRET}@h", "redis://:***@h"),
        (f"redis://:a@{SECRET}@h", "redis://:***@h"),
        (f"redis://h?password={SECRET}", "redis://h?password=***"),
        (f"unix:///s?db=1&password={SECRET}&username=u", "unix:///s?db=1&password=***&username=u"),
        ("unix:///s", "unix:///s"),
        ("redis://user@h", "redis://user@h"),
    ],
)
def test_a_password_is_masked_wherever_it_stands(url: str, shown: str) -> None:
    assert connections.masked(url) == shown


@pytest.mark.parametrize("char", "/?#")
def test_a_password_that_should_have_been_escaped_is_masked_too(char: str) -> None:
    """Such a URL does not parse, and so it is just the one that is shown to people."""
    shown = connections.masked(f"redis://:{SECRET}{char}{SECRET}@host:6379/0")
    assert SECRET not in shown
    assert "host:6379/0" in shown


def test_a_url_with_a_broken_host_is_masked_and_raises_nothing() -> None:
    assert SECRET not in connections.masked(f"redis://:{SECRET}@[::1:6379/0")


def test_the_address_for_people_has_no_password(settings: Any) -> None:
    settings.MEASE_REDIS_URL = f"redis://:{SECRET}@h:1/0"
    assert connections.address() == "redis://:***@h:1/0"


# What redis-py does not take


@pytest.mark.parametrize(
    "url",
    [
        "redis://h",
        "redis://h:6379/15",
        "rediss://:p@h?ssl_cert_reqs=none",
        "unix:///s?db=1",
        "redis://h/0?socket_timeout=5",
        "redis://[::1]:6379",
    ],
)
def test_what_redis_py_takes_has_no_fault(url: str) -> None:
    connections.check_url(url)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        (f"http://:{SECRET}@h", "one of the following schemes"),
        (f"redis://:{SECRET}@h:port", "Port could not be cast"),
        (f"redis://:{SECRET}@h:99999", "out of range"),
        (f"redis://:{SECRET}@h?db=one", "Invalid value for 'db'"),
        ("localhost:6379", "one of the following schemes"),
        (f"rediss://:{SECRET}@h?ssl_cert_reqs=perhaps", "Invalid SSL Certificate Requirements Flag"),
        (f"redis://:{SECRET}@h?protocol=9", "protocol must be either 2 or 3"),
        (f"redis://:{SECRET}@h?retry=1", "has no attribute"),
    ],
)
def test_what_redis_py_does_not_take_is_said_with_the_reason_and_no_password(url: str, reason: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=reason) as caught:
        connections.check_url(url)
    assert "MEASE_REDIS_URL" in str(caught.value)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("url", [f"redis://:{SECRET}@[::1:6379/0", f"redis://:{SECRET}/x@h", f"redis://:{SECRET}#x@h"])
def test_a_url_that_is_broken_by_its_password_or_host_is_said_without_the_password(url: str) -> None:
    with pytest.raises(ImproperlyConfigured, match="MEASE_REDIS_URL") as caught:
        connections.check_url(url)
    assert SECRET not in str(caught.value)


def test_an_unknown_argument_in_the_url_or_the_options_is_found_before_it_hurts(settings: Any) -> None:
    """redis-py looks at them only when it makes the first connection."""
    with pytest.raises(ImproperlyConfigured, match="sockt_timeout"):
        connections.check_url("redis://h?sockt_timeout=1")
    settings.MEASE_REDIS_OPTIONS = {"sockt_timeout": SECRET}
    with pytest.raises(ImproperlyConfigured, match="MEASE_REDIS_OPTIONS has 'sockt_timeout'") as caught:
        connections.check_url("redis://h")
    assert SECRET not in str(caught.value)
    with pytest.raises(ImproperlyConfigured, match="MEASE_REDIS_URL is 'http://h'"):
        connections.check_url("http://h")


# The pool of publishers


def test_there_is_one_pool_for_a_url_and_its_options(settings: Any) -> None:
    settings.MEASE_REDIS_URL = "redis://pool.invalid:1/0"
    pool = connections.publisher_pool()
    assert connections.publisher_pool() is pool
    settings.MEASE_REDIS_OPTIONS = {"socket_timeout": 3}
    other = connections.publisher_pool()
    assert other is not pool
    settings.MEASE_REDIS_URL = "redis://pool.invalid:2/0"
    assert connections.publisher_pool() not in (pool, other)


def test_threads_that_come_first_at_once_share_one_pool(settings: Any) -> None:
    settings.MEASE_REDIS_URL = "redis://threads.invalid:1/0"
    start = threading.Barrier(8)
    found: list[Any] = []

    def look() -> None:
        start.wait()
        found.append(connections.publisher_pool())

    threads = [threading.Thread(target=look) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(pool) for pool in found}) == 1


def test_redis_py_never_retries_on_its_own_and_never_waits_for_long(settings: Any) -> None:
    settings.MEASE_REDIS_URL = "redis://h:1/0"
    connection = connections.publisher_pool().make_connection()
    assert connection.retry.get_retries() == 0
    assert connection.socket_connect_timeout <= 1 and connection.socket_timeout <= 1


def test_the_options_of_the_site_are_stronger_than_ours(settings: Any) -> None:
    settings.MEASE_REDIS_URL = "redis://h:1/0"
    settings.MEASE_REDIS_OPTIONS = {"socket_timeout": 7, "client_name": "shop"}
    connection = connections.publisher_pool().make_connection()
    assert (connection.socket_timeout, connection.client_name) == (7, "shop")


def test_a_publisher_of_the_embedded_valkey_looks_at_the_directory_before_it_speaks(
    settings: Any, short_directory: Path
) -> None:
    """Somebody else could have put a socket there, to hear what is published."""
    settings.MEASE_REDIS_URL, settings.MEASE_EMBEDDED_DIR = "embedded://", str(short_directory)
    short_directory.chmod(0o755)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(embedded.socket_path(short_directory)))
        listening.listen()
        with pytest.raises(ImproperlyConfigured, match="open to others"):
            connections.publisher_pool().get_connection()
        peer, _ = listening.accept()
        with peer:
            assert peer.recv(100) == b"", "closed, and nothing was said"


class Forgetful(CredentialProvider):
    """Is interrupted the first time, as by the time limit of a task."""

    asked = 0

    def get_credentials(self) -> tuple[str, str]:
        self.asked += 1
        if self.asked == 1:
            raise KeyboardInterrupt
        return ("default", "any")


def test_a_connection_that_was_interrupted_half_made_is_made_anew(redis: str, settings: Any) -> None:
    provider = Forgetful()
    settings.MEASE_REDIS_OPTIONS = {"credential_provider": provider}
    pool = connections.publisher_pool()
    with pytest.raises(KeyboardInterrupt):
        pool.get_connection()
    connection = pool.get_connection()
    assert provider.asked == 2, "it has said who it is"
    pool.release(connection)
    pool.disconnect()


def test_each_of_many_threads_has_a_connection_unless_the_site_says_how_many(redis: str, settings: Any) -> None:
    settings.MEASE_ROUTES = {"news": "djmease.senders.broadcast"}
    pool = connections.publisher_pool()
    for connection in [pool.get_connection() for _ in range(101)]:
        pool.release(connection)
    pool.disconnect()
    settings.MEASE_REDIS_OPTIONS = {"max_connections": 1}
    pool = connections.publisher_pool()
    connection = pool.get_connection()
    with pytest.raises(djmease.PublishError, match=r"all are in use .*: raise max_connections"):
        djmease.publish("news", "x")
    pool.release(connection)
    djmease.publish("news", "x")
    pool.disconnect()


# The listener's connection


def test_the_listeners_connection_speaks_to_redis_without_retries_and_waits_as_long_as_it_takes(
    redis: str, settings: Any
) -> None:
    settings.MEASE_REDIS_OPTIONS = {"socket_timeout": 0.01, "client_name": "listener"}

    async def ask() -> Any:
        connection = connections.listener_connection()
        assert connection.socket_timeout is None
        assert connection.retry.get_retries() == 0
        await connection.connect()
        try:
            await connection.send_command("CLIENT", "GETNAME")
            return await connection.read_response()
        finally:
            await connection.disconnect()

    assert asyncio.run(ask()) == b"listener"


@pytest.mark.parametrize("url", ["", "?protocol=3&decode_responses=True&socket_timeout=1"])
@pytest.mark.parametrize("options", [{}, {"protocol": 3, "decode_responses": True}])
def test_how_we_read_is_not_the_sites_to_say(redis: str, settings: Any, url: str, options: dict[str, Any]) -> None:
    settings.MEASE_REDIS_URL += url
    settings.MEASE_REDIS_OPTIONS = options
    for connection in (connections.listener_connection(), connections.publisher_pool().make_connection()):
        assert connection.protocol == 2
        assert not connection.encoder.decode_responses
    assert connections.listener_connection().socket_timeout is None


def test_each_listener_has_a_connection_of_its_own(redis: str) -> None:
    assert connections.listener_connection() is not connections.listener_connection()


def test_the_listener_of_the_embedded_valkey_goes_to_its_socket(settings: Any, short_directory: Path) -> None:
    settings.MEASE_REDIS_URL, settings.MEASE_EMBEDDED_DIR = "embedded://", str(short_directory)
    valkey = EmbeddedValkey(short_directory)
    valkey.acquire()

    async def ask() -> Any:
        connection = connections.listener_connection()
        await connection.connect()
        try:
            await connection.send_command("PING")
            return await connection.read_response()
        finally:
            await connection.disconnect()

    try:
        assert asyncio.run(ask()) == b"PONG"
    finally:
        valkey.release()


# Forks


FORK = """
import os, signal, sys, threading, django
from django.conf import settings
settings.configure(INSTALLED_APPS=["djmease"], MEASE_REDIS_URL=sys.argv[1],
    MEASE_ROUTES={"news": "djmease.senders.broadcast"})
django.setup()
import djmease
from djmease import connections
djmease.publish("news", "parent")
children = []
for index in range(3):
    lock = connections.publisher_pool()._lock
    taken, given_back = threading.Event(), threading.Event()

    def publish():  # As far as it takes the lock, and that thread is not in the child.
        with lock:
            taken.set()
            given_back.wait()

    thread = threading.Thread(target=publish)
    thread.start()
    taken.wait()
    child = os.fork()
    if child == 0:
        signal.alarm(10)
        djmease.publish("news", f"child {index}")
        os._exit(0)
    children.append(child)
    given_back.set()
    thread.join()
djmease.publish("news", "parent again")
print([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children])
"""


def test_a_fork_of_a_process_that_has_published_publishes_too(valkey: EmbeddedValkey) -> None:
    """As a preforking web server does; each process has a connection of its own."""
    from_now = _connections_so_far(valkey)
    command = [sys.executable, "-c", FORK, f"unix://{valkey.socket}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout == "[0, 0, 0]\n", done.stderr
    assert eventually(lambda: _connections_so_far(valkey) - from_now >= 4, "a connection for each process")


def _connections_so_far(valkey: EmbeddedValkey) -> int:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(valkey.socket))
        client.sendall(b"INFO stats\r\n")
        answer = b""
        while b"total_connections_received:" not in answer or not answer.endswith(b"\r\n"):
            answer += client.recv(65536)
    return int(answer.split(b"total_connections_received:")[1].split(b"\r\n")[0])
