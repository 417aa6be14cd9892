from __future__ import annotations

from django.apps import AppConfig


class AnnouncementsConfig(AppConfig):
    name = "announcements"

    def ready(self) -> None:
        """Connect the signals, which can be done once the models are loaded."""
        from announcements import live  # noqa: F401
