"""The page "WebSocket status" in the Django admin; other admin sites take ``site.register(Status, StatusAdmin)``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.contrib import admin, messages
from django.contrib.admin.models import ADDITION, DELETION, LogEntry
from django.contrib.auth import get_user_model
from django.contrib.contenttypes.models import ContentType
from django.core.exceptions import PermissionDenied, ValidationError
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect, JsonResponse, QueryDict
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.cache import patch_vary_headers
from django.utils.translation import gettext as _
from redis.exceptions import RedisError

from djmease import status_page
from djmease.forms import PublishForm
from djmease.models import Status
from djmease.publishing import PublishError
from djmease.reporting import list_clients
from djmease.reports import ClientReport
from djmease.revocation import disconnect
from djmease.status_page import TEMPLATES, Part, Wish, current_status, known_routings, outcome, parts_of

if TYPE_CHECKING:
    ModelAdmin = admin.ModelAdmin[Status]
else:
    ModelAdmin = admin.ModelAdmin

PARTS_HEADER = "X-Mease-Parts"
"""The parts that a page has, each with its version: the answer has just those that have changed."""
PUBLISHED = "djmease_published"
"""Where the session keeps what became of the last test message."""
MAX_SEARCH = 200


@admin.register(Status)
class StatusAdmin(ModelAdmin):
    """The page, and what can be done from it; no row of the model is ever read."""

    def has_view_permission(self, request: HttpRequest, obj: Status | None = None) -> bool:
        return _may(request, "view_status")

    def has_module_permission(self, request: HttpRequest) -> bool:
        return self.has_view_permission(request)

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Status | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Status | None = None) -> bool:
        return False

    def get_urls(self) -> list[URLPattern]:
        wrap = self.admin_site.admin_view
        return [
            path("", wrap(self.changelist_view), name="djmease_status_changelist"),
            path("disconnect/", wrap(self.disconnect_view), name="djmease_status_disconnect"),
            path("publish/", wrap(self.publish_view), name="djmease_status_publish"),
        ]

    # The page

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """Answer with the page, or with the parts of it that have changed."""
        self._require(request)
        known = request.headers.get(PARTS_HEADER)
        if known is None:
            return self._page(request, PublishForm(initial=_initial(request)), extra_context)
        parts = parts_of(current_status(), self._wish(request))
        return _changed(parts, known)

    def _page(self, request: HttpRequest, form: PublishForm, extra: dict[str, Any] | None = None) -> HttpResponse:
        status, wish = current_status(), self._wish(request)
        parts = parts_of(status, wish)
        context = {
            **self._context(request, _("WebSocket status")),
            "parts": parts,
            "versions": _versions(parts),
            "interval": round(status_page.INTERVAL * 1000),
            "lists_interval": round(status_page.LISTS_INTERVAL * 1000),
            "wish": wish,
            "form": form if _may(request, "publish_message") else None,
            "routings": known_routings(status),
            **(extra or {}),
        }
        response = TemplateResponse(request, f"{TEMPLATES}/page.html", context)
        patch_vary_headers(response, [PARTS_HEADER])
        return response

    def _wish(self, request: HttpRequest) -> Wish:
        asked = request.GET
        return Wish(
            url=self._url("changelist"),
            groups="groups" in asked,
            group_search=_text(asked, "group_search"),
            clients="clients" in asked,
            search=_text(asked, "search"),
            group=_text(asked, "group"),
            published=_published(request),
            disconnect_url=self._url("disconnect") if _may(request, "disconnect_client") else None,
        )

    # What can be done from it

    def publish_view(self, request: HttpRequest) -> HttpResponse:
        """Publish a test message, and show what becomes of it; without one, go to the form."""
        self._require(request, "publish_message")
        if request.method != "POST":
            return HttpResponseRedirect(f"{self._url('changelist')}#publish")
        form = PublishForm(request.POST)
        trace = form.publish() if form.is_valid() else None
        if trace is None:
            return self._page(request, form)
        message_id = str(trace.id)
        request.session[PUBLISHED] = outcome(trace)
        text = _("Message %(id)s on %(routing)s") % {"id": message_id, "routing": trace.routing}
        _log(request, ADDITION, message_id, text)
        return HttpResponseRedirect(f"{self._url('changelist')}?published={message_id}#publish")

    def disconnect_view(self, request: HttpRequest) -> HttpResponse:
        """Ask whether to close one connection or all of a user's, and close them when the answer is yes."""
        self._require(request, "disconnect_client")
        client_id, user_key = request.GET.get("client"), request.GET.get("user")
        if bool(client_id) == bool(user_key):
            return HttpResponseRedirect(self._clients_url())
        what = _named(client_id, user_key)
        error = self._disconnect(request, what, client_id, user_key) if request.method == "POST" else None
        if request.method == "POST" and error is None:
            return HttpResponseRedirect(self._clients_url())
        context = {
            **self._context(request, _("Disconnect")),
            "what": what,
            "is_user": bool(user_key),
            "clients": _connections(client_id, user_key),
            "error": error,
            "back": self._clients_url(),
        }
        return TemplateResponse(request, f"{TEMPLATES}/disconnect.html", context)

    def _disconnect(
        self, request: HttpRequest, what: str, client_id: str | None, user_key: str | None
    ) -> PublishError | None:
        try:
            disconnect(client_id=client_id or None, user=user_key or None)
        except PublishError as error:
            return error
        _log(request, DELETION, client_id or user_key or "", what)
        text = _("The servers were told to disconnect: %s.") % what
        messages.success(request, text, fail_silently=True)
        return None

    # Who may, and where

    def _require(self, request: HttpRequest, *permissions: str) -> None:
        if not all(_may(request, name) for name in ("view_status", *permissions)):
            raise PermissionDenied

    def _url(self, name: str) -> str:
        return reverse(f"admin:djmease_status_{name}", current_app=self.admin_site.name)

    def _clients_url(self) -> str:
        return f"{self._url('changelist')}?clients=1#clients"

    def _context(self, request: HttpRequest, title: str) -> dict[str, Any]:
        # The namespace in which the templates' links are resolved.
        request.current_app = self.admin_site.name
        return {
            **self.admin_site.each_context(request),
            "title": title,
            "opts": self.opts,
            "url": self._url("changelist"),
            "publish_url": self._url("publish"),
        }


def _may(request: HttpRequest, name: str) -> bool:
    user: Any = request.user
    return bool(user.has_perm(f"djmease.{name}"))


def _text(asked: QueryDict, name: str) -> str:
    return str(asked.get(name, "")).strip()[:MAX_SEARCH]


def _published(request: HttpRequest) -> dict[str, Any] | None:
    """Return what became of the test message that the address names, if it is the last one of this session."""
    last: dict[str, Any] | None = request.session.get(PUBLISHED)
    return last if last and last["id"] == request.GET.get("published") else None


def _initial(request: HttpRequest) -> dict[str, str]:
    return {"routing": request.GET["routing"]} if "routing" in request.GET else {}


def _versions(parts: dict[str, Part]) -> str:
    return ",".join(f"{name}:{part.version}" for name, part in parts.items())


def _changed(parts: dict[str, Part], known: str) -> JsonResponse:
    has = set(known.split(","))
    changed = {
        name: {"version": part.version, "html": part.html}
        for name, part in parts.items()
        if f"{name}:{part.version}" not in has
    }
    response = JsonResponse({"parts": changed})
    patch_vary_headers(response, [PARTS_HEADER])
    return response


def _named(client_id: str | None, user_key: str | None) -> str:
    if client_id:
        return _("the client %s") % client_id
    return _("all connections of %s") % _user_name(user_key)


def _user_name(key: str | None) -> str:
    try:
        user = get_user_model()._default_manager.filter(pk=key).first()
    except (TypeError, ValueError, ValidationError):
        user = None
    return str(key) if user is None else user.get_username()


def _connections(client_id: str | None, user_key: str | None) -> list[ClientReport]:
    """Return the connections that would be closed, as far as the servers tell."""
    try:
        found = list_clients(current_status(), search=client_id or user_key or "").clients
    except (RedisError, OSError):
        return []
    return [each for each in found if each.id == client_id or (user_key and each.user_key == user_key)]


def _log(request: HttpRequest, flag: int, object_id: str, text: str) -> None:
    content_type = ContentType.objects.get_for_model(Status, for_concrete_model=False)
    LogEntry.objects.create(
        user_id=request.user.pk,
        content_type_id=content_type.pk,
        object_id=object_id,
        object_repr=text[:200],
        action_flag=flag,
        change_message=text,
    )
