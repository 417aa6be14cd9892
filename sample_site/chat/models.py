"""What was said in the chat."""

from __future__ import annotations

from django.db import models

ROOM_LENGTH = 40
WHO_LENGTH = 40
TEXT_LENGTH = 500
HISTORY_LENGTH = 30


class Message(models.Model):
    room = models.SlugField(max_length=ROOM_LENGTH, default="lobby")
    who = models.CharField(max_length=WHO_LENGTH)
    text = models.CharField(max_length=TEXT_LENGTH)
    created = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return f"{self.room}, {self.who}: {self.text}"

    @classmethod
    def latest(cls, room: str, after: int = 0) -> list[Message]:
        """Return the last messages of a room, of those behind the id `after`, oldest first."""
        return list(cls.objects.filter(room=room, id__gt=after).order_by("-id")[:HISTORY_LENGTH])[::-1]

    def as_dict(self) -> dict[str, str | int]:
        """Return this message as the pages get it: what JSON can hold."""
        return {
            "type": "chat.message",
            "id": self.id,
            "who": self.who,
            "text": self.text,
            "created": self.created.isoformat(),
        }
