"""What a delivered message costs the server: django-mease against Channels, ``websockets`` and a bare loop of ``send``.

::

    python benchmarks/delivery.py                          # installs the peers in .venv-benchmarks; under ten minutes
    python benchmarks/delivery.py --write                  # also writes docs/benchmarks.* and the README's table
    python benchmarks/delivery.py --only djmease --short   # no peers, nothing to install; counts the messages

The servers run side by side on this machine, and blocks of the same work go to them in turns, so that a noisy machine
disturbs all alike; each figure is the median of the rounds. CPU is user and system time of the server process, from
the operating system. Each message is compared at each client: one that is lost, doubled, altered or out of order ends
the run with an error. ``comparison.py`` has what is done, ``peers.py`` the servers,
``report.py`` the targets and what is printed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
VENV = ROOT / ".venv-benchmarks"
PEERS = ["channels>=4.3,<5", "channels-redis>=4.3", "uvicorn[standard]", "daphne>=4.2", "websockets>=14"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["djmease"], help="without the peers")
    parser.add_argument("--short", action="store_true", help="small numbers: it counts the messages, and no more")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks.* and the README's table")
    options = parser.parse_args()
    if options.write and (options.only or options.short):
        parser.error("what is written is the whole comparison: --write goes with neither --only nor --short")
    if options.only is None and Path(sys.prefix) != VENV:
        return run_in_venv()
    # What follows needs what only that environment, or one with the embedded extra, has.
    import comparison
    import peers
    import report

    names = [peers.OURS, peers.WITHOUT_REPORTS_NAME] if options.only else list(peers.MAKERS)
    result = comparison.Comparison(names, comparison.SHORT if options.short else comparison.Sizes()).run()
    sys.stdout.write(report.text(result))
    if options.write:
        report.write(result)
    return 0


def run_in_venv() -> int:
    """Run this again where the peers are installed."""
    python = VENV / "bin" / "python"
    installed = VENV / "installed.txt"
    wanted = "\n".join(PEERS)
    if not installed.exists() or installed.read_text() != wanted:
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(VENV)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", "-e", f"{ROOT}[embedded]", *PEERS], check=True)
        installed.write_text(wanted)
    return subprocess.run([str(python), *sys.argv], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
