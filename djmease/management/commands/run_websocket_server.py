"""``python manage.py run_websocket_server``: settings in, server out."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
from argparse import ArgumentParser
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from typing import Any

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError
from redis.exceptions import RedisError

from djmease import checks, connections, embedded, loader
from djmease.management import listening
from djmease.management.terminal import let_go_of_output, open_output
from djmease.registry import Registry
from djmease.server.banner import banner
from djmease.server.factory import addresses, make_server
from djmease.server.processes import (
    RELOAD_EXIT_CODE,
    Supervisor,
    ending_signals,
    is_child,
    parent_has_gone,
    server_arguments,
    site_arguments,
    watch_code,
)
from djmease.server.server import Server
from djmease.server.tls import CertificateError, TLSContext, make_context, reload

logger = logging.getLogger("djmease.server")

LOGGERS = ("server", "listener", "publishing", "traffic")
DEFAULT_SITE = "127.0.0.1:8000"


class Command(BaseCommand):
    help = "Runs the WebSocket server: example: python manage.py run_websocket_server 0.0.0.0:8001"
    requires_system_checks: list[str] = []
    suppressed_base_arguments = {"--traceback"}

    def add_arguments(self, parser: ArgumentParser) -> None:
        where = parser.add_mutually_exclusive_group()
        where.add_argument(
            "address", nargs="?", metavar="[addr:]port", help="where to listen (MEASE_HOST and MEASE_PORT)"
        )
        where.add_argument("--unix", metavar="PATH", help="listen on a Unix socket")
        where.add_argument("--fd", type=int, metavar="N", help="listen on a socket that is open already, as number N")
        parser.add_argument(
            "--certificate", metavar="PATH", help="serve wss:// with this certificate (PEM, its chain too)"
        )
        parser.add_argument(
            "--key", metavar="PATH", help="the certificate's private key, if it is not in the same file"
        )
        parser.add_argument("--noreload", action="store_true", help="do not restart when code changes (DEBUG does)")
        parser.add_argument(
            "--with-site",
            nargs="?",
            const=DEFAULT_SITE,
            metavar="[addr:]port",
            help=f"for development: run Django's runserver beside it, by default on {DEFAULT_SITE}",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        open_output(self)
        _configure_logging(verbose=options["verbosity"] >= 2 or settings.DEBUG)
        try:
            exit_code = self._run(options)
        except ImproperlyConfigured as error:
            raise CommandError(str(error)) from error
        if exit_code:
            sys.exit(exit_code)

    def _run(self, options: dict[str, Any]) -> int:
        may_reload = settings.DEBUG and not options["noreload"]
        ssl_context = _ssl_context(options)
        # Until the event loop takes the signals over: what has been started ends with us.
        for number in ending_signals():
            signal.signal(number, lambda *_: sys.exit(0))
        with ExitStack() as stack:
            revive = self._share_embedded(stack)
            if (may_reload or options["with_site"]) and not is_child():
                return asyncio.run(self._supervise(options))
            return asyncio.run(self._serve(options, revive, ssl_context, may_reload=may_reload))

    def _share_embedded(self, stack: ExitStack) -> Callable[[], Awaitable[None]] | None:
        """Hold a share in the embedded Valkey for as long as this process lives, through all reloads of its child."""
        if not connections.is_embedded():
            return None
        valkey = embedded.EmbeddedValkey(embedded.directory())
        stack.callback(valkey.release)
        valkey.acquire()

        async def revive() -> None:
            await asyncio.to_thread(valkey.ensure_running)

        return revive

    async def _supervise(self, options: dict[str, Any]) -> int:
        site = options["with_site"]
        fd = options["fd"]
        return await Supervisor(
            server=server_arguments(),
            site=site_arguments(site) if site else None,
            site_environment=listening.site_environment(options) if site else {},
            write=self._write,
            pass_fds=[] if fd is None else [fd],
        ).run()

    def _write(self, text: str) -> None:
        """Tell something; a server goes on where nobody reads it, or the disk is full."""
        try:
            self.stdout.write(text, ending="")
            self.stdout.flush()
        except BrokenPipeError:
            let_go_of_output()
        except OSError as error:
            logger.warning("what the server says cannot be written: %s", error)

    async def _serve(
        self,
        options: dict[str, Any],
        revive: Callable[[], Awaitable[None]] | None,
        ssl_context: TLSContext | None,
        *,
        may_reload: bool,
    ) -> int:
        registry, warnings = _load_registry()
        sockets = listening.bind(options)
        server = make_server(registry, sockets, revive=revive, ssl_context=ssl_context)
        exit_code = 0

        loop = asyncio.get_running_loop()

        def stop_to_reload() -> None:
            nonlocal exit_code
            exit_code = RELOAD_EXIT_CODE
            server.stop()

        def on_change() -> None:
            loop.call_soon_threadsafe(stop_to_reload)

        for number in ending_signals():
            loop.add_signal_handler(number, server.drain)
        if ssl_context is not None:
            loop.add_signal_handler(signal.SIGHUP, _renew_certificate, ssl_context, options)
        try:
            await server.start()
        except (RedisError, OSError, TimeoutError) as error:
            raise CommandError(
                f"The server cannot hear Redis at {connections.address()}: {connections.reason(error)}."
            ) from error
        pages = list(listening.pages(options, sockets))
        self._write(_banner(registry, sockets, "ws" if ssl_context is None else "wss", pages) + "\n")
        for warning in warnings:
            logger.warning("%s", warning)
        # What has been loaded stays: the collector need not walk through all of Django again and again.
        gc.collect()
        gc.freeze()
        if may_reload:
            watch_code(on_change)
        orphaned = asyncio.create_task(self._stop_as_orphan(server))
        await server.serve()
        orphaned.cancel()
        return exit_code

    async def _stop_as_orphan(self, server: Server) -> None:
        if is_child():
            await parent_has_gone()
            server.stop()


def _configure_logging(*, verbose: bool) -> None:
    """Show our log lines where the site's LOGGING shows none, and a line per message where that is wanted."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("[%(asctime)s] %(levelname)s %(message)s", "%H:%M:%S"))
    for name in LOGGERS:
        logger = logging.getLogger(f"djmease.{name}")
        is_traffic, is_ours = name == "traffic", not logger.hasHandlers()
        if logger.level == logging.NOTSET and (is_traffic or is_ours):
            logger.setLevel(logging.WARNING if is_traffic and not verbose else logging.INFO)
        if is_ours:
            logger.addHandler(handler)


def _load_registry() -> tuple[Registry, list[str]]:
    """Resolve the registry, and return it with what ``manage.py check`` warns of; refuse what it calls an error."""
    faults = [(fault.is_error, f"{fault.message} {fault.hint} ({fault.id})") for fault in checks.faults()]
    errors = [text for is_error, text in faults if is_error]
    if errors:
        raise CommandError("\n".join(errors))
    return loader.load().registry, [text for _, text in faults]


def _ssl_context(options: dict[str, Any]) -> TLSContext | None:
    if options["certificate"] is None:
        if options["key"] is not None:
            raise CommandError("--key goes with --certificate: name the certificate's file too.")
        return None
    if options["unix"] is not None:
        raise CommandError(
            "--certificate does not go with --unix: who connects there is on this machine; leave one out."
        )
    try:
        return make_context(options["certificate"], options["key"])
    except CertificateError as error:
        raise CommandError(str(error)) from error


def _renew_certificate(context: TLSContext, options: dict[str, Any]) -> None:
    try:
        reload(context, options["certificate"], options["key"])
    except CertificateError as error:
        logger.error("the old certificate is kept: %s", error)
    else:
        logger.info("new connections get the certificate that is in %s now", options["certificate"])


def _banner(registry: Registry, sockets: list[socket.socket], scheme: str, pages: list[str]) -> str:
    redis = connections.address()
    return banner(
        registry=registry,
        settings_module=os.environ.get("DJANGO_SETTINGS_MODULE", "settings.configure()"),
        addresses=addresses(sockets, scheme),
        pages=pages,
        redis=f"{redis} (embedded Valkey)" if connections.is_embedded() else redis,
    )
