"""What the commands that tell of something share: a terminal's width and colours, and a text that it can show."""

from __future__ import annotations

import os
import shutil
import sys
from typing import Any

from django.core.management.base import BaseCommand, CommandParser, OutputWrapper
from django.core.management.color import Style, no_style

SIZE = (120, 24)
"""Columns and lines where no terminal says how many it has, and COLUMNS does not either."""


def open_output(command: BaseCommand) -> None:
    """Write to nowhere what a command says, where it was started without a standard output."""
    # What is opened next would get the lowest number that is free, and programs that are started take it for theirs.
    while (number := os.open(os.devnull, os.O_RDWR)) < 3:
        os.set_inheritable(number, True)
    os.close(number)
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (until the exit)
        command.stdout = OutputWrapper(sys.stdout)


def let_go_of_output() -> None:
    """Write to nowhere from now on, since who read it has gone: what is in the buffer must not fail at the exit too."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class TerminalCommand(BaseCommand):
    """A command that runs with faulty settings too, since it is asked what is wrong."""

    requires_system_checks: list[str] = []
    example: str
    """How it is called, behind ``python manage.py``."""

    def create_parser(self, prog_name: str, subcommand: str, **options: Any) -> CommandParser:
        example = f"Example: python manage.py {self.example}"
        return super().create_parser(prog_name, subcommand, epilog=example, **options)

    def execute(self, *args: Any, **options: Any) -> str | None:
        self._is_painted = bool(options.get("force_color"))
        open_output(self)
        try:
            return super().execute(*args, **options)
        except BrokenPipeError:
            let_go_of_output()
            sys.exit(1)

    @property
    def width(self) -> int:
        return shutil.get_terminal_size(SIZE).columns

    @property
    def palette(self) -> Style:
        """The colours of Django, and none for another output than the terminal by which Django chose them."""
        return self.style if self._is_painted or self.stdout.isatty() else no_style()

    def say(self, text: str, ending: str = "\n") -> None:
        """Write a text, with a question mark for what the output's encoding does not have."""
        encoding = getattr(self.stdout, "encoding", None) or "utf-8"
        self.stdout.write(text.encode(encoding, "replace").decode(encoding), ending=ending)
        self.stdout.flush()
