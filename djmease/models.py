"""A model without a table: it gives the status page its place in the admin, its permissions, and its log."""

from __future__ import annotations

from django.db import models
from django.utils.translation import gettext_lazy as _


class Status(models.Model):
    """What the WebSocket servers report. It lives in Redis (``djmease.get_status``), and is never queried here."""

    class Meta:
        managed = False
        default_permissions = ()
        permissions = [
            ("view_status", "Can view the WebSocket status"),
            ("disconnect_client", "Can disconnect WebSocket clients"),
            ("publish_message", "Can publish test messages"),
        ]
        verbose_name = _("WebSocket status")
        verbose_name_plural = _("WebSocket status")

    def __str__(self) -> str:
        return str(self._meta.verbose_name)
