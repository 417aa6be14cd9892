"""Who is in which room: a table that the opener and the closer of the chat keep.

A server that is killed runs no closers. So pages say now and then that they are still there, and whoever has not done
so for `LIFETIME` is here no more.
"""

from __future__ import annotations

from datetime import timedelta

from django.utils import timezone

from chat.models import Visit

LIFETIME = timedelta(minutes=3)
"""More than a browser makes a page wait that lies in the background: its timers run once a minute there."""


def stay(client_id: str, room: str, who: str) -> None:
    """Say that a client is here; again and again, if it stays."""
    Visit.objects.filter(seen__lt=timezone.now() - LIFETIME).delete()
    Visit.objects.update_or_create(client_id=client_id, defaults={"room": room, "who": who, "seen": timezone.now()})


def leave(client_id: str) -> None:
    Visit.objects.filter(client_id=client_id).delete()


def here(room: str) -> list[str]:
    """Return the names of those who are in a room, each once, however many windows it has."""
    visits = Visit.objects.filter(room=room, seen__gte=timezone.now() - LIFETIME)
    return sorted(set(visits.values_list("who", flat=True)), key=str.casefold)
