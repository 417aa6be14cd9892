"""A server in a thread of the process that tests it."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Callable
from contextlib import closing, suppress
from typing import Any, TypeVar

from tornado.netutil import bind_sockets

from djmease import loader
from djmease.messages import Message
from djmease.server.factory import make_server
from djmease.server.server import Server

START_TIMEOUT = 20.0
Result = TypeVar("Result")


class LiveServer:
    """A real server on a free port of 127.0.0.1, by the settings and decorators of the moment in which it starts."""

    def __init__(self, *, hears_redis: bool = False, ssl_context: ssl.SSLContext | None = None) -> None:
        self._ssl_context = ssl_context
        self._hears_redis = hears_redis
        self.server: Server
        self.loop: asyncio.AbstractEventLoop
        self.port = 0
        self._ready = threading.Event()
        self._serves = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="djmease-live-server", daemon=True)

    @property
    def url(self) -> str:
        return f"{'wss' if self._ssl_context else 'ws'}://127.0.0.1:{self.port}/"

    def start(self) -> None:
        """Return when it serves, or raise why it does not."""
        self._thread.start()
        if not self._ready.wait(START_TIMEOUT):
            raise TimeoutError(f"the live server did not start in {START_TIMEOUT} s")
        self._raise_error()

    def stop(self) -> None:
        """Return when it has ended, or raise what it died of."""
        if self._serves:
            with suppress(RuntimeError):  # It may have died, and its loop is closed.
                self.loop.call_soon_threadsafe(self.server.stop)
        self._thread.join()
        self._raise_error()

    def publish(self, message: Message) -> None:
        """Hand a message on as if it came from Redis."""
        self.loop.call_soon_threadsafe(self.server.publish, message)

    def control(self, order: dict[str, Any]) -> None:
        """Hand an order on as if it came from Redis."""
        self.loop.call_soon_threadsafe(self.server.orders.obey, order)

    def roll(self, group: str) -> list[bytes]:
        """Return the entries of a group, as Redis would hold them."""
        return self.server.roll(group)

    def call(self, function: Callable[[], Result]) -> Result:
        """Run a function on the server's loop, and return what it returns."""

        async def run() -> Result:
            return function()

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(START_TIMEOUT)

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            self._error = error
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        with closing(bind_sockets(0, "127.0.0.1")[0]) as listening:
            self.port = listening.getsockname()[1]
            self.loop = asyncio.get_running_loop()
            self.server = make_server(
                loader.load().registry, [listening], hears_redis=self._hears_redis, ssl_context=self._ssl_context
            )
            await self.server.start()
            self._serves = True
            self._ready.set()
            await self.server.serve()

    def _raise_error(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error
