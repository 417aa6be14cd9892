"""The page: rendered with what is stored, kept up to date by its WebSocket."""

from __future__ import annotations

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_safe

from announcements.models import Announcement
from chat.models import TEXT_LENGTH, WHO_LENGTH, Message


@require_safe
def page(request: HttpRequest) -> HttpResponse:
    return render(request, "chat/page.html", page_context())


def page_context() -> dict[str, object]:
    return {
        "announcement": Announcement.current(),
        "chat_messages": Message.latest(),
        "websocket_port": settings.MEASE_PORT,
        "who_length": WHO_LENGTH,
        "text_length": TEXT_LENGTH,
    }
