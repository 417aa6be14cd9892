from __future__ import annotations

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_safe

from announcements.models import BOARD_LENGTH, Announcement


@require_safe
def board(request: HttpRequest) -> HttpResponse:
    return render(request, "announcements/board.html", {"announcements": Announcement.objects.all()[:BOARD_LENGTH]})
