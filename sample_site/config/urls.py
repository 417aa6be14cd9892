"""Addresses of the sample site: one page, and the admin."""

from __future__ import annotations

from django.contrib import admin
from django.urls import path

from chat.views import page

urlpatterns = [
    path("", page, name="page"),
    path("admin/", admin.site.urls),
]
