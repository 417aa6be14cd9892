"""The chat's callbacks. django-mease finds this module by its name, in every installed app.

Receivers decide and publish, senders only write. What is whispered needs no sender here: its route is in the settings.
"""

from __future__ import annotations

import djmease
from chat.frames import FrameError, clean, read_said, read_whisper
from chat.models import ROOM_LENGTH, Message


@djmease.opener
def enter(client: djmease.Client) -> None:
    """Put a new client into the room of its address, and send it what was said there before it came."""
    client.storage["room"] = room = clean("room", client.get_query_argument("room", "lobby"), ROOM_LENGTH)
    client.join(f"room.{room}")
    for message in Message.latest(room):
        client.write_message(message.as_dict())


@djmease.receiver(type="chat.say")
def say(client: djmease.Client, message: dict[str, object]) -> None:
    """Store what a client said and publish it in its room, or tell that client why not."""
    room = client.storage["room"]
    try:
        said = Message.objects.create(room=room, **read_said(message))
    except FrameError as error:
        client.write_message({"type": "error", "text": str(error)})
    else:
        djmease.publish("chat.message", said.as_dict(), group=f"room.{room}")


@djmease.receiver(type="chat.whisper", login_required=True)
def whisper(client: djmease.Client, message: dict[str, object]) -> None:
    """Publish to one user, whatever room and how many tabs that user has, and to the one who whispers."""
    try:
        to, text = read_whisper(message)
    except FrameError as error:
        client.write_message({"type": "error", "text": str(error)})
    else:
        whispered = {"type": "chat.whisper", "who": client.user.get_username(), "to": to.get_username(), "text": text}
        djmease.publish("chat.whisper", whispered, user=[to, client.user])


@djmease.sender(routing="chat.message")
def show(message: dict[str, str | int], clients_list: djmease.ClientsList) -> None:
    """Write a published message to every page of its room."""
    for client in clients_list:
        client.write_message(message)
