"""Which files are looked at where a server does not start."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from djmease.server import sources


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place, beside Python's own, from which modules are imported."""
    monkeypatch.setattr("sys.path", [path for path in sys.path if "python3" in path])
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def found(root: Path) -> set[str]:
    paths = {path for path, _ in sources.stamps() if path.startswith(f"{root}{os.sep}")}
    return {os.path.relpath(path, root) for path in paths}


def write(root: Path, *paths: str) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()


def test_code_that_nobody_has_imported_is_seen(root: Path) -> None:
    write(root, "manage.py", "chat/__init__.py", "chat/realtime.py", "chat/live/deep.py", "chat/page.html")
    assert found(root) == {"manage.py", "chat/__init__.py", "chat/realtime.py", "chat/live/deep.py"}


def test_what_is_no_code_of_the_site_is_not_walked_through(root: Path) -> None:
    write(root, "node_modules/gyp/gyp.py", ".venv/lib/a.py", ".git/hooks/b.py", "media/2024/c.py", "chat/.#d.py")
    write(root, "env/pyvenv.cfg", "env/lib/e.py", "lib/python3.11/site-packages/f.py", "my-app/g.py")
    assert found(root) == set()


def test_links_lead_nowhere(root: Path) -> None:
    write(root, "chat/models.py")
    (root / "chat" / "again").symlink_to(root)
    (root / "gone.py").symlink_to(root / "nowhere.py")
    assert found(root) == {"chat/models.py"}


def test_a_change_a_new_file_and_one_that_went_show(root: Path) -> None:
    write(root, "one.py", "two.py")
    before = sources.stamps()
    os.utime(root / "one.py", (1, 1))
    (root / "two.py").unlink()
    write(root, "three.py")
    changed = {Path(path).name for path, _ in before ^ sources.stamps()}
    assert changed == {"one.py", "two.py", "three.py"}


def test_a_tree_without_end_is_looked_through_from_above(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MAX_FOLDERS", 4)
    write(root, "z.py", "a/a.py", "a/b/b.py", "c/c.py", "a/b/d/d.py")
    assert found(root) == {"z.py", "a/a.py", "c/c.py", "a/b/b.py"}
