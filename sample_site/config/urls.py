"""Addresses of the sample site: a start page, five examples, and the admin."""

from __future__ import annotations

from django.conf import settings
from django.contrib import admin
from django.contrib.auth.views import LoginView, LogoutView
from django.urls import path
from django.views.generic import RedirectView, TemplateView

from announcements.views import board
from chat.views import room
from jobs.views import jobs, start
from questions.views import questions, vote

urlpatterns = [
    path("", TemplateView.as_view(template_name="start.html"), name="start"),
    path("chat/", room, name="chat"),
    path("chat/<slug:room>/", room, name="room"),
    path("board/", board, name="board"),
    path("jobs/", jobs, name="jobs"),
    path("jobs/start/", start, name="start_job"),
    path("scores/", TemplateView.as_view(template_name="scores.html"), name="scores"),
    path("questions/", questions, name="questions"),
    path("questions/vote/", vote, name="vote"),
    path("login/", LoginView.as_view(template_name="login.html", extra_context={"settings": settings}), name="login"),
    path("logout/", LogoutView.as_view(), name="logout"),
    path("favicon.ico", RedirectView.as_view(url=f"{settings.STATIC_URL}icon.svg")),
    path("admin/", admin.site.urls),
]
