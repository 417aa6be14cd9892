"""run_websocket_server as a process, from its banner to its end."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect, unix_connect

from tests.support import DEADLINE, ROOT, Process, Project, eventually

ECHO = """
import djmease

@djmease.sender(routing="echo")
def show(message, clients_list):
    clients_list.send(message)

@djmease.receiver
def say(client, message):
    djmease.publish("echo", message)

@djmease.closer
def note(client):
    with open("closed.txt", "a") as file:
        file.write(f"{client.close_code}\\n")
"""


def url(port: int) -> str:
    return f"ws://127.0.0.1:{port}/"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def children_of(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def valkey_pid(project: Project) -> int:
    return int((project.runtime / "valkey.pid").read_text())


def failure(process: Process) -> str:
    """Return the sentence with which a process failed; it has to be one, without a traceback."""
    assert process.wait() == 1
    assert "Traceback" not in process.err
    return process.err


def test_the_banner_tells_what_a_person_wants_to_know(project: Project) -> None:
    project.registry(ECHO)
    project.settings("MEASE_ROUTES = {'news': 'djmease.senders.broadcast'}\nMEASE_PATH = '/ws/'")
    server = project.start("run_websocket_server")
    port = server.port()
    lines = server.out.splitlines()
    assert lines[0].startswith("django-mease ") and "Django" in lines[0] and "Tornado" in lines[0]
    assert "Settings  site_settings" in lines
    assert f"Address   ws://127.0.0.1:{port}/ws/" in lines
    assert f"Redis     unix://{project.runtime}/valkey.sock (embedded Valkey)" in lines
    routes = lines[lines.index("Routes") + 1 : lines.index("Receivers")]
    assert [route.split() for route in routes] == [
        ["news", "async", "djmease.senders.broadcast", "MEASE_ROUTES['news']"],
        ["echo", "app.mease_registry.show", "app.mease_registry:4"],
    ]
    assert lines[lines.index("Receivers") + 1].split() == ["app.mease_registry.say", "app.mease_registry:8"]
    assert "Closers" in lines and "Openers" not in lines


def test_a_server_without_callbacks_says_so_and_masks_the_password(project: Project) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    project.settings(f"MEASE_REDIS_URL = 'redis://:secret@127.0.0.1:{port}/0'")
    error = failure(project.start("run_websocket_server"))
    assert f"cannot hear Redis at redis://:***@127.0.0.1:{port}/0: it does not answer" in error
    project.settings()
    server = project.start("run_websocket_server")
    server.port()
    assert "none: MEASE_ROUTES is empty, and no mease_registry has a sender" in server.out


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("debug", [False, True])
def test_a_signal_ends_it_cleanly(project: Project, number: signal.Signals, debug: bool) -> None:
    project.registry(ECHO)
    project.settings(debug=debug)
    server = project.start("run_websocket_server")
    port, valkey = server.port(), valkey_pid(project)
    children = children_of(server.pid)
    with connect(url(port)) as client:
        client.send("hi")
        assert client.recv(5) == "hi"
        server.send_signal(number)
        with pytest.raises(ConnectionClosed) as caught:
            client.recv(5)
    assert caught.value.rcvd is not None and caught.value.rcvd.code == 1012
    assert server.wait() == 0
    assert (project.home / "closed.txt").read_text() == "1012\n"
    assert not any(is_alive(pid) for pid in [valkey, *children])


def test_it_publishes_from_the_shell_of_another_process(project: Project) -> None:
    project.registry(ECHO)
    server = project.start("run_websocket_server", "-v", "2")
    with connect(url(server.port())) as client:
        done = project.run("shell", "-v", "0", "-c", "import djmease; print(djmease.publish('echo', 'Hello world !'))")
        assert client.recv(5) == "Hello world !"
    message_id = done.out.split()[-1]
    server.wait_for(f"echo {message_id}: app.mease_registry.show, 1 client, ")


def test_a_server_of_nohup_outlives_its_terminal(project: Project) -> None:
    project.registry(ECHO)
    server = Process(
        ["sh", "-c", "trap '' HUP; exec \"$@\"", "sh", sys.executable, "manage.py", "run_websocket_server"],
        project.home,
        {},
    )
    project.processes.append(server)
    with connect(url(server.port())) as client:
        server.send_signal(signal.SIGHUP)
        # A signal is dealt with before what comes later: the second answer is that of a server which has had it.
        for text in ("hi", "still there"):
            client.send(text)
            assert client.recv(5) == text


def test_what_the_checks_warn_of_is_said_when_it_starts(project: Project) -> None:
    project.settings("MEASE_ROUTE = {'news': 'djmease.senders.broadcast'}")
    server = project.start("run_websocket_server")
    server.port()
    eventually(lambda: "MEASE_ROUTE is not" in server.err and "djmease.W003" in server.err, "the warning")


@pytest.mark.parametrize("address", ["0", "127.0.0.1:0", "localhost:0", "[::1]:0"])
def test_forms_of_an_address(project: Project, address: str) -> None:
    if "::" in address and not socket.has_ipv6:
        pytest.skip("this machine has no IPv6")
    assert project.start("run_websocket_server", address).port() > 0


@pytest.mark.parametrize("address", ["eight", "127.0.0.1", "1:2:3", "70000", "127.0.0.1:99999"])
def test_what_is_no_address_is_named(project: Project, address: str) -> None:
    assert f"{address!r} is not an address" in failure(project.start("run_websocket_server", address))


def test_a_port_in_use_is_one_sentence(project: Project) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        error = failure(project.start("run_websocket_server", str(port)))
    assert f"cannot listen on 127.0.0.1:{port} (Address already in use): stop what listens there, or set" in error
    assert "MEASE_PORT = 8002 in the settings, by which pages find it too" in error
    assert not (project.runtime / "valkey.sock").exists(), "the embedded Valkey ends with it"


@pytest.mark.parametrize(
    ("host", "told"), [("no.such.invalid", ""), ("192.0.2.1", "Cannot assign requested address"), ("\udc80", "idna")]
)
def test_an_address_of_no_machine_or_of_another_is_one_sentence(project: Project, host: str, told: str) -> None:
    project.settings(f"MEASE_HOST = {host!r}")
    error = failure(project.start("run_websocket_server"))
    assert "The server cannot listen on" in error and told in error
    assert "Unknown error" not in error
    assert "set MEASE_HOST, or what is named instead, to an address of this machine" in error
    assert "stop what listens there" not in error


def test_the_banner_says_where_pages_would_not_find_the_server(project: Project) -> None:
    project.settings("MEASE_PORT = 1")
    server = project.start("run_websocket_server", "0")
    port = server.port()
    assert (
        f"Pages     connect to :1/ (MEASE_PORT), and not here: MEASE_PORT = {port} in the settings leads them"
        in server.out.splitlines()
    )
    path = str(project.runtime.parent / "mease.sock")
    server = project.start("run_websocket_server", "--unix", path)
    server.wait_for("Quit with Ctrl-C.")
    assert "Pages     connect to :1/ (MEASE_PORT), and not here: MEASE_URL = '/ws/', if a proxy" in server.out
    project.settings("MEASE_PORT = 1\nMEASE_URL = '/ws/'")
    server = project.start("run_websocket_server", "0")
    server.port()
    assert "\nPages " not in server.out


def test_a_unix_socket_is_served_replaced_when_stale_and_refused_when_in_use(project: Project) -> None:
    path = project.runtime.parent / "mease.sock"
    project.registry(ECHO)
    server = project.start("run_websocket_server", "--unix", str(path))
    server.wait_for("Quit with Ctrl-C.")
    assert f"unix:{path}" in server.out
    with unix_connect(str(path), "ws://127.0.0.1/") as client:
        client.send("hi")
        assert client.recv(5) == "hi"
    assert f"Another server listens on {path}" in failure(project.start("run_websocket_server", "--unix", str(path)))
    os.kill(server.pid, signal.SIGKILL)
    server.wait()
    assert path.exists()
    again = project.start("run_websocket_server", "--unix", str(path))
    again.wait_for("Quit with Ctrl-C.")
    missing = project.start("run_websocket_server", "--unix", str(path / "below"))
    assert "cannot listen on" in failure(missing)


def quiet(project: Project, output: str, *arguments: str) -> subprocess.Popen[bytes]:
    """Start ``manage.py`` where what it says comes to nobody: its output is closed, a full disk, or not read."""
    left, right = os.pipe()
    os.close(left)
    command = ["sh", "-c", f'exec "$@" {output}', "sh", sys.executable, "manage.py", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DJANGO_SETTINGS_MODULE": "site_settings"}
    try:
        return subprocess.Popen(command, cwd=project.home, env=environment, stdout=right, stderr=subprocess.PIPE)
    finally:
        os.close(right)


@pytest.mark.parametrize("output", [">&-", ">/dev/full", ""])
def test_a_server_serves_where_nobody_reads_what_it_says(project: Project, output: str) -> None:
    path = project.runtime.parent / "mease.sock"
    project.registry(ECHO)
    process = quiet(project, output, "run_websocket_server", "--unix", str(path))
    try:
        eventually(path.exists, "the socket")
        with unix_connect(str(path), "ws://127.0.0.1/") as client:
            client.send("hi")
            assert client.recv(5) == "hi"
    finally:
        process.terminate()
        error = process.communicate(timeout=DEADLINE)[1].decode()
    assert "Traceback" not in error
    assert ("cannot be written: [Errno 28] No space left" in error) is (output == ">/dev/full")


@pytest.mark.parametrize("output", [">&-", ""])
def test_a_command_whose_output_nobody_reads_says_nothing_of_it(project: Project, output: str) -> None:
    process = quiet(project, output, "mease_routes")
    assert process.communicate(timeout=DEADLINE)[1] == b""
    assert process.returncode == (0 if output else 1)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--unix", ""], "--unix names no path"),
        (["--fd", "-1"], "--fd -1 is not an open socket"),
        (["--certificate", ""], " cannot be read"),
        (["--key", ""], "--key goes with --certificate"),
    ],
)
def test_an_empty_variable_of_the_shell_is_not_what_was_meant(
    project: Project, arguments: list[str], told: str
) -> None:
    assert told in failure(project.start("run_websocket_server", *arguments))


def test_a_socket_that_is_open_already_is_taken_over(project: Project) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        os.set_inheritable(listening.fileno(), True)
        command = [sys.executable, "manage.py", "run_websocket_server", "--fd", str(listening.fileno())]
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "PYTHONPATH": path, "DJANGO_SETTINGS_MODULE": "site_settings"}
        process = subprocess.Popen(
            command,
            cwd=project.home,
            env=environment,
            pass_fds=[listening.fileno()],
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            with connect(url(listening.getsockname()[1])):
                pass
        finally:
            process.terminate()
            process.communicate(timeout=DEADLINE)
    assert process.returncode == 0
    assert "--fd 77 is not an open socket" in failure(project.start("run_websocket_server", "--fd", "77"))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("MEASE_ROUTES = {'news': 'no.where'}", ["MEASE_ROUTES['news']", "there is no module 'no'", "E002"]),
        ("MEASE_PORT = 'x'", ["MEASE_PORT is 'x'", "E008"]),
        ("MEASE_REDIS_URL = None", ["MEASE_REDIS_URL is not set", "embedded://"]),
        ("MEASE_EMBEDDED_DIR = '/proc/nowhere'", ["MEASE_EMBEDDED_DIR"]),
        ("MEASE_EMBEDDED_DIR = ['/tmp']", ["MEASE_EMBEDDED_DIR is ['/tmp']", "absolute path"]),
        ("MEASE_EMBEDDED_DIR = 'valkey'", ["MEASE_EMBEDDED_DIR is 'valkey'", "absolute path"]),
    ],
)
def test_a_bad_setting_is_one_sentence(project: Project, settings: str, words: list[str]) -> None:
    project.settings(settings)
    error = failure(project.start("run_websocket_server"))
    assert all(word in error for word in words), error


def test_an_error_in_a_registry_module_is_shown_as_it_is(project: Project) -> None:
    project.registry("import djmease\n1 / 0\n")
    done = project.run("run_websocket_server")
    assert done.code == 1
    assert "mease_registry.py" in done.err and "ZeroDivisionError" in done.err


def change(file: Path, text: str, server: Process) -> None:
    """Save a file as an editor does, again and again: what is saved before the first look at it shows no change."""
    before = server.out.count("changed, reloading") + server.err.count("changed, reloading")
    file.write_text(text)

    def is_noticed() -> bool:
        status = file.stat()
        os.utime(file, (status.st_atime, status.st_mtime + 1))
        return server.out.count("changed, reloading") + server.err.count("changed, reloading") > before

    eventually(is_noticed, "the change")


def test_code_that_changes_is_loaded_and_the_embedded_valkey_lives_through_it(project: Project) -> None:
    registry = project.registry(ECHO)
    project.settings(debug=True)
    server = project.start("run_websocket_server")
    first, valkey = server.port(), valkey_pid(project)

    with connect(url(first)) as client:
        client.send("hi")
        assert client.recv(5) == "hi"
        eventually(lambda: re.search(r"say, \d+\.\d ms", server.err))
        change(registry, ECHO.replace("send(message)", "send(message + ' again')"), server)
        with pytest.raises(ConnectionClosed):
            client.recv(DEADLINE)
    with connect(url(server.port(times=2))) as client:
        client.send("hi")
        assert client.recv(5) == "hi again"
    change(registry, "import djmease\nthis is no Python\n", server)
    server.wait_for("waiting for a change of its code")
    change(registry, ECHO, server)
    with connect(url(server.port(times=3))) as client:
        client.send("hi")
        assert client.recv(5) == "hi"
    assert valkey_pid(project) == valkey
    server.send_signal(signal.SIGTERM)
    assert server.wait() == 0
    assert not is_alive(valkey)


def test_the_first_registry_of_an_app_is_loaded_too(project: Project) -> None:
    registry = project.registry(ECHO)
    registry.unlink()
    project.settings(debug=True)
    server = project.start("run_websocket_server")
    server.port()
    registry.write_text(ECHO)
    with connect(url(server.port(times=2))) as client:
        client.send("hi")
        assert client.recv(5) == "hi"
    server.send_signal(signal.SIGTERM)
    assert server.wait() == 0


def test_a_callback_that_only_settings_name_is_waited_for_until_it_is_there_and_again_when_it_is_mended(
    project: Project,
) -> None:
    project.settings(debug=True)
    server = project.start("run_websocket_server")
    server.port()
    settings, module = project.home / "site_settings.py", project.home / "late.py"
    change(settings, settings.read_text() + "\nMEASE_RECEIVERS = ['late.say']\n", server)
    server.wait_for("waiting for a change of its code")
    module.write_text(ECHO)
    for start in (2, 3):
        with connect(url(server.port(times=start))) as client:
            client.send("hi")
            assert client.recv(5) == "hi"
        if start == 2:
            change(module, "this is no Python\n", server)
            server.wait_for("waiting for a change of its code", times=2)
            change(module, ECHO, server)


def test_a_registry_that_came_with_an_error_is_waited_for_until_it_is_mended(project: Project) -> None:
    registry = project.registry(ECHO)
    registry.unlink()
    project.settings(debug=True)
    server = project.start("run_websocket_server")
    server.port()
    registry.write_text("1 / 0\n")
    server.wait_for("waiting for a change of its code")
    change(registry, ECHO, server)
    with connect(url(server.port(times=2))) as client:
        client.send("hi")
        assert client.recv(5) == "hi"


def test_a_signal_ends_the_wait_for_a_change_too(project: Project) -> None:
    registry = project.registry(ECHO)
    project.settings(debug=True)
    server = project.start("run_websocket_server")
    server.port()
    change(registry, "1 / 0", server)
    server.wait_for("waiting for a change of its code")
    server.send_signal(signal.SIGTERM)
    server.wait()
    assert not (project.runtime / "valkey.sock").exists()


def test_a_child_ends_when_its_parent_was_killed(project: Project) -> None:
    project.registry(ECHO)
    project.settings(debug=True)
    server = project.start("run_websocket_server")
    server.port()
    children = children_of(server.pid)
    assert children
    valkey = valkey_pid(project)
    os.kill(server.pid, signal.SIGKILL)
    eventually(lambda: not any(is_alive(pid) for pid in [*children, valkey]))


def test_the_embedded_valkey_is_started_again_when_it_dies(project: Project) -> None:
    project.registry(ECHO)
    server = project.start("run_websocket_server")
    with connect(url(server.port())) as client:
        os.kill(valkey_pid(project), signal.SIGKILL)
        server.wait_for("Redis is back after")
        client.send("still here")
        assert client.recv(5) == "still here"
    assert server.err.count("Redis is gone") == 1


def test_the_site_runs_beside_it_told_apart_and_one_signal_ends_both(project: Project) -> None:
    project.write(
        "urls.py",
        "from django.http import HttpResponse\nfrom django.urls import path\n"
        "from djmease.templatetags.djmease import server_url\n"
        "urlpatterns = [path('', lambda request: HttpResponse(server_url()))]\n",
    )
    port, websocket_port = free_port(), free_port()
    project.settings("ROOT_URLCONF = 'urls'\nMEASE_PORT = 1", debug=True)
    server = project.start("run_websocket_server", str(websocket_port), "--with-site", f"0.0.0.0:{port}")
    assert server.port() == websocket_port
    assert "\nPages     on other machines get the site and no WebSocket" in server.out
    assert "\nPages     connect" not in server.out
    server.wait_for(f"development server at http://0.0.0.0:{port}/")
    assert "site | Quit the server" in server.out
    processes = children_of(server.pid)
    assert len(processes) == 2, "the server and the site"

    def page() -> bytes:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=DEADLINE) as response:
                return bytes(response.read())
        except OSError:
            return b""

    assert eventually(page).decode() == f":{websocket_port}/", "where the server is, whatever MEASE_PORT says"
    below = [pid for process in processes for pid in children_of(process)]
    server.send_signal(signal.SIGINT)
    assert server.wait() == 0
    eventually(lambda: not any(is_alive(pid) for pid in [*processes, *below]))


def test_the_site_comes_back_too_when_what_kept_it_from_starting_is_mended(project: Project) -> None:
    project.write(
        "urls.py",
        "from django.http import HttpResponse\nfrom django.urls import path\n"
        "urlpatterns = [path('', lambda request: HttpResponse('the page'))]\n",
    )
    module = project.write("late.py", ECHO)
    project.settings("ROOT_URLCONF = 'urls'\nMEASE_RECEIVERS = ['late.say']", debug=True)
    port = free_port()
    server = project.start("run_websocket_server", "--with-site", str(port))
    server.port()
    server.wait_for("site | Quit the server")
    # Django's reloader looks once a second, and knows the module from its second look on; nothing tells of that.
    known_at = time.monotonic() + 3.0
    eventually(lambda: time.monotonic() >= known_at)
    change(module, "this is no Python\n", server)
    server.wait_for("waiting for a change of its code")

    # Where it was slower the site lives on.
    with suppress(AssertionError):
        eventually(lambda: "System check identified 1 issue" in server.out, timeout=5)
    change(module, ECHO, server)
    with connect(url(server.port(times=2))):
        pass

    def page() -> bytes:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=DEADLINE) as response:
                return bytes(response.read())
        except OSError:
            return b""

    assert eventually(page) == b"the page"
    server.send_signal(signal.SIGINT)
    assert server.wait() == 0


def test_a_site_that_cannot_start_ends_both(project: Project) -> None:
    project.write("urls.py", "urlpatterns = []")
    project.settings("ROOT_URLCONF = 'urls'")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = project.start("run_websocket_server", "--with-site", str(port))
        assert server.wait() == 1
    assert "site | Error: That port is already in use." in server.out
    assert "runserver has ended with exit code 1" in server.out
