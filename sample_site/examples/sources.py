"""The files that a page shows beside itself, read from the disk when the page is asked for."""

from __future__ import annotations

from dataclasses import dataclass

from django.conf import settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A file of the sample site. No path comes from a request: the catalogue alone says what is shown."""

    path: str
    since: str = ""
    """The line from which it is shown; nothing is the whole file."""

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

    @property
    def is_python_of_its_own(self) -> bool:
        """Whether it was written for its example, as the settings were not."""
        return self.path.endswith(".py") and not self.path.startswith("config/")

    def _all_lines(self) -> list[str]:
        return (settings.BASE_DIR / self.path).read_text(encoding="utf-8").splitlines()


SETTINGS = Source(path="config/settings.py", since="# django-mease")
