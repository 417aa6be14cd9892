from __future__ import annotations

from django.contrib import admin

from chat.models import Message


@admin.register(Message)
class MessageAdmin(admin.ModelAdmin):
    """What was said can be looked at and deleted here."""

    list_display = ["created", "room", "who", "text"]
    list_filter = ["room"]
    search_fields = ["text", "who"]

    def has_add_permission(self, request) -> bool:
        return False

    def has_change_permission(self, request, obj=None) -> bool:
        return False
