"""What the channels and keys in Redis are called, which other processes and other versions go by."""

from __future__ import annotations

from djmease.names import Names

NAMES = Names("p")


def test_the_channel_of_a_routing_is_the_prefix_a_colon_and_the_routing() -> None:
    assert NAMES.routing_channel("news") == "p:news"
    assert NAMES.channel_prefix == "p:"


def test_nothing_else_is_heard_by_the_pattern_of_what_is_for_everybody() -> None:
    others = {
        NAMES.group_channel("a"): "p.group:a",
        NAMES.user_channel("7"): "p.user:7",
        NAMES.heartbeat_channel: "p.heartbeat",
        NAMES.control_channel: "p.control",
        NAMES.servers_key: "p.servers",
        NAMES.server_key("a"): "p.server.a",
        NAMES.reply_key("a"): "p.reply.a",
        NAMES.ticket_key("a"): "p.ticket.a",
        NAMES.presence_prefix: "p.presence.",
    }
    assert list(others) == list(others.values())
    assert not any(name.startswith(NAMES.channel_prefix) for name in others)


def test_a_key_with_any_characters_has_its_own_channel() -> None:
    names = {NAMES.user_channel(key) for key in ("a b", "a\nb", "a*b", "a%20b", "é", "a:b", "a")}
    assert len(names) == 7 and all(name.isascii() and " " not in name and "*" not in name for name in names)
