"""What the settings say of a server, as plain values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Each is the setting of its name, or nearly so; times are seconds, and sizes bytes."""

    path: str | None
    """The only one of WebSockets; ``None`` is any."""
    max_header_size: int
    handshake_timeout: float
    compression: bool
    max_message_size: int
    max_client_buffer: int
    ping_interval: float
    ping_timeout: float
    max_workers: int | None
    slow_callback_timeout: float
    max_groups: int
    presence: Sequence[str]
    """Patterns of the groups that have it."""
    recheck_interval: float
    drain_timeout: float
    report_interval: float | None
    """``None`` is no report."""
    report_bodies: bool
    metrics_allow: Sequence[str]
