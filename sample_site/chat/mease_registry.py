"""The chat's callbacks. django-mease finds this module by its name, in every installed app.

Receivers decide and publish, senders only write.
"""

from __future__ import annotations

import djmease
from chat.frames import FrameError, read_frame
from chat.models import Message


@djmease.opener
def welcome(client: djmease.Client) -> None:
    """Send a new client what was said before it came."""
    for message in Message.latest():
        client.write_message(message.as_dict())


@djmease.receiver
def say(client: djmease.Client, message: str | bytes) -> None:
    """Store and publish what a client said, or tell that client why not."""
    try:
        said = read_frame(message)
    except FrameError as error:
        client.write_message({"type": "error", "text": str(error)})
        return
    djmease.publish("chat.message", Message.objects.create(**said).as_dict())


@djmease.sender(routing="chat.message")
def show(routing: str, message: dict[str, str | int], clients_list: djmease.ClientsList) -> None:
    """Write a published message to every page."""
    for client in clients_list:
        client.write_message(message)
