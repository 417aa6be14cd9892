"""Subscriptions against a model of Redis, by hypothesis: whoever comes and goes, and whatever happens in between."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter, deque
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from djmease.names import Names
from djmease.server import subscriptions
from djmease.server.subscriptions import Subscriptions
from tests.support import DEADLINE, eventually

LINGER = 1000.0
PATIENCE = 2.0
"""Seconds in which a thread ends that nothing keeps."""
Command = tuple[str, str]


class Redis:
    """What a connection does: commands on their way, what it is subscribed to, and confirmations on their way back."""

    def __init__(self) -> None:
        self.commands: deque[Command] = deque()
        self.subscribed: set[str] = set()
        self.confirmations: deque[str] = deque()

    def take(self) -> None:
        verb, channel = self.commands.popleft()
        if verb == "subscribe":
            self.subscribed.add(channel)
            self.confirmations.append(channel)
        else:
            self.subscribed.discard(channel)


class Model:
    """Those who need channels, the listener, and Redis. The loop turns between two steps, and stands still else."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.subscriptions = Subscriptions(self.loop, names=Names("p"), linger=LINGER)
        self.listening: asyncio.Task[None] | None = None
        """What the listener does while it has sent all that it has to."""
        self.held: Counter[str] = Counter()
        self.redis: Redis | None = None
        self.to_confirm = 0
        """How many confirmations are waited for before the connection counts."""
        self.asked_for_more = False
        self.is_connected = False
        self.unsent: deque[Command] = deque()
        """Changes that were taken and are sent one after another."""
        self.waiting: dict[asyncio.Task[None], str] = {}
        self.threads: list[threading.Thread] = []

    def run_loop(self) -> None:
        """Let the loop do all that it has to; the listener takes the changes."""
        if not self.unsent and (self.listening is None or self.listening.done()):
            self.listening = self.loop.create_task(self.listen())
        for _ in range(5):
            self.loop.run_until_complete(asyncio.sleep(0))

    async def listen(self) -> None:
        changes = await self.subscriptions.changes()
        self.unsent.extend(("unsubscribe", channel) for channel in changes.unsubscribe)
        self.unsent.extend(("subscribe", channel) for channel in changes.subscribe)

    # Those who need channels

    def hold(self, channel: str) -> None:
        self.held[channel] += 1
        self.subscriptions.hold(channel)

    def release(self, channel: str) -> None:
        if self.held[channel]:
            self.held -= Counter([channel])
            self.subscriptions.release(channel)

    def wait(self, channel: str) -> None:
        if self.held[channel]:
            self.waiting[self.loop.create_task(self.subscriptions.wait_on_loop(channel))] = channel
            self.run_loop()

    def wait_in_thread(self, channel: str) -> None:
        if self.held[channel]:
            thread = threading.Thread(target=self.subscriptions.wait, args=[channel], daemon=True)
            before = len(self.subscriptions._waiting.get(channel, ()))
            thread.start()
            eventually(lambda: not thread.is_alive() or len(self.subscriptions._waiting.get(channel, ())) > before)
            self.threads.append(thread)

    def give_up_waiting(self) -> None:
        for task in self.waiting:
            task.cancel()

    # The listener

    def connect_or_lose(self) -> None:
        """Connect, or lose what is connected: in the middle of subscribing too."""
        if self.redis is not None:
            self.lose_connection()
            return
        channels = self.subscriptions.channels()
        assert set(channels) == set(self.held)
        self.redis = Redis()
        self.asked_for_more = False
        self._subscribe(channels)

    def lose_connection(self) -> None:
        self.redis = None
        self.unsent.clear()
        if self.is_connected:
            self.is_connected = False
            self.subscriptions.disconnected()

    def send_change(self) -> None:
        if self.unsent:
            assert self.redis is not None
            self.redis.commands.append(self.unsent.popleft())

    def redis_takes(self) -> None:
        if self.redis is not None and self.redis.commands:
            self.redis.take()

    def redis_confirms(self) -> None:
        if self.redis is not None and self.redis.confirmations:
            self.subscriptions.confirmed(self.redis.confirmations.popleft())
            if not self.is_connected:
                self._count_confirmed(1)

    def _subscribe(self, channels: list[str]) -> None:
        assert self.redis is not None
        self.redis.commands.extend(("subscribe", channel) for channel in channels)
        self.to_confirm = len(channels)
        self._count_confirmed(0)

    def _count_confirmed(self, count: int) -> None:
        self.to_confirm -= count
        if self.to_confirm:
            return
        if self.asked_for_more:
            self.is_connected = True
            self.subscriptions.connected()
        else:
            self.asked_for_more = True
            self._subscribe(self.subscriptions.more_channels())

    def time_passes(self) -> None:
        """Let all that nobody holds have been idle for long enough; the loop looks at that now and then."""
        for channel in self.subscriptions._idle:
            self.subscriptions._idle[channel] -= 2 * LINGER
        self.subscriptions._bell.set()

    # What holds always, and in the end

    def check(self) -> None:
        """See that what is confirmed is heard, and goes on being heard, and that who waits is going to be told."""
        found = self.subscriptions
        if self.redis is not None:
            on_their_way = [*self.redis.commands, *self.unsent]
            for channel in found._confirmed:
                assert channel in self.redis.subscribed
                assert ("unsubscribe", channel) not in on_their_way
        self.waiting = {task: channel for task, channel in self.waiting.items() if not task.done()}
        assert self.is_connected or not (self.waiting or found._waiting)
        assert self.unsent or not (self.is_connected and found._new), "what is to be told is told at once"
        for channel in (*self.waiting.values(), *found._waiting):
            assert found._waiting[channel]
            assert channel in found._pending or channel in found._new

    def end(self) -> None:
        """See that all is as it should be once everything has been told and done."""
        if self.redis is None:
            self.connect_or_lose()
        for _ in range(2):
            self.settle()
            self.time_passes()
        self.settle()
        assert not self.subscriptions._waiting, "somebody whom nobody tells"
        for thread in self.threads:
            thread.join(PATIENCE)
        assert not any(thread.is_alive() for thread in self.threads), "a thread that nobody wakes"
        self.check()
        wanted, found = set(self.held), self.subscriptions
        assert self.redis is not None
        assert self.redis.subscribed == found._confirmed == wanted
        assert dict(found._held) == dict(self.held)
        assert not (found._pending or found._new or found._idle or found._waiting or self.waiting)

    def close(self) -> None:
        self.subscriptions.disconnected()
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
        self.loop.run_until_complete(asyncio.sleep(0))
        self.loop.close()

    def settle(self) -> None:
        assert self.redis is not None
        self.run_loop()
        while self.unsent or self.redis.commands or self.redis.confirmations:
            while self.unsent:
                self.send_change()
            while self.redis.commands:
                self.redis_takes()
            while self.redis.confirmations:
                self.redis_confirms()
            self.run_loop()


Step = Callable[[Model, str], None]


def in_thread(step: Step) -> Step:
    def run(model: Model, channel: str) -> None:
        thread = threading.Thread(target=step, args=[model, channel])
        thread.start()
        thread.join()

    return run


def hold_for_a_moment(model: Model, channel: str) -> None:
    """Hold, wait and release before the listener has come for it."""
    model.hold(channel)
    model.wait_in_thread(channel)
    model.release(channel)


# What is there twice is done twice as often.
STEPS: list[Step] = [
    *2 * [Model.hold, in_thread(Model.hold), Model.release, in_thread(Model.release)],
    *[Model.wait, Model.wait_in_thread, hold_for_a_moment, lambda model, _: model.give_up_waiting()],
    *4 * [lambda model, _: model.send_change()],
    *4 * [lambda model, _: model.redis_takes()],
    *4 * [lambda model, _: model.redis_confirms()],
    *2 * [lambda model, _: model.time_passes()],
    lambda model, _: model.connect_or_lose(),
]


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    # Who waits longer than a test does is left behind.
    monkeypatch.setattr(subscriptions, "WAIT_TIMEOUT", 10 * DEADLINE)


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(st.sampled_from(STEPS), st.sampled_from("ab"), st.booleans()), min_size=40, max_size=80))
def test_held_channels_are_heard_others_are_not_and_nobody_waits_for_nothing(
    steps: list[tuple[Step, str, bool]],
) -> None:
    model = Model()
    try:
        model.connect_or_lose()
        for step, channel, is_taken_at_once in steps:
            step(model, channel)
            if is_taken_at_once:
                model.run_loop()
                model.check()
        model.end()
    finally:
        model.close()
