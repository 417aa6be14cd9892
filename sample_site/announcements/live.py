"""Bring the board to the pages. Which sender writes it, and who hears a page that asks, is said in the settings."""

from __future__ import annotations

from django.db.models.signals import post_delete, post_save
from django.dispatch import receiver

import djmease
from announcements.models import Announcement


@receiver([post_save, post_delete], sender=Announcement)
def announce(sender: type[Announcement], raw: bool = False, **kwargs: object) -> None:
    """Publish the whole board: a page that has missed something is right again with the next change.

    In a transaction, as in the admin, django-mease waits for the commit. The announcement is stored in any case, so a
    Redis that fails does not fail the save.
    """
    if not raw:
        djmease.publish("board", board(), group="board", fail_silently=True)


def look(client: djmease.Client) -> None:
    """Write the board to a page that asks. The settings name this in `MEASE_RECEIVERS`."""
    client.send(board())


def board() -> dict[str, object]:
    return {"type": "board", "announcements": Announcement.board()}
