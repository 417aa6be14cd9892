"""The Django app: settings, registration and checks, in the order in which Django needs them."""

from __future__ import annotations

from django.apps import AppConfig
from django.core.checks import register

from djmease import conf as conf
from djmease.checks import check_deployment, check_settings
from djmease.loader import autodiscover
from djmease.revocation import watch_logins


class MeaseAppConfig(AppConfig):
    name = "djmease"
    verbose_name = "django-mease"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        register(check_settings, "djmease")
        register(check_deployment, "djmease", deploy=True)
        autodiscover()
        watch_logins()
