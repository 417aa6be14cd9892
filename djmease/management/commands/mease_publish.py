"""``python manage.py mease_publish``: publish from the shell, and see where it goes."""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser, ArgumentTypeError
from typing import Any

from django.apps import apps
from django.contrib.auth import get_user_model
from django.core.exceptions import ImproperlyConfigured, ValidationError
from django.core.management.base import CommandError

from djmease import messages, tracing
from djmease.management.terminal import TerminalCommand
from djmease.problems import START_COMMAND
from djmease.publishing import Publication, PublishError, UnknownRouting, publish_now
from djmease.tables import several
from djmease.trace_text import trace_text

STDIN = "-"


class Command(TerminalCommand):
    help = (
        "Publishes a message, and prints its id and how many servers heard it; with --trace, follows it to the clients "
        "or to where it stops, with the exit code 1 where no client got it."
    )
    example = 'mease_publish news "Hello world !" --trace'

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("routing", metavar="ROUTING", help="what it is published on, for example chat.message")
        parser.add_argument(
            "message", nargs="?", metavar="MESSAGE", help="the text, or - for what comes from the standard input"
        )
        parser.add_argument("--json", action="store_true", help="the message is JSON: senders get what it parses to")
        parser.add_argument(
            "--group", action="append", default=[], metavar="NAME", help="only clients in this group; may be repeated"
        )
        parser.add_argument(
            "--user", action="append", default=[], metavar="PK", help="only this user, by primary key; may be repeated"
        )
        parser.add_argument("--trace", action="store_true", help="follow it, and say where it stops")
        parser.add_argument(
            "--timeout",
            type=_seconds,
            default=tracing.TIMEOUT,
            metavar="SECONDS",
            help=f"with --trace, how long to wait for the servers (by default {tracing.TIMEOUT:g})",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        message = _message(options)
        groups, users = options["group"], [_primary_key(user) for user in options["user"]]
        publish = self._trace if options["trace"] else self._publish
        try:
            for group in groups:
                messages.check_group(group)
            publish(options, message, groups, users)
        except (UnknownRouting, PublishError, ImproperlyConfigured, ValueError) as error:
            raise CommandError(str(error)) from error

    def _publish(self, options: dict[str, Any], message: Any, groups: list[str], users: list[str]) -> None:
        sent = publish_now(options["routing"], message, group=groups or None, user=users or None)
        if not sent.heard:
            self.say(self.palette.WARNING(f"Published {sent.id}, and {_unheard(sent)}"))
        elif len(sent.channels) == 1:
            self.say(f"Published {sent.id}: {several(sent.heard, 'server')} heard it.")
        else:
            told = (
                f"Published {sent.id} on {len(sent.channels)} channels: servers heard it {several(sent.heard, 'time')}."
            )
            self.say(told)

    def _trace(self, options: dict[str, Any], message: Any, groups: list[str], users: list[str]) -> None:
        found = tracing.follow(options["routing"], message, groups=groups, users=users, timeout=options["timeout"])
        self.say(trace_text(found, width=self.width, style=self.palette))
        if not found.written:
            sys.exit(1)


def _unheard(sent: Publication) -> str:
    if sent.is_for_all:
        return f"no server heard it. Start one: {START_COMMAND}"
    return "no server has a client whom it is for; see mease_status, or --trace."


def _message(options: dict[str, Any]) -> Any:
    text = options["message"]
    if text in (None, STDIN) and sys.stdin is None:
        raise CommandError("There is no MESSAGE, and the standard input is closed: say it behind the routing.")
    if text is None and sys.stdin.isatty():
        raise CommandError(
            "There is no MESSAGE: say it behind the routing, or say - and type it, with Ctrl-D behind it."
        )
    if text in (None, STDIN):
        text = _stdin()
        if not text:
            raise CommandError("There is no MESSAGE: the standard input is empty. Where that is meant, say ''.")
    text = _as_text(text)
    if not options["json"]:
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        told = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise CommandError(
            f"--json: the message {text!r:.80} is not JSON ({told}): quote it for the shell, or leave --json out."
        ) from error


def _stdin() -> str:
    """Return what comes from the standard input, without the newline that ends its last line."""
    try:
        return sys.stdin.read().removesuffix("\n")
    except UnicodeDecodeError as error:
        raise CommandError(f"The standard input is not text in {error.encoding}: {error.reason}.") from error


def _as_text(text: str) -> str:
    """Return a message as what UTF-8 makes of its bytes, whatever the locale has made of them."""
    try:
        return text.encode("utf-8", "surrogateescape").decode()
    except (UnicodeEncodeError, UnicodeDecodeError) as error:
        raise CommandError(f"The message is not text in UTF-8 ({error.reason}): it can be sent from Python.") from error


def _primary_key(text: str) -> str:
    """Return a primary key in the form in which the server knows it."""
    if not apps.is_installed("django.contrib.auth"):
        return text
    model = get_user_model()
    try:
        return str(model._meta.pk.to_python(text))
    except ValidationError as error:
        raise CommandError(
            f"--user {text!r} is no primary key of {model._meta.label} ({' '.join(error.messages)}): name the user by "
            "its primary key."
        ) from error


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 3600:
        raise ArgumentTypeError(f"{text!r} should be a number of seconds above 0, for example 10")
    return value
