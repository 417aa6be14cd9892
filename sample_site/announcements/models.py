"""What the site has to say. The one that was saved last is on the page."""

from __future__ import annotations

from django.db import models


class Announcement(models.Model):
    text = models.CharField(max_length=280)
    updated = models.DateTimeField(auto_now=True)

    class Meta:
        ordering = ["-updated", "-id"]

    def __str__(self) -> str:
        return self.text

    @classmethod
    def current(cls) -> Announcement | None:
        """Return the announcement that is on the page, or None."""
        return cls.objects.first()
