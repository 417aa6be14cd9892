"""What the site has to say."""

from __future__ import annotations

from django.db import models

BOARD_LENGTH = 12


class Announcement(models.Model):
    title = models.CharField(max_length=80)
    text = models.CharField(max_length=280, blank=True)
    is_pinned = models.BooleanField("pinned", default=False, help_text="Stays at the top of the board.")
    updated = models.DateTimeField(auto_now=True)

    class Meta:
        ordering = ["-is_pinned", "-updated", "-id"]

    def __str__(self) -> str:
        return self.title

    @classmethod
    def board(cls) -> list[dict[str, object]]:
        """Return what is on the board, as the pages get it: what JSON can hold."""
        return [announcement.as_dict() for announcement in cls.objects.all()[:BOARD_LENGTH]]

    def as_dict(self) -> dict[str, object]:
        return {
            "id": self.id,
            "title": self.title,
            "text": self.text,
            "is_pinned": self.is_pinned,
            "updated": self.updated.isoformat(),
        }
