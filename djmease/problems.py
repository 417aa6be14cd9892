"""What can be wrong, as far as the servers' reports tell, each with its cure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from djmease import connections
from djmease.reports import ServerReport

LATE = 3
"""Intervals without a report after which a server is late."""
START_COMMAND = "python manage.py run_websocket_server"


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Why it is not well: what is wrong in a sentence, and what cures it, in the language that is active."""

    kind: str
    """A word for programs: ``redis``, ``no_server``, ``deaf``, ``draining``, ``presence``, ``errors``, ``lost``, ..."""
    text: str
    cure: str
    is_error: bool = True
    """Whether messages do not arrive, or may not; else it wants looking at."""


Place = dict[str, Any]
"""Of which server it is: ``pid`` and ``host``."""


def find_problems(
    servers: Sequence[ServerReport], unread: Sequence[tuple[str, str]], now: float
) -> tuple[Problem, ...]:
    """Return what is wrong, the worst first.

    ``unread`` has the ids of servers whose reports cannot be read, each with the reason; ``now`` is in seconds since
    the epoch.
    """
    found = [_unread(server_id, reason, is_all=not servers) for server_id, reason in unread]
    found += _of_all(servers, is_any_unread=bool(unread))
    for server in servers:
        found += _of_one(server, now)
    return tuple(sorted(found, key=lambda problem: not problem.is_error))


# Of this process


def no_server() -> Problem:
    return Problem(
        kind="no_server",
        text=_("No WebSocket server runs: what is published reaches nobody."),
        cure=_("Start one: %s") % START_COMMAND,
    )


def no_redis(error: Exception) -> Problem:
    return Problem(
        kind="redis",
        text=_("Redis does not answer this process: nothing can be published, and no server can be asked."),
        cure=_("Redis at %(address)s: %(reason)s.")
        % {"address": connections.address(), "reason": connections.reason(error)},
    )


def _unread(server_id: str, reason: str, *, is_all: bool) -> Problem:
    return Problem(
        kind="unread",
        text=_("The report of the server %(id)s cannot be read: %(reason)s.") % {"id": server_id, "reason": reason},
        cure=_("It may run another version of django-mease: run the same in all processes."),
        is_error=is_all,
    )


def _unreported() -> Problem:
    return Problem(
        kind="unreported",
        text=_("Whether a WebSocket server runs is not known: MEASE_REPORT_INTERVAL is None, so none reports."),
        cure=_("Set it to the seconds between two reports, for example 2, and restart the servers."),
    )


# Of all servers together


def _of_all(servers: Sequence[ServerReport], *, is_any_unread: bool) -> Iterator[Problem]:
    # While a new version takes over, the old one is another and stops.
    staying = [server for server in servers if not server.is_draining]
    modules = sorted({server.settings for server in staying})
    if not servers:
        if not is_any_unread:
            yield _unreported() if settings.MEASE_REPORT_INTERVAL is None else no_server()
    elif not staying:
        yield _all_draining()
    elif len(modules) > 1:
        yield _two_sites(modules)
    elif len({server.registry for server in staying}) > 1:
        yield _two_registries()


def _all_draining() -> Problem:
    return Problem(
        kind="draining",
        text=_("All WebSocket servers are stopping, and take no more clients."),
        cure=_("If no new one comes by itself, start one: %s") % START_COMMAND,
    )


def _two_sites(modules: Sequence[str]) -> Problem:
    return Problem(
        kind="mixed",
        text=_("Two sites share one prefix: servers run with the settings %s, and each gets what the other publishes.")
        % _(" and ").join(modules),
        cure=_("Give each site and stage a MEASE_KEY_PREFIX of its own."),
    )


def _two_registries() -> Problem:
    return Problem(
        kind="mixed",
        text=_("Servers run with different callbacks or routes."),
        cure=_("Run the same code with the same settings in all, and restart those that are behind."),
        is_error=False,
    )


# Of one server


def _of_one(server: ServerReport, now: float) -> Iterator[Problem]:
    place = {"pid": server.pid, "host": server.host}
    if server.is_draining:
        yield _stopping(place)
    elif server.trouble is not None:
        yield _deaf(place, server.trouble)
    if server.presence_trouble is not None:
        yield _presence_behind(place, server.presence_trouble)
    if server.recent_errors:
        yield _errors(place, server.recent_errors)
    if server.recent_lost:
        yield _lost(place, server.recent_lost)
    silent = now - server.reported_at
    if silent > LATE * server.interval:
        yield _late(place, silent)


def _stopping(place: Place) -> Problem:
    return Problem(
        kind="stopping",
        text=_("The server %(pid)d on %(host)s is stopping: it sends its clients away, and takes no more.") % place,
        cure=_("Nothing is wrong if somebody restarts it; its clients come back to the others."),
        is_error=False,
    )


def _deaf(place: Place, trouble: str) -> Problem:
    return Problem(
        kind="deaf",
        text=_("The server %(pid)d on %(host)s may not hear what is published: %(trouble)s.")
        % {**place, "trouble": trouble},
        cure=_("It goes on trying, and needs no restart; see to Redis and the network between them."),
    )


def _presence_behind(place: Place, trouble: str) -> Problem:
    return Problem(
        kind="presence",
        text=_("The server %(pid)d on %(host)s could not tell Redis who is in its groups: %(trouble)s.")
        % {**place, "trouble": trouble},
        cure=_(
            "Until it can, presence() is behind, and joins and leaves come late; it goes on trying, and needs no "
            "restart."
        ),
        is_error=False,
    )


def _errors(place: Place, count: int) -> Problem:
    return Problem(
        kind="errors",
        text=ngettext(
            "Callbacks raised once in the last minute in process %(pid)d on %(host)s.",
            "Callbacks raised %(count)d times in the last minute in process %(pid)d on %(host)s.",
            count,
        )
        % {**place, "count": count},
        cure=_("Below is which, with the last error of each; the log has their tracebacks."),
        is_error=False,
    )


def _lost(place: Place, count: int) -> Problem:
    return Problem(
        kind="lost",
        text=_(
            "The server %(pid)d on %(host)s dropped %(count)d messages or calls in the last minute: its callbacks are "
            "slower than what comes."
        )
        % {**place, "count": count},
        cure=_("Let them do less, or run more servers; the log names which."),
    )


def _late(place: Place, seconds: float) -> Problem:
    return Problem(
        kind="late",
        text=_("The server %(pid)d on %(host)s last reported %(seconds)d seconds ago.")
        % {**place, "seconds": round(seconds)},
        cure=_("It may hang, or its clock may differ from this one."),
        is_error=False,
    )
