"""What this server calls its channels and keys in Redis."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """All of one prefix, as ``djmease/connections.py`` spells them."""

    channel_prefix: str
    """Before a routing."""
    group_prefix: str
    user_prefix: str
    heartbeat_channel: str
    control_channel: str
    servers_key: str
    server_prefix: str
    """Before a server's id."""
    reply_prefix: str
    """Before a token."""
    presence_prefix: str
