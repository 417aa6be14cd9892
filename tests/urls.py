"""Addresses of the tests' site: the admin, and a second admin site of its own."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock

from django.contrib import admin
from django.http import HttpRequest, HttpResponse
from django.urls import path

from djmease.admin import StatusAdmin
from djmease.models import Status

second = admin.AdminSite(name="second")
second.register(Status, StatusAdmin)

urlpatterns = [path("admin/", admin.site.urls), path("second/", second.urls)]


def one_at_a_time(get_response: Callable[[HttpRequest], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
    """Let requests wait for each other.

    The threads of Django's live server share one connection to SQLite in memory, and Python 3.12 and newer may hand the
    rows of one thread's query to another that runs the same: a user is then found twice, or not at all.
    """
    lock = Lock()

    def answer(request: HttpRequest) -> HttpResponse:
        with lock:
            return get_response(request)

    return answer


def strict_admin(get_response: Callable[[HttpRequest], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
    """Send a policy with the admin's pages that forbids whatever is inline or from another host."""

    def answer(request: HttpRequest) -> HttpResponse:
        response = get_response(request)
        if request.path.startswith("/admin/"):
            response["Content-Security-Policy"] = "default-src 'self'"
        return response

    return answer
