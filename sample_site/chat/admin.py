from __future__ import annotations

from django.contrib import admin

from chat.models import Message


@admin.register(Message)
class MessageAdmin(admin.ModelAdmin):
    list_display = ["created", "room", "who", "text"]
    list_filter = ["room"]
    search_fields = ["text", "who"]

    def has_add_permission(self, request) -> bool:
        """Messages come from the page, which is what publishes them."""
        return False

    def has_change_permission(self, request, obj=None) -> bool:
        return False
