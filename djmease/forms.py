"""The form that publishes a test message."""

from __future__ import annotations

import json
import secrets
from typing import Any

from django import forms
from django.contrib.auth import get_user_model
from django.core.exceptions import ValidationError
from django.utils.translation import gettext_lazy as _

from djmease import connections, messages
from djmease.publishing import PublishError, UnknownRouting, check_routing, publish_now
from djmease.tracing import Trace, follow_up

WAIT = 2.0
"""Seconds for which the servers are waited for."""


class PublishForm(forms.Form):
    """A routing and a message; what is wrong with either is told at its field."""

    routing = forms.CharField(
        label=_("Routing"),
        max_length=200,
        widget=forms.TextInput(attrs={"list": "mease-routings", "autocomplete": "off", "spellcheck": "false"}),
    )
    message = forms.CharField(
        label=_("Message"), strip=False, widget=forms.Textarea(attrs={"rows": 4, "spellcheck": "false"})
    )
    kind = forms.ChoiceField(
        label=_("Sent as"),
        choices=[("text", _("text")), ("json", _("JSON"))],
        initial="text",
        widget=forms.RadioSelect,
    )
    group = forms.CharField(label=_("Group"), max_length=200, required=False, help_text=_("Only its clients"))
    user = forms.CharField(label=_("User"), max_length=200, required=False, help_text=_("Only this one, by its name"))

    def clean_routing(self) -> str:
        routing: str = self.cleaned_data["routing"]
        _check(check_routing, routing)
        return routing

    def clean_group(self) -> str | None:
        group: str = self.cleaned_data["group"]
        if group:
            _check(messages.check_group, group)
        return group or None

    def clean_user(self) -> Any:
        name: str = self.cleaned_data["user"]
        if not name:
            return None
        model: Any = get_user_model()
        try:
            return model._default_manager.get_by_natural_key(name)
        except model.DoesNotExist:
            raise ValidationError(_("There is no user of this name.")) from None

    def clean(self) -> dict[str, Any]:
        data = self.cleaned_data
        if data.get("kind") == "json" and "message" in data:
            try:
                data["message"] = json.loads(data["message"])
            except (ValueError, RecursionError) as error:
                self.add_error("message", _("This is not JSON: %s") % error)
        return data

    def publish(self) -> Trace | None:
        """Publish what was filled in and return what became of it, or add an error and return ``None``."""
        try:
            return self._publish()
        except PublishError as error:
            self.add_error(None, str(error))
        except (TypeError, ValueError) as error:
            self.add_error("message", str(error))
        return None

    def _publish(self) -> Trace:
        data, token = self.cleaned_data, secrets.token_hex(16)
        # It is a test: whoever sends it wants to see it arrive, also under ATOMIC_REQUESTS.
        sent = publish_now(data["routing"], data["message"], group=data["group"], user=data["user"], trace=token)
        trace = Trace(
            routing=data["routing"],
            groups=(data["group"],) if data["group"] else (),
            users=(data["user"].get_username(),) if data["user"] else (),
            redis=connections.address(),
            timeout=WAIT,
        )
        # What would run here is not looked up: a site's process does not import its callbacks.
        return follow_up(trace, sent, token)


def _check(rule: Any, value: str) -> None:
    try:
        rule(value)
    except (ValueError, UnknownRouting) as error:
        raise ValidationError(str(error)) from None
