"""Where ``run_websocket_server`` listens, by its options and the settings, and whether pages find it there."""

from __future__ import annotations

import errno
import os
import re
import socket
from collections.abc import Iterator
from ipaddress import ip_address
from typing import Any

from django.conf import settings
from django.core.management.base import CommandError
from tornado.netutil import bind_sockets, bind_unix_socket

from djmease.templatetags.djmease import PORT_ENV, server_url

BACKLOG = 4096
_ADDRESS = re.compile(r"(?:(?P<host>\[[0-9a-fA-F:.]+\]|[^:\[\]]+):)?(?P<port>[0-9]{1,5})")


def bind(options: dict[str, Any]) -> list[socket.socket]:
    """Listen where the options want it. Raises ``CommandError`` where that cannot be."""
    if options["fd"] is not None:
        return [_inherited(options["fd"])]
    if options["unix"] is not None:
        return [_bind_unix(options["unix"])]
    host, port = _parse_address(options["address"])
    try:
        return bind_sockets(port, host, backlog=BACKLOG)
    except (OSError, UnicodeError) as error:
        told = getattr(error, "strerror", None) or str(error)
        raise CommandError(f"The server cannot listen on {host}:{port} ({told}): {_cure(error, port)}") from error


def site_environment(options: dict[str, Any]) -> dict[str, str]:
    """Return what tells a site that runs beside the server on which port that is, where its settings do not."""
    port = _named_port(options)
    return {PORT_ENV: str(port)} if port else {}


def pages(options: dict[str, Any], sockets: list[socket.socket]) -> Iterator[str]:
    """Say what of this server browsers would not find."""
    if settings.MEASE_URL is None and settings.MEASE_PORT and not (options["with_site"] and _named_port(options)):
        ports = [listening.getsockname()[1] for listening in sockets if _has_port(listening)]
        if settings.MEASE_PORT not in ports:
            cure = f"MEASE_PORT = {ports[0]}" if ports else "MEASE_URL = '/ws/', if a proxy hands that on,"
            yield f"connect to {server_url()} (MEASE_PORT), and not here: {cure} in the settings leads them"
    if options["with_site"] and not _is_local(_site_host(options["with_site"])) and all(map(_is_of_here, sockets)):
        yield "on other machines get the site and no WebSocket: MEASE_HOST = '0.0.0.0' in the settings lets them in"


def _named_port(options: dict[str, Any]) -> int | None:
    """Return the port that the command was given, if it is known before the server listens."""
    return _parse_address(options["address"])[1] or None if options["address"] else None


def _parse_address(text: str | None) -> tuple[str, int]:
    if text is None:
        return settings.MEASE_HOST, settings.MEASE_PORT
    match = _ADDRESS.fullmatch(text)
    if match is None or int(match["port"]) > 65535:
        raise CommandError(
            f"{text!r} is not an address: it should be a port, or an address and a port, as 0.0.0.0:8001"
        )
    return (match["host"] or settings.MEASE_HOST).strip("[]"), int(match["port"])


def _cure(error: OSError | UnicodeError, port: int) -> str:
    number = error.errno if isinstance(error, OSError) and not isinstance(error, socket.gaierror) else None
    if number in (None, errno.EADDRNOTAVAIL):
        return (
            "set MEASE_HOST, or what is named instead, to an address of this machine: 127.0.0.1 for its own browsers "
            "alone, 0.0.0.0 for all"
        )
    another = 8002 if port != 8002 else 8003
    if number == errno.EADDRINUSE:
        return (
            f"stop what listens there, or set MEASE_PORT = {another} in the settings, by which pages find it too. "
            f"For once, python manage.py run_websocket_server {another} --with-site tells it to the site beside it"
        )
    return f"name another port, by MEASE_PORT = {another} in the settings"


def _bind_unix(path: str) -> socket.socket:
    """Listen on a Unix socket; one that a dead server has left is replaced, one that answers is in use."""
    if not path:
        raise CommandError("--unix names no path: say one, as /run/shop/websocket.sock, or leave it out.")
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except OSError:
            pass
        else:
            raise CommandError(f"Another server listens on {path}: stop it, or name another path.")
    umask = os.umask(0)
    os.umask(umask)
    try:
        return bind_unix_socket(path, mode=0o666 & ~umask, backlog=BACKLOG)
    except (OSError, ValueError) as error:
        raise CommandError(f"The server cannot listen on {path}: {error}") from error


def _inherited(number: int) -> socket.socket:
    try:
        inherited = socket.socket(fileno=number)
        inherited.setblocking(False)
    except (OSError, ValueError) as error:
        raise CommandError(f"--fd {number} is not an open socket: {error}") from error
    return inherited


def _has_port(listening: socket.socket) -> bool:
    return listening.family in (socket.AF_INET, socket.AF_INET6)


def _is_of_here(listening: socket.socket) -> bool:
    return _has_port(listening) and _is_local(listening.getsockname()[0])


def _site_host(text: str) -> str:
    """Return the host of an address of ``runserver``, which is this machine's own where it is a port alone."""
    host, separator, _ = text.rpartition(":")
    return host.strip("[]") if separator else "localhost"


def _is_local(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
