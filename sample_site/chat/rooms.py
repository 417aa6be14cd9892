"""The rooms there are, and who may enter them: asked when a page is rendered, and again when it connects."""

from __future__ import annotations

from django.contrib.auth.models import AbstractBaseUser, AnonymousUser

LOBBY = "lobby"
MEMBERS = "members"
ROOMS = [LOBBY, "garden", "workshop", MEMBERS]


def may_enter(user: AbstractBaseUser | AnonymousUser, room: str) -> bool:
    return room != MEMBERS or user.is_authenticated
