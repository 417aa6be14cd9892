"""Addresses of the sample site: rooms, the members' room, and the admin."""

from __future__ import annotations

from django.contrib import admin
from django.urls import path

from chat.views import members, room

urlpatterns = [
    path("", room, name="lobby"),
    path("rooms/<slug:room>/", room, name="room"),
    path("members/", members, name="members"),
    path("admin/", admin.site.urls),
]
