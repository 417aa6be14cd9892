"""What a message to a group costs the servers, and whether it reaches the group's members and nobody else.

::

    python benchmarks/groups.py            # installs Channels in .venv-benchmarks; some minutes
    python benchmarks/groups.py --write    # also writes docs/groups.md
    python benchmarks/groups.py --short    # small numbers, no peers, nothing to install; counts the messages

Two server processes on one Valkey, each with half of the members of each group. Every message is compared at every
client, of all groups: one that is lost, doubled, altered, out of order, or at a client which is in none of its groups
ends the run with an error. What is compared is measured in turns, and each figure is the median of the rounds. CPU is
user and system time of the server processes, from the operating system.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from delivery import VENV, run_in_venv


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="small numbers, without the peers")
    parser.add_argument("--write", action="store_true", help="write docs/groups.md")
    options = parser.parse_args()
    if options.write and options.short:
        parser.error("what is written is the whole comparison: --write does not go with --short")
    if not options.short and Path(sys.prefix) != VENV:
        return run_in_venv()
    # What follows needs what only that environment, or one with the embedded extra, has.
    import comparison_of_groups
    from peers import MAKERS_OF_GROUPS, OURS

    sizes = comparison_of_groups.SHORT if options.short else comparison_of_groups.Sizes()
    comparison = comparison_of_groups.GroupsComparison([OURS] if options.short else list(MAKERS_OF_GROUPS), sizes)
    comparison.run()
    sys.stdout.write(comparison_of_groups.text(comparison))
    if options.write:
        comparison_of_groups.write(comparison)
    return 0


if __name__ == "__main__":
    sys.exit(main())
