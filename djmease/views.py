"""The view that gives a page its ticket: ``path("ws-ticket/", djmease.views.ticket)``."""

from __future__ import annotations

from django.http import HttpRequest, JsonResponse
from django.views.decorators.http import require_POST

from djmease.identities import is_authenticated
from djmease.tickets import TICKET_AGE, issue_ticket


@require_POST
def ticket(request: HttpRequest) -> JsonResponse:
    """Answer a POST of who is logged in with ``{"ticket": ..., "expires_in": 60}``, anybody else's with 401."""
    user = getattr(request, "user", None)
    if not is_authenticated(user):
        return _answer({"error": "You are not logged in."}, status=401)
    text = issue_ticket(user, session=getattr(request, "session", None))
    return _answer({"ticket": text, "expires_in": TICKET_AGE})


def _answer(content: dict[str, object], status: int = 200) -> JsonResponse:
    return JsonResponse(content, status=status, headers={"Cache-Control": "no-store"})
