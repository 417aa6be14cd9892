"""``python manage.py mease_routes``: what is registered, and from where."""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser
from typing import Any

from djmease import checks, loader
from djmease.management.terminal import TerminalCommand
from djmease.routes_text import registry_json, registry_text, resolution_json, resolution_text, resolve


class Command(TerminalCommand):
    help = (
        "Lists the routes, receivers, openers, closers and groups, and where each was declared; or tells which senders "
        "would run for a routing, with the exit code 1 where none would. It asks no server, and no Redis."
    )
    example = "mease_routes chat.message"

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("routing", nargs="?", metavar="ROUTING", help="tell what would run for this routing")
        parser.add_argument("--json", action="store_true", help="as one JSON object")

    def handle(self, *args: Any, **options: Any) -> None:
        registry, faults = loader.load().registry, checks.faults()
        if options["routing"] is None:
            if options["json"]:
                self.say(json.dumps(registry_json(registry, faults)))
            else:
                self.say(registry_text(registry, faults, width=self.width, style=self.palette))
            return
        found = resolve(registry, options["routing"])
        if options["json"]:
            self.say(json.dumps(resolution_json(found, faults)))
        else:
            self.say(resolution_text(found, faults, width=self.width, style=self.palette))
        if not found.senders:
            sys.exit(1)
