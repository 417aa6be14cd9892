"""Addresses of the tests' site: the admin, and a second admin site of its own."""

from __future__ import annotations

from collections.abc import Callable

from django.contrib import admin
from django.http import HttpRequest, HttpResponse
from django.urls import path

from djmease.admin import StatusAdmin
from djmease.models import Status

second = admin.AdminSite(name="second")
second.register(Status, StatusAdmin)

urlpatterns = [path("admin/", admin.site.urls), path("second/", second.urls)]


def strict_admin(get_response: Callable[[HttpRequest], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
    """Send a policy with the admin's pages that forbids whatever is inline or from another host."""

    def answer(request: HttpRequest) -> HttpResponse:
        response = get_response(request)
        if request.path.startswith("/admin/"):
            response["Content-Security-Policy"] = "default-src 'self'"
        return response

    return answer
