from __future__ import annotations

from django.contrib import admin

from announcements.models import Announcement


@admin.register(Announcement)
class AnnouncementAdmin(admin.ModelAdmin):
    list_display = ["title", "text", "is_pinned", "updated"]
    list_editable = ["text", "is_pinned"]
