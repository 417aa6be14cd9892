"""The Python files of a site, also those that nobody has imported yet, with the time at which each was changed."""

from __future__ import annotations

import os
import sys
import sysconfig
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from django.utils.autoreload import iter_all_python_module_files

MAX_FOLDERS = 5000
"""How many folders are looked through, those of the code first: it lies above what else a site may have beside it."""
PACKAGES = {"site-packages", "dist-packages"}
NO_CODE = {"node_modules", "__pycache__"}

Stamps = set[tuple[str, int]]
"""Files, each with its time in nanoseconds."""


def stamps() -> Stamps:
    """Look at what this process has imported, and at all that it could import which is not installed.

    What keeps a server from starting may be a module that only it has imported, or one that is not there yet.
    """
    seen = set()
    for path in iter_all_python_module_files():
        with suppress(OSError):
            seen.add((str(path), path.stat().st_mtime_ns))
    return seen.union(_below(_roots()))


def _roots() -> list[str]:
    """Return where modules are imported from, without Python's own places and those of packages."""
    pythons = [os.path.realpath(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "scripts")]
    roots = dict.fromkeys(os.path.realpath(path) for path in sys.path)
    return [
        root
        for root in roots
        if os.path.isdir(root)
        and PACKAGES.isdisjoint(Path(root).parts)
        and not any(root == own or root.startswith(own + os.sep) for own in pythons)
    ]


def _below(roots: list[str]) -> Iterator[tuple[str, int]]:
    """Walk through folders breadth first; links to folders are not followed, which may lead anywhere or in a circle."""
    waiting = deque(roots)
    known = set(roots)
    for _ in range(MAX_FOLDERS):
        if not waiting:
            return
        for entry in _entries(waiting.popleft()):
            with suppress(OSError):
                if entry.name.endswith(".py") and entry.name[0] != ".":
                    yield entry.path, entry.stat().st_mtime_ns
                elif _may_hold_code(entry) and entry.path not in known:
                    known.add(entry.path)
                    waiting.append(entry.path)


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:
        return []


def _may_hold_code(entry: os.DirEntry[str]) -> bool:
    """Tell whether something may be imported from there: not from what hides, from uploads, or from another Python."""
    return (
        entry.name.isidentifier()
        and entry.name not in NO_CODE
        and entry.is_dir(follow_symlinks=False)
        and not os.path.exists(os.path.join(entry.path, "pyvenv.cfg"))
    )
