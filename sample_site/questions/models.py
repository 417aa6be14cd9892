from __future__ import annotations

from django.db import models

import djmease

LIST_LENGTH = 15


class Question(models.Model):
    text = models.CharField("question", max_length=200)
    votes = models.PositiveIntegerField(default=0)

    def __str__(self) -> str:
        return self.text


def listed() -> dict[str, list[dict[str, object]]]:
    """Return what the template of the list wants: the same for the page and for what is published."""
    best = Question.objects.order_by("-votes", "-id").values("id", "text", "votes")
    return {"questions": list(best[:LIST_LENGTH])}


def publish_list() -> None:
    """Publish the whole list, which a stock sender renders: a page that missed one is right again with the next."""
    djmease.publish("questions", listed(), group="questions", fail_silently=True)
