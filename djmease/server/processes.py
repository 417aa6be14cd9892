"""Development: run the server again when its code changes, with Django's ``runserver`` beside it.

The parent only supervises. Its child serves on its main thread, where a loop gets signals, and watches the code from
another; Django's own reloader does it the other way round. A child that found a change exits with 3.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from asyncio.subprocess import Process
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from django.apps import AppConfig, apps
from django.utils.autoreload import DJANGO_AUTORELOAD_ENV, get_child_arguments, get_reloader

from djmease.server.sources import Stamps, stamps

RELOAD_EXIT_CODE = 3
SUPERVISOR_ENV = "DJMEASE_SUPERVISOR"
"""Names the variable that tells a child the process id of its supervisor."""
PARENT_INTERVAL = 1.0
"""Seconds between two looks of a child at whether its parent lives."""
LOOK_INTERVAL = 1.0
"""Seconds between two looks for what the reloader does not see, or for what mends a server that does not start."""
STOP_TIMEOUT = 15.0
"""Seconds that a child has to end before it is killed."""

Write = Callable[[str], object]


def ending_signals() -> list[signal.Signals]:
    """Return what ends a server: also that its terminal is closed, unless it was started by ``nohup``."""
    closes = [] if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else [signal.SIGHUP]
    return [signal.SIGINT, signal.SIGTERM, *closes]


def is_child() -> bool:
    """Tell whether this process is a child that a supervisor has started."""
    return os.environ.get(DJANGO_AUTORELOAD_ENV) == "true" and SUPERVISOR_ENV in os.environ


def server_arguments() -> list[str]:
    """Return the command that runs this process again."""
    return [str(argument) for argument in get_child_arguments()]


def site_arguments(address: str) -> list[str]:
    """Return the command that runs Django's ``runserver`` on ``address``, by the same way as this process was run."""
    command = server_arguments()
    # What this process was called with comes last, behind the name of our command.
    own = len(sys.argv) - 1
    return [*command[: len(command) - own], "runserver", address]


def watch_code(on_change: Callable[[], None]) -> None:
    """Call ``on_change`` from a daemon thread, once, when a file of the running code has changed.

    Django's reloader looks at what has been imported: that an app has got its first ``mease_registry`` it does not see.
    """
    once = threading.Lock()

    def change() -> None:
        if once.acquire(blocking=False):
            on_change()

    def watch() -> None:
        try:
            get_reloader().run(threading.main_thread())
        except SystemExit:
            change()

    def look_for_registries() -> None:
        while not any(map(_has_new_registry, apps.get_app_configs())):
            time.sleep(LOOK_INTERVAL)
        change()

    for target in (watch, look_for_registries):
        threading.Thread(target=target, name="djmease-reloader", daemon=True).start()


def _has_new_registry(app: AppConfig) -> bool:
    is_loaded = f"{app.name}.mease_registry" in sys.modules
    return not is_loaded and (Path(app.path) / "mease_registry.py").exists()


async def parent_has_gone() -> None:
    """Return when the supervisor that started this child has ended, perhaps long ago: nobody else would end it then."""
    supervisor = int(os.environ[SUPERVISOR_ENV])
    while os.getppid() == supervisor:
        await asyncio.sleep(PARENT_INTERVAL)


class Supervisor:
    """Runs a server, and beside it perhaps a site, until one signal ends both."""

    def __init__(
        self,
        *,
        server: Sequence[str],
        site: Sequence[str] | None,
        site_environment: Mapping[str, str],
        write: Write,
        pass_fds: Sequence[int] = (),
    ) -> None:
        self._server = server
        self._site = site
        self._site_process: Process | None = None
        self._is_site_renewed = False
        """Whether the site has been ended to be started again."""
        self._site_environment = site_environment
        self._write = write
        self._pass_fds = pass_fds
        self._stopping = asyncio.Event()

    async def run(self) -> int:
        """Return the exit code: 0 after a signal, else that of what failed."""
        loop = asyncio.get_running_loop()
        for number in ending_signals():
            loop.add_signal_handler(number, self._stopping.set)
        tasks = [asyncio.create_task(self._serve()), asyncio.create_task(self._stopping.wait())]
        if self._site:
            tasks.append(asyncio.create_task(self._run_site(self._site)))
        ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        has_been_asked = self._stopping.is_set()
        self._stopping.set()
        if self._site_process is not None:
            await _end(self._site_process)
        server_code, *_ = await asyncio.gather(*tasks)
        # A server that was asked before it could listen to signals has ended as it was asked to.
        cause = server_code if has_been_asked else max(task.result() for task in ended)
        return 0 if cause in (-signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP) else int(cause)

    async def _serve(self) -> int:
        """Run the server again and again, until it ends for another reason than a change of its code."""
        has_run = False
        while True:
            before = await asyncio.to_thread(stamps)  # What is mended while it starts counts, too.
            process = await asyncio.create_subprocess_exec(
                *self._server,
                env={**os.environ, DJANGO_AUTORELOAD_ENV: "true", SUPERVISOR_ENV: str(os.getpid())},
                pass_fds=tuple(self._pass_fds),
            )
            code = await self._wait(process)
            if self._stopping.is_set():
                return code
            if code == RELOAD_EXIT_CODE:
                has_run = True
            elif code and has_run:
                self._write("The server does not start any more: waiting for a change of its code.\n")
                await self._wait_for_change(before)
                await self._renew_site()
            else:
                return code

    async def _wait(self, process: Process) -> int:
        waiting = asyncio.create_task(process.wait())
        stopping = asyncio.create_task(self._stopping.wait())
        await asyncio.wait([waiting, stopping], return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        return await _end(process)

    async def _wait_for_change(self, before: Stamps) -> None:
        """Wait until a file of the code changes, comes or goes, or a signal comes."""
        while not self._stopping.is_set():
            if changed := before ^ await asyncio.to_thread(stamps):
                path, _ = min(changed)
                self._write(f"{path} changed, reloading.\n")
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_INTERVAL):
                    await self._stopping.wait()

    async def _run_site(self, command: Sequence[str]) -> int:
        """Run the site until it ends, and again where it was ended for that."""
        while True:
            self._is_site_renewed = False
            site = self._site_process = await self._start_site(command)
            if self._stopping.is_set():
                await _end(site)  # Whoever stopped us has not seen this one.
            code = await self._watch_site(site)
            if self._stopping.is_set():
                return code
            if not self._is_site_renewed:
                self._write(f"site | runserver has ended with exit code {code}\n")
                return code

    async def _renew_site(self) -> None:
        """Start the site again: what kept the server from starting did so with the site, which may not see the cure.

        Django's reloader looks at what has been imported, and not for what could not be.
        """
        if self._site_process is not None and not self._stopping.is_set():
            self._is_site_renewed = True
            await _end(self._site_process)

    async def _start_site(self, command: Sequence[str]) -> Process:
        environment = {name: value for name, value in os.environ.items() if name != DJANGO_AUTORELOAD_ENV}
        return await asyncio.create_subprocess_exec(
            *command,
            env={**environment, **self._site_environment, "PYTHONUNBUFFERED": "1"},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )

    async def _watch_site(self, site: Process) -> int:
        """Print what the site prints, told apart, until it ends."""
        assert site.stdout is not None
        while line := await _next_line(site.stdout):
            self._write(f"site | {line.decode(errors='replace')}")
        return await site.wait()


async def _next_line(stream: asyncio.StreamReader) -> bytes:
    """Return the next line, however long it is; nothing at the end."""
    line = b""
    while True:
        try:
            return line + await stream.readuntil()
        except asyncio.IncompleteReadError as error:
            return line + error.partial
        except asyncio.LimitOverrunError as error:
            line += await stream.read(error.consumed)


async def _end(process: Process) -> int:
    """Ask a process to end if it has not, wait for it, and return its exit code."""
    if process.returncode is None:
        process.terminate()
        try:
            async with asyncio.timeout(STOP_TIMEOUT):
                await process.wait()
        except TimeoutError:
            process.kill()
    return await process.wait()
