"""Runs Autobahn's fuzzing client against a real server, and writes what it found to ``docs/conformance.rst``.

Autobahn's last release (``autobahntestsuite==0.8.2``) needs Python 2.7. Install it there, and name its ``wstest``::

    python2.7 -m pip install virtualenv==20.15.1
    python2.7 -m virtualenv ab && ab/bin/pip install autobahntestsuite==0.8.2
    python conformance/autobahn.py --wstest ab/bin/wstest
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import django
from django.conf import settings

ROOT = Path(__file__).parent.parent
SECTIONS = ["1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*", "9.*", "10.*", "12.*", "13.*"]
PASSED = {"OK", "NON-STRICT", "INFORMATIONAL", "UNIMPLEMENTED"}
LARGEST = 32 * 1024 * 1024
INTRODUCTION = """\
Conformance
===========

What `Autobahn's fuzzing client <https://github.com/crossbario/autobahn-testsuite>`_ says of the server, an echo by an
``async def`` receiver. ``OK`` is as RFC 6455 has it; ``NON-STRICT`` is within it, though not as early as it could be;
``INFORMATIONAL`` is behaviour that the RFC leaves open. Sections 12 and 13 are compression, which is on; in those of 13
that are ``UNIMPLEMENTED`` the client demands a smaller window of the server, and that is declined: all clients get the
same compressed frames. Made by ``python conformance/autobahn.py``.

"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wstest", default=shutil.which("wstest"), help="Autobahn's command, if not on the PATH")
    parser.add_argument("--cases", nargs="*", default=SECTIONS, help="for example 6.* 7.1.1")
    options = parser.parse_args()
    if options.wstest is None:
        parser.error("wstest is not on the PATH: install autobahntestsuite for Python 2.7, and name it with --wstest")
    behaviours = run(options.wstest, options.cases)
    if options.cases == SECTIONS:
        (ROOT / "docs" / "conformance.rst").write_text(INTRODUCTION + table(behaviours))
    failed = {case: behaviour for case, behaviour in behaviours.items() if behaviour not in PASSED}
    sys.stdout.write(f"{table(behaviours)}\n{len(failed)} of {len(behaviours)} cases failed {failed or ''}\n")
    return 1 if failed or not behaviours else 0


def run(wstest: str, cases: list[str]) -> dict[str, str]:
    """Return the behaviour that Autobahn found in each case, the worse of the message's and the close's."""
    server = start_server()
    try:
        with tempfile.TemporaryDirectory() as home:
            specification = {
                "outdir": home,
                "servers": [{"agent": "django-mease", "url": server.url}],
                "cases": cases,
                "exclude-cases": [],
                "exclude-agent-cases": {},
            }
            file = Path(home, "fuzzingclient.json")
            file.write_text(json.dumps(specification))
            subprocess.run([wstest, "-m", "fuzzingclient", "-s", str(file)], cwd=home, check=True)
            report = json.loads(Path(home, "index.json").read_text())["django-mease"]
    finally:
        server.stop()
    return {case: worse(result["behavior"], result["behaviorClose"]) for case, result in report.items()}


def worse(behaviour: str, of_close: str) -> str:
    return of_close if behaviour in PASSED and of_close not in PASSED else behaviour


def start_server() -> Any:
    settings.configure(
        ALLOWED_HOSTS=["127.0.0.1"],
        INSTALLED_APPS=["djmease"],
        MEASE_REDIS_URL="redis://127.0.0.1/0",
        MEASE_MAX_MESSAGE_SIZE=LARGEST,
        MEASE_MAX_CLIENT_BUFFER=LARGEST,
        MEASE_COMPRESSION=True,
        MEASE_MAX_MESSAGE_RATE=None,
    )
    django.setup()
    # Django has to be set up first.
    import djmease
    from djmease.server.live import LiveServer

    @djmease.receiver
    async def echo(client: djmease.Client, message: str | bytes) -> None:
        await client.write_message(message)

    server = LiveServer()
    server.start()
    return server


def table(behaviours: dict[str, str]) -> str:
    """Return a table of the behaviours, counted by section."""
    sections: dict[str, Counter[str]] = {}
    for case, behaviour in behaviours.items():
        sections.setdefault(case.split(".")[0], Counter())[behaviour] += 1
    columns = sorted({behaviour for counts in sections.values() for behaviour in counts} | {"OK"})
    rule = " ".join(["=======", *("=" * max(len(column), 4) for column in columns)])
    lines = [rule, " ".join(["Section", *(column.ljust(4) for column in columns)]), rule]
    for section in sorted(sections, key=int):
        cells = (str(sections[section][column]).ljust(max(len(column), 4)) for column in columns)
        lines.append(" ".join([section.ljust(7), *cells]).rstrip())
    return "\n".join([*lines, rule, ""])


if __name__ == "__main__":
    sys.exit(main())
