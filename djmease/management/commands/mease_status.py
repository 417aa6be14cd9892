"""``python manage.py mease_status``: what the servers report, in the terminal."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from argparse import ArgumentParser
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import CommandError

from djmease.management.terminal import SIZE, TerminalCommand, let_go_of_output
from djmease.reporting import Status, get_status
from djmease.reports import to_plain
from djmease.status_text import status_text

INTERVAL = 2.0
"""Seconds between two looks, which is how often a server reports."""
CLEAR, HOME, CLEAR_LINE, CLEAR_BELOW = "\x1b[2J", "\x1b[H", "\x1b[K", "\x1b[J"


class Command(TerminalCommand):
    help = "Tells what the WebSocket servers report, and whether it is well; the exit code is 1 where it is not."
    example = "mease_status --watch"

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--watch", action="store_true", help="look again every two seconds; Ctrl-C ends it")
        parser.add_argument("--json", action="store_true", help="as JSON, with --watch one line for each look")

    def handle(self, *args: Any, **options: Any) -> None:
        tell = self._tell_json if options["json"] else self._tell_again if options["watch"] else self._tell
        look = self._watch if options["watch"] else self._look
        try:
            look(tell)
        except ImproperlyConfigured as error:
            raise CommandError(str(error)) from error
        if not self._is_well:
            sys.exit(1)

    def _look(self, tell: Callable[[Status], None]) -> None:
        status = get_status()
        self._is_well = status.is_well
        tell(status)

    def _watch(self, tell: Callable[[Status], None]) -> None:
        """Look until Ctrl-C, or until who reads the output has gone."""
        self._is_well, self._has_drawn = True, False
        with suppress(KeyboardInterrupt):
            try:
                while True:
                    self._look(tell)
                    time.sleep(INTERVAL)
            except BrokenPipeError:
                let_go_of_output()

    def _tell_json(self, status: Status) -> None:
        self.say(json.dumps({"is_well": status.is_well, **to_plain(status)}))

    def _tell(self, status: Status) -> None:
        self.say(status_text(status, width=self.width, style=self.palette))

    def _tell_again(self, status: Status) -> None:
        clock = time.strftime("%H:%M:%S", time.localtime(status.taken_at))
        text = status_text(status, width=self.width, style=self.palette)
        if self.stdout.isatty() and os.environ.get("TERM") != "dumb":
            self._redraw(f"{clock}, and every two seconds until Ctrl-C\n\n{text}")
        else:
            self.say(f"{clock}\n\n{text}\n")

    def _redraw(self, text: str) -> None:
        """Write a text over the last one, without the flicker of a cleared screen; what is too much is left out."""
        room = shutil.get_terminal_size(SIZE).lines - 1
        lines = text.splitlines()
        if len(lines) > room:
            lines = [*lines[: room - 1], f"({len(lines) - room + 1} more lines)"]
        start = HOME if self._has_drawn else CLEAR + HOME
        self._has_drawn = True
        self.say(start + "".join(f"{line}{CLEAR_LINE}\n" for line in lines) + CLEAR_BELOW, ending="")
