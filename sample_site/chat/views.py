"""The pages: rendered with what is stored, kept up to date by their WebSockets."""

from __future__ import annotations

from django.conf import settings
from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_safe

from announcements.models import Announcement
from chat.models import TEXT_LENGTH, WHO_LENGTH, Message

ROOMS = ["lobby", "garden", "workshop"]


@require_safe
def room(request: HttpRequest, room: str = "lobby") -> HttpResponse:
    return render(request, "chat/page.html", page_context(request, room))


@require_safe
@login_required
def members(request: HttpRequest) -> HttpResponse:
    """A room for those who have logged in, who can whisper to one another there."""
    return render(request, "chat/page.html", page_context(request, "members"))


def page_context(request: HttpRequest, room: str) -> dict[str, object]:
    return {
        "announcement": Announcement.current(),
        "chat_messages": Message.latest(room),
        "room": room,
        "rooms": ROOMS,
        "who": request.user.get_username(),
        "websocket_port": settings.MEASE_PORT,
        "who_length": WHO_LENGTH,
        "text_length": TEXT_LENGTH,
    }
