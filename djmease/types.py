"""What callbacks are handed, as protocols for annotations, without importing Tornado."""

from __future__ import annotations

from collections.abc import Awaitable, Iterator
from typing import Any, Protocol, overload, runtime_checkable


@runtime_checkable
class Client(Protocol):
    """One connection: a Tornado ``WebSocketHandler`` with an id and a storage of its own.

    Every method may be called from any thread. Writing to a client that has gone is no error.
    """

    @property
    def id(self) -> str:
        """Sixteen hexadecimal digits, unique among all clients of all servers."""

    @property
    def storage(self) -> dict[str, Any]:
        """A dictionary for the life of the connection, for callbacks to keep things in."""

    @property
    def user(self) -> Any:
        """Whom the authenticators say this is; ``AnonymousUser`` else, ``None`` where the site has no users."""

    @property
    def session(self) -> Any:
        """Django's session of the handshake's cookie, ``None`` where the site has no sessions."""

    @property
    def groups(self) -> frozenset[str]:
        """The groups it is in."""

    presence: dict[str, Any]
    """What others are told of it in groups with presence (``MEASE_PRESENCE``), a kilobyte as JSON at most; an opener
    sets it, or who else does so before ``join``. To set what is no such dict raises ``TypeError`` or ``ValueError``."""

    @property
    def person_key(self) -> str:
        """Whom it belongs to in groups with presence: ``Person.key`` of a user's clients, else of this one alone."""

    def join(self, group: str) -> None:
        """Put it into a group; in a thread, return when what is published to the group reaches it.

        Raises ``ValueError`` for a name that is not one.
        """

    async def ajoin(self, group: str) -> None:
        """Put it into a group on the loop, and return when what is published to the group reaches it.

        Raises ``ValueError`` for a name that is not one.
        """

    def leave(self, group: str) -> None:
        """Take it out of a group, if it is in there. Raises ``ValueError`` for a name that is not one."""

    @property
    def request(self) -> Any:
        """Tornado's ``HTTPServerRequest`` of the handshake: headers, cookies, path, remote address."""

    def write_message(self, message: Any, binary: bool = False) -> Awaitable[None]:
        """Send ``str`` as text (binary if ``binary``), ``bytes`` as a binary frame, anything else as JSON text.

        Raises ``TypeError`` for what JSON cannot hold, and ``ValueError`` for NaN, for a circular structure, and for
        text that UTF-8 cannot encode.
        """

    def send(self, message: Any, binary: bool = False) -> Awaitable[None]:
        """The same as ``write_message``."""

    def close(self, code: int | None = None, reason: str | None = None) -> None:
        """Close the connection behind what has been written to it (RFC 6455, section 7.4, lists the codes).

        Raises ``ValueError`` for a code that may not be sent, and ``TypeError`` for what is no number or no text.
        """

    def get_query_argument(self, name: str, default: Any = ..., strip: bool = True) -> Any:
        """Return an argument of the handshake's query string, the last of its name.

        Raises Tornado's ``MissingArgumentError`` (in ``djmease.test`` ``LookupError``) where there is none and no
        default.
        """


@runtime_checkable
class ClientsList(Protocol):
    """A snapshot of the clients of this process, in the order in which they came."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Client]: ...

    def __contains__(self, client: object) -> bool: ...

    @overload
    def __getitem__(self, index: int) -> Client: ...

    @overload
    def __getitem__(self, index: slice) -> ClientsList: ...

    def send(self, message: Any, binary: bool = False) -> None:
        """Write to all of them with one encoding. Raises what ``Client.write_message`` does, whoever is in it."""

    def group(self, name: str) -> ClientsList:
        """Return those of them that are in a group. Raises ``ValueError`` for a name that is not one."""

    def user(self, user: Any) -> ClientsList:
        """Return those of them that are a user's: a user, or a primary key.

        Raises ``ValueError`` for a user that is not saved.
        """
