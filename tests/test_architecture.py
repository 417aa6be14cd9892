"""The house rules that a machine can hold: what may import what, and what must agree with what."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import djmease
from djmease.conf import MeaseConf
from tests.support import ROOT

PACKAGE = ROOT / "djmease"

# Each module may import modules of lower layers only, never of its own.
LAYERS = [
    {"conf", "types", "tables", "models", "formats", "plots", "names"},
    {"registry", "messages", "embedded", "identities", "reports"},
    {"roll"},
    {"connections", "loader", "rereading"},
    {"publishing", "senders", "tickets", "problems"},
    {"receivers", "revocation", "authenticators", "views", "attendance"},
    {"reporting"},
    {"checks", "test", "__init__", "status_text", "routes_text", "tracing"},
    {"apps", "pytest_plugin", "trace_text", "forms", "status_page", "templatetags.djmease"},
    {"admin"},
]
SERVER_LAYERS = [
    {"server.options", "server.deflate", "server.complaints", "server.link", "server.sources"},
    {"server.background", "server.tls", "server.tallies", "server.reporter", "server.subscriptions"},
    {
        "server.protocol",
        "server.readers",
        "server.identity",
        "server.proxies",
        "server.processes",
        "server.health",
        "server.pulse",
    },
    {"server.forms", "server.limits"},
    {"server.outbox", "server.listener", "server.orders", "server.neighbours", "server.watch"},
    {"server.client", "server.state", "server.pings", "server.tasks", "server.workers"},
    {"server.clients", "server.joining"},
    {"server.calls", "server.logins", "server.presence"},
    {"server.running"},
    {"server.lanes"},
    {"server.dispatch"},
    {"server.observer"},
    {"server.metrics"},
    {"server.http"},
    {"server.server", "server.banner"},
    {"server.factory"},
    {"server.live"},
]
PACKAGES = {"server.__init__", "templatetags.__init__"}
PLAIN = {"registry", "messages", "names", "types", "identities", "rereading", "reports", "roll"}
"""What the server may know of the left side: values, no settings of ours and no Redis."""
READS_SETTINGS = {
    "server.factory": {"authenticators", "connections", "loader", "__init__"},
    "server.live": {"loader"},
    "server.banner": {"__init__"},
}
"""Where the server is put together, more."""


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        yield ".".join(path.relative_to(PACKAGE).with_suffix("").parts), path


def is_placed_by_django(module: str) -> bool:
    return module.startswith(("management.", "migrations.")) or module in PACKAGES


def imports_of(path: Path) -> set[str]:
    """Return the modules of the package that a module imports, by names within the package."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path} has a relative import"
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [
                name if importlib.util.find_spec(node.module) and _is_module(name) else node.module for name in whole
            ]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            if name == "djmease":
                found.add("__init__")
            elif name.startswith("djmease."):
                found.add(name.removeprefix("djmease."))
    return found


def _is_module(name: str) -> bool:
    path = ROOT / Path(*name.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def below(layers: list[set[str]], module: str) -> set[str]:
    level = next(index for index, layer in enumerate(layers) if module in layer)
    return set().union(*layers[:level])


@pytest.mark.parametrize(("module", "path"), list(modules()), ids=[module for module, _ in modules()])
def test_a_module_imports_only_lower_layers(module: str, path: Path) -> None:
    imported = imports_of(path)
    if is_placed_by_django(module):
        return
    if module.startswith("server."):
        assert imported <= below(SERVER_LAYERS, module) | PLAIN | READS_SETTINGS.get(module, set())
    else:
        assert imported <= below(LAYERS, module)


def test_every_module_has_its_layer() -> None:
    placed = set().union(*LAYERS, *SERVER_LAYERS)
    wiring = {module for module, _ in modules() if is_placed_by_django(module)}
    assert {module for module, _ in modules()} == placed | wiring


@pytest.mark.parametrize(("module", "path"), list(modules()), ids=[module for module, _ in modules()])
def test_imports_stand_at_the_top_and_tornado_only_in_the_server(module: str, path: Path) -> None:
    tree = ast.parse(path.read_text())
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            inside = [node for node in ast.walk(function) if isinstance(node, ast.Import | ast.ImportFrom)]
            assert not inside, f"{function.name} imports"
    if not module.startswith(("server.", "management.")):
        assert "tornado" not in path.read_text().replace("Tornado", "")


def test_a_web_process_never_imports_tornado_and_starts_no_event_loop() -> None:
    code = (
        "import asyncio, sys, django; from django.conf import settings\n"
        "settings.configure(INSTALLED_APPS=['djmease'], DEBUG=True, MEASE_ROUTES={'a': 'djmease.senders.broadcast'},\n"
        "    MEASE_EMBEDDED_DIR='/nonexistent/valkey')\n"
        "asyncio.new_event_loop = None\n"
        "django.setup(); import djmease, djmease.test; djmease.publish('a', 'x')\n"
        "assert 'tornado' not in sys.modules; print('ok')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout == "ok\n", done.stderr
    assert "run_websocket_server" in done.stderr


def test_the_package_can_be_imported_before_django_is_set_up() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import djmease"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_public_names_are_sorted_exist_and_hide_no_module() -> None:
    assert djmease.__all__ == sorted(djmease.__all__)
    for name in djmease.__all__:
        assert hasattr(djmease, name)
        assert not _is_module(f"djmease.{name}")


def test_the_name_that_the_original_had_leads_to_how_it_is_said_here() -> None:
    with pytest.raises(ImportError, match=r"use  import djmease  \(docs/from-upstream\.rst\)"):
        exec("from djmease import mease")
    with pytest.raises(ImportError, match="cannot import name 'measles'"):
        exec("from djmease import measles")
    with pytest.raises(AttributeError, match="module 'djmease' has no attribute 'publsh'"):
        djmease.publsh  # type: ignore[attr-defined]  # noqa: B018


PAGES = sorted((ROOT / "docs").glob("*.rst"))
DOCUMENTS = [ROOT / "README.rst", ROOT / "sample_site" / "README.rst", *PAGES]
LINK = re.compile(r"<([^<>\s]+)>`__|^\.\. image:: (\S+)", re.MULTILINE)


def links_of(path: Path) -> Iterator[str]:
    """Yield where a page leads to, of what is in this repository."""
    for link, image in LINK.findall(path.read_text()):
        if "://" not in link:
            yield link or image


def test_the_page_of_settings_knows_every_setting_and_no_page_another() -> None:
    settings = {f"MEASE_{name}" for name in MeaseConf._meta.names}
    pattern = r"\bMEASE_[A-Z_]+[A-Z]\b"
    assert set(re.findall(pattern, (ROOT / "docs" / "settings.rst").read_text())) == settings
    for path in DOCUMENTS:
        assert set(re.findall(pattern, path.read_text())) <= settings, path


def test_the_page_on_running_it_knows_every_check_and_no_other() -> None:
    source = "".join(path.read_text() for _, path in modules())
    pattern = r"djmease\.[EW]\d{3}"
    page = (ROOT / "docs" / "operations.rst").read_text()
    assert set(re.findall(pattern, page)) == set(re.findall(pattern, source))


@pytest.mark.parametrize("path", DOCUMENTS, ids=[str(path.relative_to(ROOT)) for path in DOCUMENTS])
def test_links_between_the_pages_lead_somewhere(path: Path) -> None:
    for link in links_of(path):
        target, _, section = link.partition("#")
        page = (path.parent / target).resolve() if target else path
        assert page.exists(), link
        if section:
            titles = re.findall(r"^(\S.*)\n[-=]{3,}$", page.read_text(), re.MULTILINE)
            assert section in {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}, link


def test_the_readme_leads_to_every_page() -> None:
    led_to = {link.partition("#")[0] for link in links_of(ROOT / "README.rst")}
    assert {str(path.relative_to(ROOT)) for path in [*PAGES, *(ROOT / "docs").glob("*.md")]} <= led_to


def test_the_readmes_two_commands_are_each_on_one_line() -> None:
    lines = [line.strip() for line in (ROOT / "README.rst").read_text().splitlines()]
    assert len([line for line in lines if line.endswith(".venv/bin/python -m pytest")]) == 1
    assert len([line for line in lines if line.endswith(".venv/bin/python sample_site/manage.py demo")]) == 1
