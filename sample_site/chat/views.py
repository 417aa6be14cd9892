"""The rooms' pages: rendered with what is stored, kept up to date by their WebSockets."""

from __future__ import annotations

from django.contrib.auth.views import redirect_to_login
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_safe

from chat.models import TEXT_LENGTH, WHO_LENGTH, Message
from chat.rooms import LOBBY, ROOMS, may_enter


@require_safe
def room(request: HttpRequest, room: str = LOBBY) -> HttpResponse:
    if room not in ROOMS:
        raise Http404
    if not may_enter(request.user, room):
        return redirect_to_login(request.path)
    context = {
        "room": room,
        "rooms": ROOMS,
        "chat_messages": Message.latest(room),
        "who_length": WHO_LENGTH,
        "text_length": TEXT_LENGTH,
    }
    return render(request, "chat/page.html", context)
