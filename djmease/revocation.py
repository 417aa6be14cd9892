"""``disconnect``: connections that end before their time, by hand or because a login has ended."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Iterable, Iterator
from typing import Any

from django.apps import apps
from django.conf import settings
from django.contrib.auth import get_user_model
from django.contrib.auth.signals import user_logged_out
from django.db import transaction
from django.db.models import Model
from django.db.models.signals import post_delete, post_save

from djmease.identities import session_hash
from djmease.messages import primary_key
from djmease.publishing import control_wires, publish_control, read_by_loop, refuse_event_loop, send_control

UNRELATED_FIELDS = {"last_login"}
"""What a login itself saves."""


def disconnect(*, user: Any = None, client_id: str | None = None) -> None:
    """Close all connections of a user (or a primary key), or the one with this id, in every server, with 4401.

    It is sent at once, whatever the transaction does. Raises ``ValueError`` where neither or both are named, or the
    user is not saved; ``TypeError`` for a ``client_id`` that is no text; ``PublishError`` where Redis does not take it;
    ``SynchronousOnlyOperation`` on an event loop, where ``await adisconnect(...)`` is meant.
    """
    refuse_event_loop("disconnect", "adisconnect")
    _disconnect(user, client_id)


async def adisconnect(*, user: Any = None, client_id: str | None = None) -> None:
    """Do what ``disconnect`` does, on an event loop."""
    key = None if user is None else await read_by_loop(primary_key, user)
    await asyncio.to_thread(_disconnect, key, client_id)


def _disconnect(user: Any, client_id: str | None) -> None:
    if (user is None) == (client_id is None):
        raise ValueError("disconnect takes a user or a client_id, and one of them")
    if client_id is not None:
        if not isinstance(client_id, str):
            raise TypeError(f"client_id is a client's id, a str, and not {client_id!r}")
        send_control({"order": "disconnect", "clients": [client_id]})
    else:
        send_control({"order": "disconnect", "users": [primary_key(user)]})


def watch_logins() -> None:
    """Tell the servers of logouts, and of users that are saved or deleted, where the site has users."""
    if not apps.is_installed("django.contrib.auth"):
        return
    user_logged_out.connect(_on_logout, dispatch_uid="djmease.revocation")
    # Who heard of the deletions of all models would take Django's fast way of deleting from all.
    for model in _with_subclasses(get_user_model()):
        post_save.connect(_on_save, sender=model, dispatch_uid="djmease.revocation")
        post_delete.connect(_on_delete, sender=model, dispatch_uid="djmease.revocation")


def _with_subclasses(model: type[Model]) -> Iterator[type[Model]]:
    """Yield a model, its proxies and the models that inherit its table: a signal names the class that was saved."""
    yield model
    for subclass in model.__subclasses__():
        yield from _with_subclasses(subclass)


def _on_logout(request: Any, **_: Any) -> None:
    key = getattr(getattr(request, "session", None), "session_key", None)
    if key and _has_servers():
        publish_control({"order": "end_session", "session": session_hash(key)})


def _on_save(
    instance: Any, created: bool, raw: bool, using: str, update_fields: Iterable[str] | None, **_: Any
) -> None:
    is_unrelated = update_fields is not None and set(update_fields) <= UNRELATED_FIELDS
    if not created and not raw and not is_unrelated:
        _recheck(instance, using)


def _on_delete(instance: Any, using: str, **_: Any) -> None:
    _recheck(instance, using)


def _recheck(user: Any, using: str) -> None:
    if _has_servers():
        # A model that inherits the users' table may have another primary key.
        key = getattr(user, get_user_model()._meta.pk.attname)
        order = {"order": "recheck", "users": [str(key)]}
        transaction.on_commit(functools.partial(publish_control, order), using=using, robust=True)


def _has_servers() -> bool:
    """Tell whether there may be any: a site without a Redis, as in its tests, has none."""
    return bool(settings.MEASE_REDIS_URL or settings.DEBUG or control_wires)
