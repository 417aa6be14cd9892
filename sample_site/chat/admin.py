from __future__ import annotations

from django.contrib import admin

from chat.models import Message, Visit


class ReadOnlyAdmin(admin.ModelAdmin):
    """What the pages make can be looked at and deleted here."""

    def has_add_permission(self, request) -> bool:
        return False

    def has_change_permission(self, request, obj=None) -> bool:
        return False


@admin.register(Message)
class MessageAdmin(ReadOnlyAdmin):
    list_display = ["created", "room", "who", "text"]
    list_filter = ["room"]
    search_fields = ["text", "who"]


@admin.register(Visit)
class VisitAdmin(ReadOnlyAdmin):
    list_display = ["who", "room", "seen"]
    list_filter = ["room"]
