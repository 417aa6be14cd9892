"""The supervisor of a server and a site, here with other programs in their places; test_command runs the real ones."""

from __future__ import annotations

import asyncio
import sys

import pytest

from djmease.server.processes import Supervisor

SERVER = "import signal; signal.pause()"


def run(site: str) -> tuple[int, str]:
    """Run a site beside a server that only waits; return the exit code and what was written."""
    written: list[str] = []

    async def supervise() -> int:
        server, beside = [sys.executable, "-c", SERVER], [sys.executable, "-c", site]
        return await Supervisor(server=server, site=beside, site_environment={}, write=written.append).run()

    return asyncio.run(supervise()), "".join(written)


@pytest.mark.parametrize("length", [10, 65_536, 1_000_000])
def test_a_line_of_the_site_may_have_any_length(length: int) -> None:
    code, written = run(f"import sys; print('x' * {length}); print('next'); sys.exit(7)")
    assert code == 7
    assert written == f"site | {'x' * length}\nsite | next\nsite | runserver has ended with exit code 7\n"
