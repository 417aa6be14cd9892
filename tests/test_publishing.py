"""publish and apublish from all the places where Django code runs."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import django.db
import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.contrib.auth.models import User
from django.core.exceptions import SynchronousOnlyOperation
from django.db import connection, transaction
from django.utils.functional import SimpleLazyObject
from redis import Redis
from redis.client import PubSub

import djmease
from djmease import connections, embedded, publishing
from djmease.embedded import EmbeddedValkey
from djmease.messages import Message, decode
from djmease.test import captured_messages
from tests.support import DEADLINE, ROOT

Log = Callable[[], list[str]]


@pytest.fixture(autouse=True)
def routes(settings: Any) -> None:
    settings.MEASE_ROUTES = {"news": "djmease.senders.broadcast", "chat.*": "djmease.senders.broadcast", "off": None}


class Ear:
    """A subscriber that is not ours."""

    def __init__(self, pubsub: PubSub, prefix: str) -> None:
        self._pubsub = pubsub
        self._prefix = prefix
        # Those of groups and users too.
        pubsub.psubscribe(f"{prefix[:-1]}*")
        self.next_reply()

    def next_reply(self, timeout: float = DEADLINE) -> Any:
        return self._pubsub.get_message(timeout=timeout)

    def hear(self, timeout: float = DEADLINE) -> Message | None:
        reply = self.next_reply(timeout)
        if reply is None:
            return None
        channel = reply["channel"].decode()
        routing = channel.removeprefix(self._prefix) if channel.startswith(self._prefix) else None
        return decode(routing, reply["data"])


@pytest.fixture
def ear(redis: str, valkey: EmbeddedValkey) -> Iterator[Ear]:
    with Redis(unix_socket_path=str(valkey.socket)) as client, client.pubsub() as pubsub:
        yield Ear(pubsub, redis)


@pytest.mark.parametrize("whom", [{"user": None}, {"group": None}])
def test_nobody_is_not_everybody(redis: str, whom: dict[str, Any]) -> None:
    (name,) = whom
    with pytest.raises(ValueError, match=f"{name} is None, which is nobody: leave it out"):
        djmease.publish("news", "for the owner", **whom)
    with pytest.raises(ValueError, match=f"{name} is None"):
        asyncio.run(djmease.apublish("news", "for the owner", **whom))


def test_a_name_is_no_primary_key(ear: Ear) -> None:
    for whom in ("ada", [1, "ada"]):
        with pytest.raises(ValueError, match=r"user 'ada' is no primary key of auth\.User"):
            djmease.publish("news", "x", user=whom)
        with pytest.raises(ValueError, match="'ada'"):
            asyncio.run(djmease.apublish("news", "x", user=whom))
    djmease.publish("news", "x", user=["07", 8])
    assert ear.hear().users == ("7", "8")  # type: ignore[union-attr]


def test_publish_now_tells_how_many_heard_it_and_warns_of_nothing(ear: Ear, log_of: Log) -> None:
    sent = publishing.publish_now("news", {"a": 1}, group="room", user=7, trace="f00d")
    assert sent.heard == 1
    message = ear.hear()
    assert message is not None
    assert (message.id, message.body, message.trace) == (sent.id, {"a": 1}, "f00d")
    assert (message.groups, message.users) == (("room",), ("7",))
    ear._pubsub.punsubscribe()
    ear.next_reply()
    assert publishing.publish_now("news", "x").heard == 0
    assert log_of() == []


@pytest.mark.django_db(transaction=True)
def test_publish_now_waits_for_no_commit(ear: Ear) -> None:
    with transaction.atomic():
        publishing.publish_now("news", "x")
        assert ear.hear() is not None


def test_publish_now_refuses_what_publish_does(ear: Ear) -> None:
    with pytest.raises(djmease.UnknownRouting):
        publishing.publish_now("newz", "x")

    async def on_a_loop() -> None:
        publishing.publish_now("news", "x")

    with pytest.raises(SynchronousOnlyOperation):
        asyncio.run(on_a_loop())


def test_what_is_published_is_on_its_channel_with_its_id(ear: Ear) -> None:
    before = time.time()
    message_id = djmease.publish("news", {"text": "Hello world !"})
    message = ear.hear()
    assert message is not None
    assert (message.routing, message.body, message.id) == ("news", {"text": "Hello world !"}, message_id)
    assert before - 0.001 < message.published_at < time.time() + 0.001


def test_a_thread_publishes_too(ear: Ear) -> None:
    threads = [threading.Thread(target=djmease.publish, args=("news", str(index))) for index in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {ear.hear().body for _ in threads} == {str(index) for index in range(20)}  # type: ignore[union-attr]


def test_a_forked_process_publishes_on_a_connection_of_its_own(ear: Ear) -> None:
    djmease.publish("news", "parent")
    child = os.fork()
    if child == 0:
        try:
            djmease.publish("news", "child")
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    djmease.publish("news", "parent again")
    assert [ear.hear().body for _ in range(3)] == ["parent", "child", "parent again"]  # type: ignore[union-attr]


@pytest.mark.django_db
@pytest.mark.parametrize("kind", ["lazy", "several", "query set"])
def test_apublish_reads_users_where_djangos_asynchronous_code_does(kind: str) -> None:
    ada, grace = User.objects.create(username="ada"), User.objects.create(username="grace")
    lazy = SimpleLazyObject(lambda: User.objects.get(username="ada"))
    user = {"lazy": lazy, "several": [grace, lazy], "query set": User.objects.filter(username="ada")}[kind]

    async def publish() -> list[Any]:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        await djmease.apublish("news", "x", user=user)
        return await asyncio.to_thread(open_connections)

    with captured_messages() as captured:
        # In this thread, which has the test's transaction.
        assert async_to_sync(publish)() == []
    assert str(ada.pk) in (captured[0].users or ())


def open_connections() -> list[Any]:
    return [each for each in django.db.connections.all(initialized_only=True) if each.connection is not None]


@pytest.mark.parametrize("whom", [{"group": ["a", "b"]}, {"group": ("a",), "user": {1, 2}}, {"user": User(pk=1)}])
def test_apublish_of_what_takes_no_query_waits_for_none(whom: dict[str, Any]) -> None:
    async def publish() -> None:
        may_end = threading.Event()
        query = asyncio.ensure_future(sync_to_async(may_end.wait)())
        await asyncio.sleep(0)  # It has the thread now.
        try:
            async with asyncio.timeout(DEADLINE):
                await djmease.apublish("news", "x", **whom)
        finally:
            may_end.set()
            await query

    with captured_messages() as captured:
        asyncio.run(publish())
    assert len(captured) == 1


def test_apublish_sends_at_once_and_publish_on_a_loop_names_it(ear: Ear) -> None:
    async def run() -> str:
        with pytest.raises(SynchronousOnlyOperation, match="apublish"):
            djmease.publish("news", "x")
        return await djmease.apublish("news", "from the loop", group="a", user=1)

    message_id = asyncio.run(run())
    message = ear.hear()
    assert message is not None
    assert (message.id, message.body, message.groups, message.users) == (message_id, "from the loop", ("a",), ("1",))


@pytest.mark.django_db(transaction=True)
def test_it_waits_for_the_commit_and_is_dropped_by_a_rollback(ear: Ear) -> None:
    with transaction.atomic():
        djmease.publish("news", "after")
        djmease.publish("news", "at once", on_commit=False)
        assert ear.hear().body == "at once"  # type: ignore[union-attr]
        assert ear.hear(timeout=0.05) is None
    assert ear.hear().body == "after"  # type: ignore[union-attr]
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        djmease.publish("news", "never")
        1 / 0  # noqa: B018
    assert ear.hear(timeout=0.05) is None


@pytest.mark.django_db(transaction=True)
def test_a_redis_that_fails_after_the_commit_is_logged_and_harms_no_other_hook(
    redis: str, settings: Any, log_of: Log
) -> None:
    ran: list[str] = []
    settings.MEASE_REDIS_URL = "redis://127.0.0.1:1/0"
    with transaction.atomic():
        message_id = djmease.publish("news", "lost")
        transaction.on_commit(lambda: ran.append("the next hook"))
    assert ran == ["the next hook"]
    assert publishing.counts["lost_after_commit"] == 1
    assert any(f"message {message_id} is lost after the commit" in line for line in log_of())


@pytest.mark.django_db(transaction=True)
def test_errors_of_the_message_show_at_the_call_also_when_sending_waits() -> None:
    with transaction.atomic():
        for routing, message, error in (
            ("no such", "x", ValueError),
            ("nobody", "x", djmease.UnknownRouting),
            ("news", object(), TypeError),
            ("news", float("nan"), ValueError),
            ("news", "x" * (1024 * 1024 + 1), ValueError),
        ):
            with pytest.raises(error):
                djmease.publish(routing, message)


def test_it_opens_no_database_connection(ear: Ear) -> None:
    """Tests without the database mark may not open one: pytest-django raises."""
    djmease.publish("news", "x")
    assert connection.in_atomic_block is False


def test_an_unknown_routing_names_the_closest(redis: str, settings: Any) -> None:
    with pytest.raises(djmease.UnknownRouting, match="Did you mean 'news'") as caught:
        djmease.publish("mews", "x")
    assert (caught.value.routing, caught.value.closest) == ("mews", ["news"])
    with pytest.raises(djmease.UnknownRouting, match="MEASE_STRICT_ROUTING"):
        djmease.publish("zzzz", "x")
    with pytest.raises(djmease.UnknownRouting):
        djmease.publish("off", "x")
    djmease.publish("chat.anything", "x")
    settings.MEASE_STRICT_ROUTING = False
    djmease.publish("zzzz", "x")


def test_a_message_over_the_limit_names_it(settings: Any) -> None:
    settings.MEASE_MAX_PUBLISH_SIZE = 10
    with pytest.raises(ValueError, match="'news' has 11 bytes, more than the 10 of MEASE_MAX_PUBLISH_SIZE"):
        djmease.publish("news", "x" * 11)


def test_what_json_cannot_hold_says_for_which_routing() -> None:
    with pytest.raises(TypeError) as caught:
        djmease.publish("news", {"x": object()})
    assert any("'news'" in note for note in caught.value.__notes__)


def test_nobody_listening_is_said_once_with_the_command(redis: str, log_of: Log) -> None:
    for _ in range(3):
        djmease.publish("news", "x")
    assert len([line for line in log_of() if "run_websocket_server" in line]) == 1
    assert publishing.counts["unheard"] == 3


@pytest.mark.parametrize("url", ["redis://:secret@127.0.0.1:1/0", "redis://127.0.0.1:1/0?password=secret"])
def test_a_redis_that_refuses_is_an_error_in_about_a_second(settings: Any, url: str, log_of: Log) -> None:
    settings.MEASE_REDIS_URL = url
    started = time.monotonic()
    with pytest.raises(djmease.PublishError, match=r"127\.0\.0\.1:1/0") as caught:
        djmease.publish("news", "x")
    assert 0.5 < time.monotonic() - started < 3
    assert "secret" not in str(caught.value) and "***" in caught.value.address
    djmease.publish("news", "x", fail_silently=True)
    assert any("could not be published" in line for line in log_of())


def test_a_redis_that_is_silent_is_an_error_and_nothing_is_sent_twice(settings: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        settings.MEASE_REDIS_URL = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
        # Without the greeting, the connection seems good until the answer does not come.
        settings.MEASE_REDIS_OPTIONS = {"driver_info": None, "socket_timeout": 0.2}
        with pytest.raises(djmease.PublishError, match="it may have arrived"):
            djmease.publish("news", "only once")
        peer, _ = silent.accept()
        with peer:
            peer.settimeout(0.2)
            assert peer.recv(65536).count(b"only once") == 1


def test_a_wrong_password_is_told_apart_from_absence(settings: Any, short_directory: Path) -> None:
    path = short_directory / "own.sock"
    command = [embedded.find_binary(), "--port", "0", "--unixsocket", str(path), "--requirepass", "right", "--save", ""]
    process = subprocess.Popen(command, cwd=short_directory, stdout=subprocess.DEVNULL)
    try:
        settings.MEASE_REDIS_URL = f"unix://:wrong@{path}"
        deadline = time.monotonic() + DEADLINE
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        with pytest.raises(djmease.PublishError, match="(?i)invalid username-password|WRONGPASS"):
            djmease.publish("news", "x")
        settings.MEASE_REDIS_URL = f"unix://:right@{path}"
        djmease.publish("news", "x")
    finally:
        process.terminate()
        process.wait()


def test_no_redis_at_all_names_both_cures(settings: Any) -> None:
    settings.MEASE_REDIS_URL, settings.DEBUG = None, False
    with pytest.raises(djmease.PublishError, match=r"redis://localhost:6379/0.*embedded://"):
        djmease.publish("news", "x")
    djmease.publish("news", "x", fail_silently=True)


def test_unset_means_embedded_while_debug_is_on(settings: Any, short_directory: Path, log_of: Log) -> None:
    settings.MEASE_REDIS_URL, settings.DEBUG = None, True
    settings.MEASE_EMBEDDED_DIR = str(short_directory / "valkey")
    djmease.publish("news", "nobody serves")
    assert any("run_websocket_server" in line for line in log_of())
    valkey = EmbeddedValkey(embedded.directory())
    valkey.acquire()
    try:
        djmease.publish("news", "x")
        assert publishing.counts["published"] == 2
        (short_directory / "valkey").chmod(0o755)
        connections.publisher_pool().disconnect()
        with pytest.raises(djmease.PublishError, match="open to others"):
            djmease.publish("news", "x")
    finally:
        (short_directory / "valkey").chmod(0o700)
        valkey.release()


def test_an_embedded_valkey_whose_directory_cannot_be_one_is_a_failure_of_redis(
    settings: Any, short_directory: Path, log_of: Log
) -> None:
    (short_directory / "file").write_text("")
    settings.MEASE_REDIS_URL, settings.MEASE_EMBEDDED_DIR = "embedded://", str(short_directory / "file" / "valkey")
    with pytest.raises(djmease.PublishError, match="Not a directory"):
        djmease.publish("news", "x")
    djmease.publish("news", "x", fail_silently=True)
    assert any("Not a directory" in line for line in log_of())
    with pytest.raises(djmease.PublishError, match="Not a directory"):
        djmease.disconnect(client_id="a")


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        ("redis://localhost:6379/0", "redis://localhost:6379/0"),
        ("redis://:p@h", "redis://:***@h"),
        ("redis://u:p@h", "redis://u:***@h"),
        ("unix:///s?password=p&db=1", "unix:///s?password=***&db=1"),
    ],
)
def test_passwords_are_masked(url: str, masked: str) -> None:
    assert connections.masked(url) == masked


def test_a_site_without_the_app_is_told_to_add_it() -> None:
    code = "from django.conf import settings; settings.configure(); import djmease; djmease.publish('news', 'x')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE)
    assert "ImproperlyConfigured: 'djmease' is not in INSTALLED_APPS: add it" in done.stderr
