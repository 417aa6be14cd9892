"""A process in a terminal of so many columns and lines, whose screen is read as it is written."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import threading

from tests.support import DEADLINE, ROOT, Project, eventually


class Terminal:
    """Runs a project's ``manage.py`` in a terminal of its own; use it in ``with``."""

    def __init__(self, project: Project, *arguments: str, columns: int = 80, lines: int = 24, **environment: str):
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        left_out = ("DJANGO_SETTINGS_MODULE", "COLUMNS", "LINES")
        inherited = {name: value for name, value in os.environ.items() if name not in left_out}
        self.popen = subprocess.Popen(
            [sys.executable, "manage.py", *arguments],
            cwd=project.home,
            env={**inherited, "PYTHONPATH": str(ROOT), "TERM": "xterm", **environment},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        os.close(slave)
        self.out = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        if self.popen.poll() is None:
            self.popen.kill()
        self.popen.wait(DEADLINE)
        self._reader.join(DEADLINE)
        os.close(self._master)

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._master, 65536)
            except OSError:  # Linux says so when nobody has the other end open any more.
                return
            if not data:
                return
            self.out += data.decode()

    @property
    def plain(self) -> str:
        """What was written, without what moves and colours."""
        return re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", self.out).replace("\r\n", "\n")

    def wait_for(self, text: str, times: int = 1) -> None:
        eventually(
            lambda: self.plain.count(text) >= times or self.popen.poll() is not None, f"{text!r} in {self.plain!r}"
        )
        assert self.plain.count(text) >= times, self.plain

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        self.popen.send_signal(signal.SIGINT)

    def wait(self) -> int:
        code = self.popen.wait(DEADLINE)
        self._reader.join(DEADLINE)
        return code
