"""The chat's callbacks. django-mease finds this module by its name, in every installed app.

Receivers decide and publish, senders only write. Who comes and goes is published by django-mease itself, since
`MEASE_PRESENCE` in the settings names the rooms; what is whispered needs no sender of its own either.
"""

from __future__ import annotations

from dataclasses import asdict

from django.core.exceptions import PermissionDenied

import djmease
from chat.frames import FrameError, read_after, read_name, read_text, read_whisper
from chat.models import Message
from chat.rooms import ROOMS, may_enter


@djmease.opener
def enter(client: djmease.Client) -> None:
    """Put a client into the room that its address names; a page without a chat names none."""
    room = client.get_query_argument("room", None)
    if room is None:
        return
    if room not in ROOMS or not may_enter(client.user, room):
        raise PermissionDenied("You cannot enter this room.")
    client.storage["room"] = room
    client.presence = {"name": name_of(client)}
    client.join(f"room.{room}")


@djmease.receiver(type="chat.look")
def look(client: djmease.Client, message: dict[str, object]) -> None:
    """Write to a page what it does not have yet, and who is here. It asks when it connects, and after a gap."""
    try:
        room, after = room_of(client), read_after(message)
    except FrameError as error:
        refuse(client, error)
        return
    for missed in Message.latest(room, after):
        client.write_message(missed.as_dict())
    persons = [asdict(person) for person in djmease.presence(f"room.{room}")]
    client.write_message({"type": "chat.here", "persons": persons})


@djmease.receiver(type="chat.say")
def say(client: djmease.Client, message: dict[str, object]) -> None:
    """Store what a client said and publish it in its room, or tell that client why not."""
    try:
        room, text = room_of(client), read_text(message)
    except FrameError as error:
        refuse(client, error)
        return
    said = Message.objects.create(room=room, who=client.presence["name"], text=text)
    # Where Redis is away, pages find it when they look again.
    djmease.publish("chat.message", said.as_dict(), group=f"room.{room}", fail_silently=True)


@djmease.receiver(type="chat.whisper", login_required=True)
def whisper(client: djmease.Client, message: dict[str, object]) -> None:
    """Publish to one user, whatever room and how many tabs that user has, and to the one who whispers."""
    try:
        to, text = read_whisper(message)
    except FrameError as error:
        refuse(client, error)
        return
    whispered = {"type": "chat.whisper", "who": client.user.get_username(), "to": to.get_username(), "text": text}
    djmease.publish("chat.whisper", whispered, user=[to, client.user])


@djmease.sender(routing="chat.message")
def show(message: dict[str, str | int], clients_list: djmease.ClientsList) -> None:
    """Write a published message to every page of its room."""
    for client in clients_list:
        client.write_message(message)


def name_of(client: djmease.Client) -> str:
    """Return the name of a user, or the one that a guest has chosen, without the @ that pages show before users."""
    if client.user.is_authenticated:
        return client.user.get_username()
    try:
        return read_name(client.get_query_argument("name", "Guest").lstrip("@"))
    except FrameError as error:
        raise PermissionDenied(str(error)) from error


def room_of(client: djmease.Client) -> str:
    if "room" not in client.storage:
        raise FrameError("You are in no room.")
    return client.storage["room"]


def refuse(client: djmease.Client, error: FrameError) -> None:
    client.write_message({"type": "chat.error", "text": str(error)})
