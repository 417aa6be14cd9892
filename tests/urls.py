"""Addresses of the tests' site: the admin, and a second admin site of its own."""

from __future__ import annotations

from django.contrib import admin
from django.urls import path

from djmease.admin import StatusAdmin
from djmease.models import Status

second = admin.AdminSite(name="second")
second.register(Status, StatusAdmin)

urlpatterns = [path("admin/", admin.site.urls), path("second/", second.urls)]
