"""The files of the browser client: what they weigh, that they agree, that storages take them, and their own tests."""

from __future__ import annotations

import gzip
import re
import subprocess
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.contrib.staticfiles.storage import ManifestStaticFilesStorage
from django.core.files.storage import storages
from django.core.management import call_command
from django.template import Context, Template

from tests.support import ROOT, find_program

FILES = ROOT / "djmease" / "static" / "djmease"
SCRIPT = FILES / "mease.js"
MODULE = FILES / "mease.module.js"
EXPORTS = "\nexport const { connect } = globalThis.mease;\nexport default globalThis.mease;\n"
CODES = re.compile(r"const (REFUSED|ENDED) = \[(.*)\]")
MAX_SIZE = 5_000


class AggregatingStorage(ManifestStaticFilesStorage):
    support_js_module_import_aggregation = True


def test_its_own_tests_pass() -> None:
    node = find_program("node")
    files = sorted(str(path) for path in (ROOT / "tests" / "js").glob("*.test.mjs"))
    assert len(files) >= 2
    done = subprocess.run([node, "--test", *files], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(re.search(r"^\W*pass (\d+)$", done.stdout, re.MULTILINE)[1]) >= 100


def without_comments(source: str) -> str:
    """Return the code without comments, indentation and empty lines: more than a minifier would leave."""
    code = re.sub(r"/\*.*?\*/", "", source, flags=re.DOTALL)
    code = re.sub(r"(^|\s)//.*$", "", code, flags=re.MULTILINE)
    return "\n".join(line.strip() for line in code.splitlines() if line.strip())


@pytest.mark.parametrize("path", [SCRIPT, MODULE], ids=lambda path: path.name)
def test_it_is_small(path: Path) -> None:
    assert 1_000 < len(gzip.compress(without_comments(path.read_text()).encode())) <= MAX_SIZE


def test_the_module_is_the_script_and_its_exports() -> None:
    """They import nothing of each other, since storages with hashed names do not rewrite imports by default."""
    cure = f"copy {SCRIPT.name} to {MODULE.name}, and append:\n{EXPORTS}"
    assert MODULE.read_text() == SCRIPT.read_text() + EXPORTS, cure


def test_the_types_know_the_same_names() -> None:
    source, types = SCRIPT.read_text(), (FILES / "mease.d.ts").read_text()
    options = set(re.findall(r"(\w+):", re.search(r"DEFAULTS = \{(.*)\}", source)[1])) | {"ticket", "csrfToken"}
    assert set(re.findall(r"^  (\w+)\?:", types, re.MULTILINE)) == options
    of_group = re.search(r"interface Group \{.*?\n\}", types, re.DOTALL)[0]
    of_live = re.search(r"interface Live \{.*?\n\}", types, re.DOTALL)[0]
    for name, described in (("LIVE", of_live), ("GROUP", of_group)):
        events = re.findall(r'"(\w+)"', re.search(rf"{name}_EVENTS = \[(.*)\]", source)[1])
        assert set(re.findall(r'on\(name: "(\w+)"', described)) == set(events)
    states = re.findall(r'"(\w+)"', re.search(r"type State = (.*);", types)[1])
    assert set(re.findall(r'#(?:state = |end\()"(\w+)"', source)) == set(states)
    group_states = re.findall(r'"(\w+)"', re.search(r"type GroupState = (.*);", types)[1])
    becomes = re.findall(r'[^#]\bstate = "(\w+)"|type === "(joined|refused)"', source)
    assert {one or other for one, other in becomes} == set(group_states)


def test_the_types_know_each_reason_of_a_refusal() -> None:
    types, protocol = (FILES / "mease.d.ts").read_text(), (ROOT / "docs" / "mease-v1.rst").read_text()
    told = set(re.findall(r'"(\w+)"', re.search(r'"reason": \{\s*"enum": \[(.*?)\]', protocol, re.DOTALL)[1]))
    # A group's page asks nothing but to join and to leave.
    expected = told - {"unknown_type"}
    assert set(re.findall(r'\| "(\w+)"', re.search(r"type Reason =(.*?);", types, re.DOTALL)[1])) == expected


def test_it_stays_away_after_the_codes_of_which_the_readme_says_so() -> None:
    rows = re.findall(r"^(\d{4})   (yes|no) ", (ROOT / "README.rst").read_text(), re.MULTILINE)
    codes = {name: {int(code) for code in re.findall(r"\d+", text)} for name, text in CODES.findall(SCRIPT.read_text())}
    away = codes["REFUSED"] | codes["ENDED"]
    assert len(rows) >= 8
    assert {int(code) for code, again in rows if again == "no"} <= away
    assert not {int(code) for code, again in rows if again == "yes"} & away


@pytest.mark.parametrize(
    "storage",
    [
        "django.contrib.staticfiles.storage.StaticFilesStorage",
        "django.contrib.staticfiles.storage.ManifestStaticFilesStorage",
        "tests.test_mease_js.AggregatingStorage",
    ],
)
def test_static_files_storages_take_them_and_the_tag_names_what_is_there(
    settings: Any, tmp_path: Path, storage: str
) -> None:
    settings.STATIC_URL, settings.STATIC_ROOT = "/static/", str(tmp_path)
    settings.STORAGES = {**settings.STORAGES, "staticfiles": {"BACKEND": storage}}
    call_command("collectstatic", interactive=False, stdout=StringIO())
    html = Template("{% load djmease %}{% mease_script %}").render(Context())
    name = re.search(r'src="/static/([^"]+)"', html)[1]
    assert (name == "djmease/mease.js") == storage.endswith(".StaticFilesStorage")
    assert (tmp_path / name).read_text() == SCRIPT.read_text()
    module = storages["staticfiles"].url("djmease/mease.module.js").removeprefix("/static/")
    assert (tmp_path / module).read_text() == MODULE.read_text()
