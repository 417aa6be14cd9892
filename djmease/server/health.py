"""``/healthz`` and ``/readyz``: whether the process lives, and whether it should be sent clients."""

from __future__ import annotations

from collections.abc import Callable

from tornado.web import RequestHandler


class Health(RequestHandler):
    """Answers 200 with ``ok``, or 503 with the trouble in a sentence; whatever the Host says, since probes say none."""

    def initialize(self, *, trouble: Callable[[], str | None]) -> None:
        self._trouble = trouble

    def get(self) -> None:
        trouble = self._trouble()
        self.set_status(200 if trouble is None else 503)
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        self.set_header("Cache-Control", "no-store")
        self.finish(f"{trouble or 'ok'}\n")

    head = get


def no_trouble() -> None:
    """Say that a process that can answer lives."""
