"""Long jobs, and how far each is."""

from __future__ import annotations

from datetime import timedelta

from django.conf import settings
from django.contrib.auth.models import AbstractBaseUser, AnonymousUser
from django.db import models
from django.utils import timezone

LIST_LENGTH = 6
SILENCE = timedelta(seconds=15)
"""After which a job that has not said how far it is counts as broken off."""


class Job(models.Model):
    name = models.CharField(max_length=80)
    owner = models.ForeignKey(settings.AUTH_USER_MODEL, models.CASCADE, null=True, blank=True)
    done = models.PositiveIntegerField(default=0)
    total = models.PositiveIntegerField()
    updated = models.DateTimeField(auto_now=True)

    def __str__(self) -> str:
        return f"{self.name}: {self.done} of {self.total}"

    @classmethod
    def visible_to(cls, user: AbstractBaseUser | AnonymousUser) -> list[Job]:
        """Return the last jobs of everybody and those of this user, the newest first."""
        own = models.Q(owner=user.pk) if user.is_authenticated else models.Q()
        return list(cls.objects.filter(models.Q(owner=None) | own).order_by("-id")[:LIST_LENGTH])

    @classmethod
    def running(cls) -> models.QuerySet[Job]:
        return cls.objects.filter(done__lt=models.F("total"), updated__gt=timezone.now() - SILENCE)

    @property
    def state(self) -> str:
        if self.done >= self.total:
            return "done"
        return "running" if self.updated > timezone.now() - SILENCE else "broken off"

    def as_dict(self) -> dict[str, str | int | bool]:
        return {
            "type": "job.progress",
            "id": self.id,
            "name": self.name,
            "is_private": self.owner_id is not None,
            "done": self.done,
            "total": self.total,
            "state": self.state,
        }
