"""The reader of Redis: what it refuses, and how it comes back."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from redis import Redis
from redis.exceptions import RedisError

from djmease import connections
from djmease.embedded import EmbeddedValkey
from djmease.messages import Message, encode
from djmease.server import background
from djmease.server import listener as listener_module
from djmease.server.link import Access
from djmease.server.listener import Listener
from djmease.server.subscriptions import Subscriptions
from tests.support import DEADLINE

Log = Callable[[], list[str]]


def make_listener(revive: Any = None, **options: Any) -> Listener:
    """Return a listener by the settings of the moment."""
    nothing: Callable[[Any], None] = lambda _: None  # noqa: E731
    defaults = dict.fromkeys(("on_message", "on_heartbeat", "on_control", "on_gap"), nothing)
    return Listener(
        access=Access(connect=connections.listener_connection, explain=connections.reason, revive=revive),
        names=connections.names(),
        heartbeat=b'{"id": "own"}',
        subscriptions=Subscriptions(asyncio.get_running_loop(), names=connections.names()),
        **{**defaults, **options},
    )


@asynccontextmanager
async def running(listener: Listener) -> AsyncIterator[Listener]:
    await listener.start()
    task = asyncio.create_task(listener.run())
    try:
        yield listener
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@asynccontextmanager
async def listening(**options: Any) -> AsyncIterator[asyncio.Queue[Message]]:
    """Run a listener by the settings of the moment, and give what it hears."""
    heard: asyncio.Queue[Message] = asyncio.Queue()
    options.setdefault("on_message", heard.put_nowait)
    async with running(make_listener(**options)):
        yield heard


async def within(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(DEADLINE):
        while not condition():
            await asyncio.sleep(0.01)


def payload(message_id: str, body: bytes = b"x") -> bytes:
    return encode(kind=b"t", body=body, message_id=message_id, published_at=0.0)


def test_a_burst_is_heard_whole_and_in_order(redis: str, valkey: EmbeddedValkey) -> None:
    async def run() -> list[str]:
        async with listening() as heard, asyncio.timeout(DEADLINE):
            with Redis(unix_socket_path=str(valkey.socket)) as publisher, publisher.pipeline() as pipeline:
                for index in range(5000):
                    pipeline.publish(f"{redis}burst", payload(f"{index:016x}", str(index).encode()))
                pipeline.execute()
            return [(await heard.get()).body for _ in range(5000)]

    assert asyncio.run(run()) == [str(index) for index in range(5000)]


def test_ids_are_remembered_for_a_while_and_not_for_ever(redis: str, valkey: EmbeddedValkey) -> None:
    async def run() -> tuple[int, int]:
        listener = make_listener()
        for index in range(3 * listener_module.RECENT):
            listener._hear(f"{redis}a".encode(), payload(f"{index:016x}"), "a")
        return len(listener._recent), len(listener._recent_order)

    assert asyncio.run(run()) == (listener_module.RECENT, listener_module.RECENT)


def test_a_message_that_cannot_be_handed_on_does_not_end_the_listener(
    redis: str, valkey: EmbeddedValkey, log_of: Log
) -> None:
    async def run() -> str:
        heard: asyncio.Queue[Message] = asyncio.Queue()

        def hear(message: Message) -> None:
            if message.body == "bad":
                raise RuntimeError("no")
            heard.put_nowait(message)

        async with listening(on_message=hear), asyncio.timeout(DEADLINE):
            with Redis(unix_socket_path=str(valkey.socket)) as publisher:
                publisher.publish(f"{redis}a", "bad")
                publisher.publish(f"{redis}a", "good")
            body: str = (await heard.get()).body
            return body

    assert asyncio.run(run()) == "good"
    assert any("could not be handed on" in line for line in log_of())


def test_a_redis_to_which_nobody_publishes_is_heard_by_the_heartbeat_and_stays(
    redis: str, valkey: EmbeddedValkey, log_of: Log
) -> None:
    async def run() -> None:
        beats = 0
        with Redis(unix_socket_path=str(valkey.socket)) as other, other.pubsub() as pubsub:
            pubsub.subscribe(connections.names().heartbeat_channel)
            async with running(make_listener(heartbeat_interval=0.02)) as listener, asyncio.timeout(DEADLINE):
                while beats < 10:
                    beats += (pubsub.get_message(timeout=0.0) or {}).get("type") == "message"
                    await asyncio.sleep(0.001)
                assert listener.is_hearing and listener.reconnects == 0

    asyncio.run(run())
    assert not log_of()


def test_a_loop_that_stood_still_has_not_been_deaf(redis: str, valkey: EmbeddedValkey, log_of: Log) -> None:
    async def run() -> None:
        async with running(make_listener(heartbeat_interval=0.1, deaf_after=0.5)) as listener:
            time.sleep(0.6)
            await asyncio.sleep(0)
            await within(lambda: listener._silence == 0.0)
            assert (listener.reconnects, listener.trouble) == (0, None)

    asyncio.run(run())
    assert not log_of()


def test_orders_are_handed_on_and_one_that_fails_does_not_end_the_listener(
    redis: str, valkey: EmbeddedValkey, log_of: Log
) -> None:
    async def run() -> list[bytes]:
        orders: list[bytes] = []

        def obey(order: bytes) -> None:
            if order == b"bad":
                raise RuntimeError("no")
            orders.append(order)

        async with running(make_listener(on_control=obey)):
            with Redis(unix_socket_path=str(valkey.socket)) as publisher:
                for payload in (b"bad", b"good"):
                    publisher.publish(connections.names().control_channel, payload)
            await within(lambda: orders)
        return orders

    assert asyncio.run(run()) == [b"good"]
    assert len([line for line in log_of() if "could not be handed on" in line]) == 1


def test_the_heartbeats_of_others_are_handed_on_and_its_own_are_not(redis: str, valkey: EmbeddedValkey) -> None:
    async def run() -> list[bytes]:
        heard: list[bytes] = []
        async with running(make_listener(heartbeat_interval=0.02, on_heartbeat=heard.append)):
            with Redis(unix_socket_path=str(valkey.socket)) as publisher:
                publisher.publish(connections.names().heartbeat_channel, "another")
            await within(lambda: heard)
        return heard

    assert asyncio.run(run()) == [b"another"]


def test_a_redis_that_is_stopped_like_a_cut_network_is_given_up_and_found_again(
    redis: str, own_valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch, log_of: Log
) -> None:
    """SIGSTOP closes no connection: only silence tells."""
    monkeypatch.setattr(listener_module, "CONNECT_TIMEOUT", 0.2)
    pid = int((own_valkey.home / "valkey.pid").read_text())

    async def run() -> str:
        async with listening(heartbeat_interval=0.1) as heard:
            os.kill(pid, signal.SIGSTOP)
            try:
                await within(lambda: any(line.startswith("Redis is gone") for line in log_of()))
            finally:
                os.kill(pid, signal.SIGCONT)
            await within(lambda: any(line.startswith("Redis is back") for line in log_of()))
            with Redis(unix_socket_path=str(own_valkey.socket)) as publisher:
                publisher.publish(f"{redis}a", "after")
            async with asyncio.timeout(DEADLINE):
                body: str = (await heard.get()).body
                return body

    assert asyncio.run(run()) == "after"


def test_a_connection_that_redis_kills_is_made_anew(redis: str, own_valkey: EmbeddedValkey, log_of: Log) -> None:
    async def run() -> str:
        async with listening() as heard:
            with Redis(unix_socket_path=str(own_valkey.socket)) as publisher:
                publisher.client_kill_filter(_type="pubsub")
                await within(lambda: any(line.startswith("Redis is back") for line in log_of()))
                publisher.publish(f"{redis}a", "after")
            async with asyncio.timeout(DEADLINE):
                body: str = (await heard.get()).body
                return body

    assert asyncio.run(run()) == "after"


def test_a_channel_that_redis_cannot_be_told_of_is_no_end_of_telling_it_of_others(
    redis: str, valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch, log_of: Log
) -> None:
    monkeypatch.setattr(background, "PAUSE", 0.01)

    async def run() -> None:
        async with running(make_listener()) as listener:
            held = listener._subscriptions
            held.hold("\udc80")
            await within(lambda: any("channels are wanted has failed" in line for line in log_of()))
            # It cannot subscribe to all that is held, either.
            await within(lambda: not listener.is_hearing)
            held.release("\udc80")
            await within(lambda: listener.is_hearing)
            held.hold(held.of_group("a"))
            async with asyncio.timeout(DEADLINE):
                await held.wait_on_loop(held.of_group("a"))
            assert held.of_group("a") in held._confirmed

    asyncio.run(run())


def test_an_embedded_valkey_that_died_is_revived(redis: str, own_valkey: EmbeddedValkey, log_of: Log) -> None:
    async def revive() -> None:
        await asyncio.to_thread(own_valkey.ensure_running)

    async def run() -> None:
        async with listening(revive=revive):
            os.kill(int((own_valkey.home / "valkey.pid").read_text()), signal.SIGKILL)
            await within(lambda: any(line.startswith("Redis is back") for line in log_of()))

    asyncio.run(run())


def test_more_channels_than_one_timeout_has_time_for_are_subscribed_and_others_get_their_turn(
    redis: str, valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener_module, "CONNECT_TIMEOUT", 1.5)
    monkeypatch.setattr(listener_module, "MAX_BATCH", 1)

    async def run(count: int) -> tuple[float, int]:
        """Return the seconds that so many channels took, and how many turns others had meanwhile."""
        listener = make_listener()
        for index in range(count):
            listener._subscriptions.hold(listener._subscriptions.of_group(f"room.{index}"))
        turns = 0

        async def take_turns() -> None:
            nonlocal turns
            while True:
                await asyncio.sleep(0)
                turns += 1

        others = asyncio.create_task(take_turns())
        began = time.monotonic()
        await listener.start()
        seconds = time.monotonic() - began
        others.cancel()
        assert len(listener._subscriptions._confirmed) == count
        await listener._drop()
        return seconds, turns

    count, seconds = 4000, 0.0
    while seconds <= listener_module.CONNECT_TIMEOUT:
        count *= 2
        seconds, turns = asyncio.run(run(count))
        assert turns >= count


def test_what_is_for_everybody_is_heard_while_it_still_subscribes(
    redis: str, valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run(publisher: Redis) -> list[str]:
        heard: list[str] = []
        listener = make_listener(on_message=lambda message: heard.append(message.body))
        held = listener._subscriptions
        for index in range(2 * listener_module.MAX_BATCH):
            held.hold(held.of_group(f"room.{index}"))
        confirmed = held.confirmed

        def confirm(channel: str) -> None:
            confirmed(channel)
            if channel == held.of_group("room.0"):
                publisher.publish(f"{redis}a", "for all")

        monkeypatch.setattr(held, "confirmed", confirm)
        await listener.start()
        await listener._drop()
        return heard

    with Redis(unix_socket_path=str(valkey.socket)) as publisher:
        assert asyncio.run(run(publisher)) == ["for all"]


def test_what_is_joined_while_it_still_subscribes_is_heard_when_it_has(
    redis: str, valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener_module, "MAX_BATCH", 10)

    async def run() -> set[str]:
        held = (listener := make_listener())._subscriptions
        for index in range(listener_module.MAX_BATCH):
            held.hold(held.of_group(f"room.{index}"))
        confirmed = held.confirmed

        def confirm(channel: str) -> None:
            confirmed(channel)
            if channel == held.of_group("room.0"):
                held.hold(held.of_group("late"))

        monkeypatch.setattr(held, "confirmed", confirm)
        await listener.start()
        heard = {channel for channel in held._held if channel in held._confirmed}
        await listener._drop()
        return heard

    assert len(asyncio.run(run())) == listener_module.MAX_BATCH + 1


def test_a_server_that_answers_nothing_at_the_start_is_a_timeout(
    redis: str, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener_module, "CONNECT_TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        settings.MEASE_REDIS_URL = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"

        async def run() -> None:
            async with listening():
                pass

        with pytest.raises(TimeoutError):
            asyncio.run(run())


def test_a_wrong_password_is_said_at_the_start(redis: str, settings: Any, valkey: EmbeddedValkey) -> None:
    settings.MEASE_REDIS_URL = f"unix://:wrong@{valkey.socket}"

    async def run() -> None:
        async with listening():
            pass

    with pytest.raises(RedisError, match="AUTH"):
        asyncio.run(run())
