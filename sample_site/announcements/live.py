"""Bring the current announcement to the pages. Which sender writes it is said in the settings, in `MEASE_ROUTES`."""

from __future__ import annotations

from django.db.models.signals import post_delete, post_save
from django.dispatch import receiver

import djmease
from announcements.models import Announcement


def current_message() -> dict[str, str | None]:
    """Return the current announcement as the pages get it; with an empty text if there is none."""
    announcement = Announcement.current()
    if announcement is None:
        return {"type": "announcement", "text": "", "updated": None}
    return {"type": "announcement", "text": announcement.text, "updated": announcement.updated.isoformat()}


@receiver([post_save, post_delete], sender=Announcement)
def announce(sender: type[Announcement], raw: bool = False, **kwargs: object) -> None:
    """Publish the announcement that is current now; in a transaction, django-mease waits for the commit.

    The announcement is stored in any case and every page load shows it, so a Redis that fails does not fail the save.
    """
    if not raw:
        djmease.publish("announcement", current_message(), fail_silently=True)


def greet(client: djmease.Client) -> None:
    """Send a new client the current announcement. The settings name this opener in `MEASE_OPENERS`."""
    client.write_message(current_message())
