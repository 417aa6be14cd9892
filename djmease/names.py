"""What the channels and keys in Redis are called."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote


@dataclass(frozen=True, slots=True)
class Names:
    """All names of one ``MEASE_KEY_PREFIX``.

    The pattern of what is published to everybody, which is ``channel_prefix`` and a star, matches no other of them.
    """

    prefix: str
    """What stands before every channel and key."""

    @property
    def channel_prefix(self) -> str:
        """What stands before a routing, in the name of the channel of what is published on it to everybody."""
        return f"{self.prefix}:"

    @property
    def group_prefix(self) -> str:
        """What stands before a group, in the name of the channel of what is published to it."""
        return f"{self.prefix}.group:"

    @property
    def user_prefix(self) -> str:
        """What stands before a user's primary key, in the name of the channel of what is published to the user."""
        return f"{self.prefix}.user:"

    @property
    def heartbeat_channel(self) -> str:
        """The channel of the servers' heartbeats."""
        return f"{self.prefix}.heartbeat"

    @property
    def control_channel(self) -> str:
        """The channel of orders to the servers."""
        return f"{self.prefix}.control"

    @property
    def servers_key(self) -> str:
        """The key of the sorted set of the servers that report, by the time of their last report."""
        return f"{self.prefix}.servers"

    @property
    def presence_prefix(self) -> str:
        """What stands before the keys of who is in which group."""
        return f"{self.prefix}.presence."

    def routing_channel(self, routing: str) -> str:
        """Return the channel of what is published on a routing to everybody."""
        return self.channel_prefix + routing

    def group_channel(self, group: str) -> str:
        """Return the channel of what is published to a group."""
        return self.group_prefix + group

    def user_channel(self, key: str) -> str:
        """Return the channel of what is published to a user, by its primary key, which may be any text."""
        return self.user_prefix + quote(key, safe="")

    def server_key(self, server_id: str) -> str:
        """Return the key of a server's report."""
        return f"{self.prefix}.server.{server_id}"

    def reply_key(self, token: str) -> str:
        """Return the key to which servers add their answers for whoever asked with this token."""
        return f"{self.prefix}.reply.{token}"

    def ticket_key(self, ticket_id: str) -> str:
        """Return the key that says that a ticket was used."""
        return f"{self.prefix}.ticket.{ticket_id}"
