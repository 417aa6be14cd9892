"""The files that a page shows beside itself, read from the disk when the page is asked for."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from django.conf import settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A file of the sample site. No path comes from a request: the catalogue alone says what is shown."""

    path: str
    since: str = ""
    """The line from which it is shown; nothing is the whole file."""

    @property
    def steps(self) -> list[str]:
        """The path in the pieces between which a line may break."""
        return re.findall("[^/]+/?", self.path)

    @property
    def lines(self) -> list[str]:
        return self._all_lines()[self.skipped :]

    @property
    def skipped(self) -> int:
        """How many lines stand above what is shown."""
        return self._all_lines().index(self.since) if self.since else 0

    @property
    def first_line(self) -> int:
        return self.skipped + 1

    def _all_lines(self) -> list[str]:
        return read_lines(settings.BASE_DIR / self.path)


def read_lines(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8").splitlines()


def count_python(app: str) -> int:
    """Return how many lines of Python an app has, without empty ones, tests and migrations."""
    files = [*(settings.BASE_DIR / app).glob("*.py"), *(settings.BASE_DIR / app / "management").rglob("*.py")]
    return sum(bool(line.strip()) for file in files if file.name != "tests.py" for line in read_lines(file))


SETTINGS = Source(path="config/settings.py", since="# django-mease")
