"""What users test their callbacks with: no Redis, no server and no event loop, in ``TestCase`` and in pytest.

::

    from djmease.test import captured_messages, connect

    with connect(user=ada) as page:                          # the openers have run
        page.send({"type": "chat.say", "text": "hi"})        # the receivers run, and the senders of what they publish
        assert page.received == [{"type": "chat.message", "who": "ada", "text": "hi"}]

``page.join("board.7")`` asks ``MEASE_GROUPS``, as the server does, and raises ``Refused`` with the reason.

Here callbacks run one after the other in the thread of the test, and what they raise reaches it.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Awaitable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from http.cookies import CookieError, SimpleCookie
from types import SimpleNamespace
from typing import Any, Protocol, TypeVar, overload
from urllib.parse import parse_qs, urlsplit

from asgiref.sync import async_to_sync
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured, PermissionDenied, SynchronousOnlyOperation
from django.http import parse_cookie
from django.test import override_settings
from django.utils.datastructures import CaseInsensitiveMapping
from django.utils.module_loading import import_string

from djmease import attendance, loader, publishing, roll
from djmease.identities import TURNED_AWAY, name_of, nobody
from djmease.messages import Message, check_group, encode_body, is_group, new_id, primary_key, to_json
from djmease.registry import Callback, Registry, join_refusal

_REQUIRED: Any = object()
Outlet = TypeVar("Outlet")


@contextmanager
def captured_messages() -> Iterator[list[Message]]:
    """Give the list of what is published in the block, as ``Message`` objects, instead of sending it.

    It has what waits for a commit too, since a ``TestCase`` never commits.
    """
    captured: list[Message] = []
    with _listed(captured.append, publishing.captures):
        yield captured


@contextmanager
def connect(
    *,
    user: Any = None,
    session: Any = None,
    path: str = "/",
    headers: Mapping[str, str] | None = None,
    groups: Iterable[str] = (),
) -> Iterator[Page]:
    """Give a page that is connected: its openers have run, and its closers run at the end of the block.

    ``path`` may have a query. ``headers`` are those of its handshake, and those of ``Cookie`` its cookies; they log
    nobody in: ``user`` and ``session`` are what callbacks shall see. ``session`` may be that of Django's test client,
    or a dict. What is published meanwhile runs the senders on all pages that are connected.

    Raises ``SynchronousOnlyOperation`` on an event loop, where callbacks could not run as they do in the server.
    """
    if publishing.is_on_event_loop():
        raise SynchronousOnlyOperation(
            "djmease.test.connect is for `def` tests: in an `async def` there is an event loop."
        )
    site = _sites[-1] if _sites else _Site()
    with site.running():
        page = Page(site, TestClient(site, user=user, session=session, path=path, headers=headers), groups)
        page.open()
        try:
            yield page
        finally:
            page.close()


@contextmanager
def live_server() -> Iterator[LiveServer]:
    """Give a real server on a free port of 127.0.0.1, in a thread, that hears what this process publishes.

    It needs no Redis, and sees the test's database as Django's live server does: use it with ``LiveServerTestCase``,
    ``TransactionTestCase`` or ``django_db(transaction=True)``, whose data other threads can see. ``url`` is its
    address, and ``settings.MEASE_PORT`` its port for as long as it lives; ``{% mease_script %}`` leads pages there.
    """
    # Nothing of the server is imported where it is not wanted.
    server: LiveServer = import_string("djmease.server.live.LiveServer")()
    with override_settings(ALLOWED_HOSTS=[*settings.ALLOWED_HOSTS, "127.0.0.1"]):  # Its own, which it reads once.
        server.start()
    try:
        with (
            _listed(server.publish, publishing.wires),
            _listed(server.control, publishing.control_wires),
            _listed(lambda group: attendance.read(server.roll(group)), attendance.sources),
            override_settings(MEASE_PORT=server.port, MEASE_URL=None),
        ):
            yield server
    finally:
        server.stop()


@contextmanager
def _listed(outlet: Outlet, outlets: list[Outlet]) -> Iterator[None]:
    outlets.append(outlet)
    try:
        yield
    finally:
        outlets.remove(outlet)


class Refused(Exception):  # noqa: N818 (it is no error of the code that is tested)
    """A page may not join a group; ``reason`` is what the server would tell it."""

    def __init__(self, group: str, reason: str) -> None:
        super().__init__(group, reason)
        self.group = group
        self.reason = reason

    def __str__(self) -> str:
        return f"The page may not join {self.group!r} by MEASE_GROUPS: {self.reason}"


class LiveServer(Protocol):
    """What ``live_server`` gives."""

    port: int

    @property
    def url(self) -> str: ...

    def publish(self, message: Message) -> None: ...

    def control(self, order: dict[str, Any]) -> None: ...

    def roll(self, group: str) -> list[bytes]: ...

    def start(self) -> None: ...

    def stop(self) -> None: ...


class Page:
    """One connection as a test sees it: what a browser's page would send and receive."""

    def __init__(self, site: _Site, client: TestClient, groups: Iterable[str]) -> None:
        self._site = site
        self.client = client
        """What callbacks are handed."""
        for group in groups:
            self.client.join(group)

    @property
    def received(self) -> list[Any]:
        """What callbacks have written: text as ``str``, binary as ``bytes``, anything else as its JSON parses."""
        return self.client.written

    @property
    def close_code(self) -> int | None:
        """With what a callback closed the connection, ``None`` while it is open."""
        return self.client.close_code

    def open(self) -> None:
        self._site.entering.append(self.client)
        try:
            for opener in self._site.registry.openers:
                self._site.run(opener, client=self.client)
        except PermissionDenied as error:
            self.client.is_turned_away = True
            self.client.close(TURNED_AWAY, str(error))
        else:
            self._site.settle()
        finally:
            self._site.entering.remove(self.client)
        if not self.client.is_turned_away:
            self._site.add(self.client)
        self._site.settle()

    def send(self, message: Any) -> None:
        """Send ``str`` or ``bytes`` as it is, anything else as JSON text: the receivers run, if it is connected."""
        if not self.client.is_open:
            return
        frame = message if isinstance(message, (str, bytes)) else to_json(message)
        received = self._site.registry.receivers_for(frame)
        for receiver, value in received.calls:
            reason = receiver.rule.refusal(self.client.user) if receiver.rule else None
            if reason is None:
                self._site.run(receiver, client=self.client, message=value)
            elif received.is_json:
                self.client.write_message({"type": "mease.refused", "reason": reason, "refused": received.kind})
        self._site.settle()

    def join(self, group: str) -> None:
        """Join a group as ``live.group(group)`` of ``mease.js`` does, by the rules of ``MEASE_GROUPS``.

        Raises ``Refused`` where they do not let it in, with the reason that the page would be told, and what the
        rule's own test raises. A page that is closed joins nothing.
        """
        client = self.client
        if not client.is_open:
            return
        rule = self._site.registry.group_rule(group) if is_group(group) else None
        reason = None if rule is None else rule.refusal(client.user, group)
        reason = reason or join_refusal(rule, group, client.own_groups, settings.MEASE_MAX_GROUPS)
        if reason is not None:
            raise Refused(group, reason)
        client.own_groups |= {group}
        client.join(group)

    def leave(self, group: str) -> None:
        """Leave a group that it has joined by ``join``; a page cannot leave where a callback has put it."""
        if self.client.is_open and group in self.client.own_groups:
            self.client.own_groups -= {group}
            self.client.leave(group)

    def close(self) -> None:
        """Go: the closers run, once."""
        if self.client.is_open:
            self.client.is_open = False
            self._site.leave(self.client)


class _Site:
    """The pages of one test and the callbacks they meet."""

    def __init__(self) -> None:
        loaded = loader.load()
        errors = [fault for fault in loaded.faults if fault.is_error]
        if errors:
            raise ImproperlyConfigured("\n".join(f"{fault.message} {fault.hint}" for fault in errors))
        self.registry: Registry = loaded.registry
        self.clients: list[TestClient] = []
        self.entering: list[TestClient] = []
        """Those whose openers run, which hear only of the groups that they have been put into."""
        self._roll: dict[str, dict[str, list[_Present]]] = {}
        """Of each group, and each person in it, the clients with what they told when they joined."""
        self._leaving: list[TestClient] = []
        """Those that are closed, and whose closers have still to run."""
        self._published: deque[Message] = deque()
        self._is_busy = False

    @contextmanager
    def running(self) -> Iterator[None]:
        """Be the site on which messages are published, together with the pages around."""
        if self in _sites:
            yield
            return
        _sites.append(self)
        try:
            with _listed(self._publish, publishing.captures), _listed(self._persons, attendance.sources):
                yield
        finally:
            _sites.remove(self)

    def add(self, client: TestClient) -> None:
        """Count a client among the others, whose openers have run."""
        self.clients.append(client)
        for group in client.groups:
            self.joined(client, group)

    def leave(self, client: TestClient) -> None:
        """Count a client no more, and run the closers, behind the callbacks that run."""
        self._leaving.append(client)
        self.settle()

    def _remove(self, client: TestClient) -> None:
        client.is_present = False
        if client in self.clients:
            self.clients.remove(client)
            for group in client.groups:
                self.left(client, group)
        for closer in self.registry.closers:
            self.run(closer, client=client)

    def joined(self, client: TestClient, group: str) -> None:
        """Put a client on the roll of a group that it has joined, if that has presence."""
        if not attendance.covers(group):
            return
        described = roll.describe(
            name=name_of(client.user), user_key=client.user_key, client_id=client.id, info=client.presence_json
        )
        present = self._roll.setdefault(group, {}).setdefault(_person(client), [])
        present.append((client, time.time(), described))
        if len(present) == 1:
            self._publish(roll.message_of(group, "join", *present[0][1:]))

    def left(self, client: TestClient, group: str) -> None:
        """Take a client off the roll of a group that it has left."""
        present = self._roll.get(group, {}).pop(_person(client), [])
        others = [each for each in present if each[0] is not client]
        if others:
            self._roll[group][_person(client)] = others
        elif present:
            self._publish(roll.message_of(group, "leave", *present[0][1:]))

    def _persons(self, group: str) -> list[attendance.Person]:
        return attendance.read(
            roll.entry_of(len(present), *present[0][1:]) for present in self._roll.get(group, {}).values()
        )

    def run(self, callback: Callback, **arguments: Any) -> None:
        arguments.setdefault("clients_list", TestClientsList(self.clients))
        was_busy, self._is_busy = self._is_busy, True
        try:
            if callback.is_async:
                async_to_sync(_call_async)(callback, arguments)
            else:
                callback(arguments)
        finally:
            self._is_busy = was_busy

    def settle(self) -> None:
        """Do what the server would behind the callback that ran: closers, and senders of what has been published."""
        while not self._is_busy:
            # Openers are not overtaken: a client that one of them closes has come, and goes.
            gone = next((client for client in self._leaving if client not in self.entering), None)
            if gone is not None:
                self._leaving.remove(gone)
                self._remove(gone)
            elif self._published:
                message = self._published.popleft()
                for sender in self.registry.senders_for(message.routing):
                    self.run(sender, routing=message.routing, message=message.body, clients_list=self._select(message))
            else:
                return

    def _publish(self, message: Message) -> None:
        self._published.append(message)
        self.settle()

    def _select(self, message: Message) -> TestClientsList:
        candidates = self.clients if message.groups is None else [*self.clients, *self.entering]
        return TestClientsList(
            client
            for client in candidates
            if (message.groups is None or client.groups.intersection(message.groups))
            and (message.users is None or client.user_key in message.users)
        )


async def _call_async(callback: Callback, arguments: dict[str, Any]) -> None:
    await callback(arguments)


_Present = tuple["TestClient", float, str]
"""A client, when it joined, and what was told of it, as JSON."""
_sites: list[_Site] = []


def _person(client: TestClient) -> str:
    return roll.person_key(client.user_key, client.id)


class _Finished:
    def __await__(self) -> Generator[None, None, None]:
        return
        yield


class TestClient:
    """A client without a connection, as callbacks are handed it."""

    __test__ = False

    def __init__(self, site: _Site, *, user: Any, session: Any, path: str, headers: Mapping[str, str] | None) -> None:
        parts = urlsplit(path)
        self._arguments = parse_qs(parts.query, keep_blank_values=True)
        self.id = new_id()
        self.storage: dict[str, Any] = {}
        self.presence_json = "{}"
        self._groups: frozenset[str] = frozenset()
        self.own_groups: frozenset[str] = frozenset()
        """Those that its page has joined."""
        stranger, sent = nobody(), CaseInsensitiveMapping(headers or {})
        self.user = stranger.user if user is None else user
        self.session = stranger.session if session is None else session
        self.request = SimpleNamespace(
            path=parts.path,
            query=parts.query,
            headers=sent,
            cookies=_cookies(sent.get("Cookie", "")),
            remote_ip="127.0.0.1",
            protocol="http",
        )
        self.written: list[Any] = []
        self.close_code: int | None = None
        self.is_open = True
        """Whether it hears and is heard."""
        self.is_present = True
        """Whether it may join groups: until its closers run."""
        self.is_turned_away = False
        self._site = site

    @property
    def groups(self) -> frozenset[str]:
        return self._groups

    @property
    def user_key(self) -> str | None:
        key = getattr(self.user, "pk", None)
        return None if key is None else str(key)

    @property
    def person_key(self) -> str:
        return self.id if self.user_key is None else self.user_key

    @property
    def presence(self) -> dict[str, Any]:
        presence: dict[str, Any] = json.loads(self.presence_json)
        return presence

    @presence.setter
    def presence(self, info: dict[str, Any]) -> None:
        self.presence_json = roll.encode_info(info)

    def join(self, group: str) -> None:
        if check_group(group) not in self.groups and self.is_present:
            self._groups |= {group}
            if self in self._site.clients:
                self._site.joined(self, group)

    async def ajoin(self, group: str) -> None:
        self.join(group)

    def leave(self, group: str) -> None:
        if check_group(group) in self.groups:
            self._groups -= {group}
            if self in self._site.clients:
                self._site.left(self, group)

    def write_message(self, message: Any, binary: bool = False) -> Awaitable[None]:
        if self.is_open:
            self.written.append(_as_received(message, binary))
        return _Finished()

    send = write_message

    def close(self, code: int | None = None, reason: str | None = None) -> None:
        if not isinstance(code, int | None) or not isinstance(reason, str | None):
            raise TypeError(f"close takes a number and a text, not {code!r} and {reason!r}")
        if code is not None and not import_string("djmease.server.protocol.is_sendable_close_code")(code):
            raise ValueError(f"close code {code!r} may not be sent")
        if self.is_open:
            self.is_open = False
            self.close_code = 1000 if code is None else code
            self._site.leave(self)

    def get_query_argument(self, name: str, default: Any = _REQUIRED, strip: bool = True) -> Any:
        values = self._arguments.get(name)
        if values:
            return values[-1].strip() if strip else values[-1]
        if default is _REQUIRED:
            raise LookupError(f"the path of this client has no query argument {name!r}")
        return default


def _as_received(message: Any, binary: bool) -> Any:
    kind, body = encode_body(message)
    if kind == b"b" or binary:
        return body
    return body.decode() if kind == b"t" else json.loads(body)


def _cookies(header: str) -> SimpleCookie:
    """Return the cookies of a header as Tornado's request has them: without those that SimpleCookie does not take."""
    cookies = SimpleCookie()
    for name, value in parse_cookie(header).items():
        with suppress(CookieError):
            cookies[name] = value
    return cookies


class TestClientsList(Sequence[TestClient]):
    """A snapshot of the clients of a test."""

    __test__ = False

    def __init__(self, clients: Iterable[TestClient]) -> None:
        self._clients = tuple(clients)

    def __len__(self) -> int:
        return len(self._clients)

    @overload
    def __getitem__(self, index: int) -> TestClient: ...
    @overload
    def __getitem__(self, index: slice) -> TestClientsList: ...
    def __getitem__(self, index: int | slice) -> TestClient | TestClientsList:
        return TestClientsList(self._clients[index]) if isinstance(index, slice) else self._clients[index]

    def send(self, message: Any, binary: bool = False) -> None:
        _as_received(message, binary)  # What cannot be encoded is an error also where nobody is to get it.
        for client in self._clients:
            client.write_message(message, binary)

    def group(self, name: str) -> TestClientsList:
        group = check_group(name)
        return TestClientsList(client for client in self if group in client.groups)

    def user(self, user: Any) -> TestClientsList:
        key = primary_key(user)
        return TestClientsList(client for client in self if client.user_key == key)
