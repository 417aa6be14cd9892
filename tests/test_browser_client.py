"""``mease.js`` in Chromium: real pages, real servers, and what happens to a connection between them."""

from __future__ import annotations

import json
import select
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth import logout
from django.contrib.auth.models import User
from django.core.exceptions import PermissionDenied
from django.db import connections
from django.http import HttpRequest, HttpResponse
from django.middleware.csrf import get_token
from django.template import Context, Template
from django.test import Client as DjangoClient
from django.test.testcases import LiveServerThread, _StaticFilesHandler
from django.urls import path
from websockets.sync.server import ServerConnection, serve

import djmease
from djmease import views
from tests.browser import Browser, Window
from tests.support import DEADLINE, ROOT, LiveServer, Process, Project, eventually, find_program

StartServer = Callable[[], LiveServer]
Log = Callable[[], list[str]]

PAGE = """<!doctype html><title>A page</title><link rel="icon" href="data:,">
<form>{% csrf_token %}</form>
{% load djmease %}{% mease_script %}
<script type="module" nonce="{{ csp_nonce }}">
    import mease, { connect } from "/static/djmease/mease.module.js"
    window.module = { mease, connect }
</script>"""

CONNECT = """
window.events = []
window.texts = []
window.live = mease.connect(...arguments)
for (const name of ["open", "close", "reconnecting", "refused", "dropped"])
    live.on(name, details => events.push([name, details]))
live.on("message", data => texts.push(data))
"""

JOIN = """
window.told = []
window.board = live.group(arguments[0])
for (const name of ["joined", "refused", "mease.presence"]) board.on(name, details => told.push([name, details]))
board.on("message", data => { if (data.type === undefined) told.push(data) })
"""


def page(request: HttpRequest) -> HttpResponse:
    context = Context({"csrf_token": get_token(request), "csp_nonce": "of-this-page"})
    response = HttpResponse(Template(PAGE).render(context))
    response.headers["Content-Security-Policy"] = f"script-src 'nonce-{request.GET.get('nonce', 'of-this-page')}'"
    return response


def log_out(request: HttpRequest) -> HttpResponse:
    logout(request)
    return HttpResponse("bye")


urlpatterns = [path("", page), path("ws-ticket/", views.ticket), path("log-out/", log_out)]


@pytest.fixture
def site(settings: Any, transactional_db: None) -> Iterator[str]:
    """The URL of a real site, whose pages the server lets in."""
    settings.ROOT_URLCONF = __name__
    settings.STATIC_URL, settings.STATIC_ROOT = "/static/", str(ROOT / "djmease" / "static")
    settings.MIDDLEWARE = [
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.middleware.csrf.CsrfViewMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
    ]
    thread = LiveServerThread("127.0.0.1", _StaticFilesHandler, {"default": connections["default"]})
    thread.daemon = True
    # For good: a browser keeps connections open, and their threads touch the database when they end at last.
    connections["default"].inc_thread_sharing()
    thread.start()
    assert thread.is_ready.wait(DEADLINE) and thread.error is None
    yield f"http://127.0.0.1:{thread.port}/"
    thread.terminate()


@pytest.fixture
def heard() -> list[Any]:
    """What a receiver hears, which says it back."""
    heard: list[Any] = []

    @djmease.receiver
    def hear(client: Any, message: Any) -> None:
        heard.append(message)
        client.write_message({"type": "said", "text": message})

    return heard


@pytest.fixture
def companies() -> list[int]:
    """For each client that came, how many there were already."""
    companies: list[int] = []

    @djmease.opener
    def count(clients_list: Any) -> None:
        companies.append(len(clients_list))

    return companies


@pytest.fixture
def connected(
    browser: Browser, site: str, start_server: StartServer, settings: Any
) -> Callable[..., tuple[Window, LiveServer]]:
    """A function that opens a page which is connected to a server of the moment."""

    def connect(*arguments: Any) -> tuple[Window, LiveServer]:
        server = start_server()
        settings.MEASE_PORT = server.port
        window = browser.open(site)
        window.run(CONNECT, *arguments)
        window.wait_for("live.state === 'open'")
        return window, server

    return connect


def names_of(window: Window) -> list[str]:
    return [name for name, _ in window.run("return events")]


def pass_time(window: Window, seconds: float) -> None:
    """Let time go by in the page: where what is tested is what happens after it."""
    window.run("window.since = performance.now()")
    window.wait_for(f"performance.now() - since > {seconds * 1000}")


# The page and its tag


def test_the_tag_is_all_that_a_page_needs(connected: Any, heard: list[Any]) -> None:
    window, _ = connected()
    window.run("live.on('said', data => { document.title = data.text }); live.send('hello')")
    window.wait_for("document.title === 'hello'")
    assert window.run("return [live.state, texts]") == ["open", [{"type": "said", "text": "hello"}]]
    assert heard == ["hello"]
    assert window.logged() == []


def test_the_module_exports_the_same(connected: Any, heard: list[Any]) -> None:
    window, _ = connected()
    window.wait_for("window.module")
    assert window.run("return module.mease === mease && module.connect === mease.connect") is True


def test_a_policy_that_lets_in_the_pages_nonce_lets_in_the_script(browser: Browser, site: str) -> None:
    browser.open(site).wait_for("typeof mease === 'object'")
    assert browser.open(site + "?nonce=another").run("return typeof mease") == "undefined"


def test_bytes_and_objects_arrive_as_they_were_sent(connected: Any, heard: list[Any]) -> None:
    window, server = connected()
    window.run("live.send(new Uint8Array([0, 255])); live.send({type: 'a', text: 'ü'})")
    eventually(lambda: len(heard) == 2, "two messages")
    assert (heard[0], json.loads(heard[1])) == (b"\x00\xff", {"type": "a", "text": "ü"})
    window.run("window.bytes = null; live.on('message', data => { if (data instanceof ArrayBuffer) bytes = data })")
    server.call(lambda: server.server.clients.snapshot().send(b"\x01\x02"))
    window.wait_for("bytes && [...new Uint8Array(bytes)].join() === '1,2'")


# Servers that go and come back

RECORDER = """
import djmease, time

@djmease.opener
def note(client, clients_list):
    with open("opened.txt", "a") as file:
        print(time.time(), len(clients_list), file=file)

@djmease.receiver
def hear(client, message):
    with open("heard.txt", "a") as file:
        print(message, file=file)
    client.write_message(message)
"""


def start_recorder(project: Project, port: int = 0, more: str = "") -> tuple[Process, int]:
    """Start a server that writes down who came and what was said; returns its port."""
    project.registry(RECORDER)
    project.settings(f"MEASE_DRAIN_TIMEOUT = 1\nMEASE_MAX_MESSAGE_RATE = None\n{more}")
    server = project.start("run_websocket_server", f"127.0.0.1:{port}", "--noreload")
    return server, server.port()


def lines_of(project: Project, name: str) -> list[str]:
    file = project.home / name
    return file.read_text().splitlines() if file.exists() else []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda number: number.name)
def test_a_server_that_comes_back_has_its_pages_back_with_what_they_had_to_say(
    browser: Browser, site: str, project: Project, number: int
) -> None:
    server, port = start_recorder(project)
    window = browser.open(site)
    window.run("Math.random = () => 0.2")
    window.run(CONNECT, f":{port}/")
    window.run("live.send('before')")
    window.wait_for("texts.length === 1")
    server.send_signal(number)
    window.wait_for("live.state === 'reconnecting'")
    server.wait()
    window.run("for (let i = 0; i < 50; i++) live.send('away ' + i)")
    window.wait_for("events.filter(([name]) => name === 'reconnecting').length > 2")
    start_recorder(project, port)
    window.wait_for("live.state === 'open' && texts.length === 51", timeout=60)
    window.run("live.send('after')")
    window.wait_for("texts.length === 52")
    expected = ["before", *(f"away {number}" for number in range(50)), "after"]
    assert window.run("return texts") == expected == lines_of(project, "heard.txt")
    assert [line.split()[1] for line in lines_of(project, "opened.txt")] == ["0", "0"]
    code = next(details["code"] for name, details in window.run("return events") if name == "close")
    assert code == (1012 if number == signal.SIGTERM else 1006)
    assert names_of(window)[-1] == "open" and window.run("return events.at(-1)[1]") == {"again": True}


CROWD = """
import { readFileSync } from "node:fs";
const [file, url, count] = process.argv.slice(2);
// Unlike a browser, Node 20 tells of a connection that never came by "error" alone.
globalThis.WebSocket = class extends WebSocket {
    constructor(...options) {
        super(...options);
        this.addEventListener("error", () => this.onclose?.({ code: 1006, reason: "" }));
    }
};
(0, eval)(readFileSync(file, "utf8"));
let open = 0;
for (let number = 0; number < Number(count); number++) {
    const live = mease.connect(url);
    live.on("open", () => console.log("open", ++open));
    live.on("reconnecting", ({ attempt }) => console.log("attempt", attempt));
}
"""


def test_a_crowd_comes_back_spread_over_seconds(project: Project, tmp_path: Path) -> None:
    """After a crash, at which all lose their connection in one moment, and a restart that takes its time."""
    crowd = 200
    server, port = start_recorder(project)
    script = tmp_path / "crowd.mjs"
    script.write_text(CROWD)
    file = ROOT / "djmease" / "static" / "djmease" / "mease.js"
    node = [find_program("node"), "--experimental-websocket", "--no-warnings", str(script)]
    pages = Process([*node, str(file), f"ws://127.0.0.1:{port}/", str(crowd)], tmp_path, {})
    project.processes.append(pages)
    pages.wait_for(f"open {crowd}\n")
    # A page is open before its opener has run, and who is killed runs no more of them.
    eventually(lambda: len(lines_of(project, "opened.txt")) == crowd, "everybody's opener")
    server.send_signal(signal.SIGKILL)
    server.wait()
    pages.wait_for("attempt 3\n", times=crowd)
    start_recorder(project, port)
    eventually(lambda: len(lines_of(project, "opened.txt")) >= 2 * crowd, "everybody's return", timeout=60)
    times = sorted(float(line.split()[0]) for line in lines_of(project, "opened.txt"))[crowd:]
    assert len(times) == crowd
    busiest = max(sum(start <= moment < start + 1 for moment in times) for start in times)
    assert busiest <= 0.8 * crowd, f"{busiest} of {crowd} came within one second"
    assert times[-1] - times[0] > 2


# Networks that go and come back


class Wire(threading.Thread):
    """A TCP proxy on a port of its own, which can be cut: then it passes nothing on, and closes nothing."""

    def __init__(self, target: int) -> None:
        super().__init__(daemon=True)
        self._target = target
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self._pairs: dict[socket.socket, socket.socket] = {}
        self._waker, self._wakes = socket.socketpair()
        self._is_cut = self._ends = False
        self.start()

    def cut(self) -> None:
        self._is_cut = True
        self._waker.send(b"x")

    def mend(self) -> None:
        self._is_cut = False
        self._waker.send(b"x")

    def stop(self) -> None:
        self._ends = True
        self._waker.send(b"x")
        self.join(DEADLINE)
        assert not self.is_alive()

    def run(self) -> None:
        while not self._ends:
            heard = [] if self._is_cut else [self._listening, *self._pairs]
            for readable in select.select([self._wakes, *heard], [], [])[0]:
                if readable is self._wakes:
                    readable.recv(100)
                elif readable is self._listening:
                    self._accept()
                elif readable in self._pairs:
                    self._pass_on(readable)
        for one in [self._listening, self._waker, self._wakes, *self._pairs]:
            one.close()

    def _accept(self) -> None:
        page, server = self._listening.accept()[0], socket.create_connection(("127.0.0.1", self._target))
        self._pairs.update({page: server, server: page})

    def _pass_on(self, source: socket.socket) -> None:
        target, data = self._pairs[source], b""
        with suppress(OSError):
            data = source.recv(65536)
            target.sendall(data)
        if not data:
            for one in (source, target):
                del self._pairs[one]
                one.close()


@pytest.fixture
def wire_to() -> Iterator[Callable[[int], Wire]]:
    wires: list[Wire] = []

    def lay(port: int) -> Wire:
        wires.append(Wire(port))
        return wires[-1]

    yield lay
    for wire in wires:
        wire.stop()


def test_a_network_that_is_cut_without_a_word_is_noticed_and_nothing_that_waited_is_lost(
    browser: Browser, site: str, start_server: StartServer, wire_to: Callable[[int], Wire], heard: list[Any]
) -> None:
    wire = wire_to(start_server().port)
    window = browser.open(site)
    window.run(CONNECT, f":{wire.port}/", {"heartbeat": 2})
    window.run("live.send('before')")
    window.wait_for("texts.length === 1")
    wire.cut()
    window.run("live.send('handed over')")
    window.wait_for("live.state === 'reconnecting'")
    assert window.run("return events.at(-2)") == ["close", {"code": 1006, "reason": "no answer to a ping"}]
    window.run("live.send('waits 1'); live.send('waits 2')")
    wire.mend()
    window.wait_for("live.state === 'open' && texts.at(-1).text === 'waits 2'")
    # What was handed over before the cut was noticed may have arrived: it is not sent again.
    assert [message for message in heard if message != "handed over"] == ["before", "waits 1", "waits 2"]
    assert heard.count("handed over") <= 1
    assert names_of(window).count("open") == 2


def test_a_doubt_that_is_answered_costs_neither_the_connection_nor_a_message(
    connected: Any, heard: list[Any], companies: list[int]
) -> None:
    window, _ = connected()
    pass_time(window, 1.1)
    window.run("dispatchEvent(new Event('offline')); live.send('one'); live.send('two')")
    window.wait_for("texts.length === 2")
    assert (heard, companies, names_of(window)) == (["one", "two"], [0], ["open"])


def test_an_idle_connection_lives_on(connected: Any, heard: list[Any], companies: list[int]) -> None:
    window, _ = connected({"heartbeat": 0.3})
    pass_time(window, 3)
    assert (heard, companies, names_of(window)) == ([], [0], ["open"])


@pytest.mark.parametrize("wakes", ["the tab is shown", "the network is back"])
def test_it_comes_back_at_once_when(wakes: str, browser: Browser, site: str, project: Project) -> None:
    """Where else it would have waited for the twenty seconds that a chance of 40 makes of the first half second."""
    server, port = start_recorder(project)
    window = browser.open(site)
    window.run("Math.random = () => 40")
    window.run(CONNECT, f":{port}/")
    window.wait_for("live.state === 'open'")
    if wakes == "the tab is shown":
        window.hide()
    server.send_signal(signal.SIGKILL)
    server.wait()
    if wakes == "the network is back":
        window.network(False)
    window.wait_for("live.state === 'reconnecting'")
    assert window.run("return events.at(-1)[1].delay") == 20
    start_recorder(project, port)
    window.run("window.wokenAt = performance.now(); live.on('open', () => { window.openedAt = performance.now() })")
    window.show() if wakes == "the tab is shown" else window.network(True)
    window.wait_for("live.state === 'open'")
    assert window.run("return openedAt - wokenAt") < 5_000
    assert names_of(window) == ["open", "close", "reconnecting", "open"]


def test_there_are_never_two_connections_however_wild_it_gets(connected: Any, companies: list[int]) -> None:
    closed: list[Any] = []

    @djmease.receiver
    def turn_out(client: Any) -> None:
        closed.append(client)
        client.close(4000, "come back")

    window, server = connected()
    window.run("""
        Math.random = () => 0
        const wake = () => { dispatchEvent(new Event("online")); document.dispatchEvent(new Event("visibilitychange")) }
        window.waking = setInterval(wake, 5)
        live.on("open", ({ again }) => { if (events.length < 20) live.send("turn me out") })
        live.send("turn me out")
    """)
    window.wait_for("events.length >= 20 && live.state === 'open'", timeout=60)
    window.run("clearInterval(waking)")
    assert len(companies) >= 5
    assert set(companies) == {0}
    assert server.call(lambda: len(server.server.clients.snapshot())) == 1


# Pages that are not wanted


def log_in(browser: Browser, window: Window, user: User) -> None:
    client = DjangoClient()
    client.force_login(user)
    window.driver.add_cookie({"name": "sessionid", "value": client.cookies["sessionid"].value})


@pytest.fixture
def ada(transactional_db: None) -> User:
    return User.objects.create_user("ada", password="secret")


def test_a_login_that_ends_sends_its_page_away_for_good(
    browser: Browser, site: str, start_server: StartServer, ada: User, companies: list[int]
) -> None:
    server = start_server()
    window = browser.open(site)
    log_in(browser, window, ada)
    window.run(CONNECT, f":{server.port}/")
    window.wait_for("live.state === 'open'")
    window.run("return fetch('/log-out/').then(() => null)")
    window.wait_for("live.state === 'refused'")
    ended = {"code": 4401, "reason": "the login has ended"}
    assert window.run("return events.slice(1)") == [["close", ended], ["refused", ended]]
    window.run("for (const name of ['online', 'pageshow']) dispatchEvent(new Event(name))")
    window.hide()
    window.show()
    pass_time(window, 1.5)
    assert window.run("return [live.state, live.send('x')]") == ["refused", False]
    assert companies == [0]


def test_who_is_turned_away_stays_away(connected: Any, browser: Browser) -> None:
    @djmease.opener
    def turn_away(client: Any) -> None:
        if "bad" in client.request.arguments:
            raise PermissionDenied("not here")

    window, _ = connected()
    window.run(CONNECT, "?bad=1")
    window.wait_for("live.state === 'refused'")
    assert window.run("return events.at(-1)") == ["refused", {"code": 4403, "reason": "not here"}]


@pytest.mark.parametrize("code", [None, 1000])
def test_whom_a_callback_closes_stays_away_too(connected: Any, heard: list[Any], code: int | None) -> None:
    window, server = connected()
    server.call(lambda: [client.close(code) for client in server.server.clients.snapshot()])
    window.wait_for("live.state === 'closed'")
    assert window.run("return events.slice(1)") == [["close", {"code": code or 1005, "reason": ""}]]


def test_a_ticket_says_whose_page_it_is_and_stands_in_no_log(
    connected: Any, browser: Browser, site: str, settings: Any, ada: User, log_of: Log
) -> None:
    settings.MEASE_AUTHENTICATORS = ["djmease.authenticators.ticket"]
    settings.MEASE_LOGIN_REQUIRED = True
    users: list[str] = []

    @djmease.opener
    def note(client: Any) -> None:
        users.append(client.user.get_username())
        if len(users) == 1:
            client.close(4000, "come back")

    window = browser.open(site)
    log_in(browser, window, ada)
    window.close()
    window, _ = connected({"ticket": "/ws-ticket/"})
    eventually(lambda: len(users) == 2, "a second ticket")
    window.wait_for("live.state === 'open'")
    assert users == ["ada", "ada"]
    assert "mease.ticket." not in "".join(log_of())


def test_without_a_login_there_is_no_ticket_and_no_connection(
    browser: Browser, site: str, start_server: StartServer, ada: User, companies: list[int]
) -> None:
    server = start_server()
    window = browser.open(site)
    window.run(CONNECT, f":{server.port}/", {"ticket": "/ws-ticket/"})
    window.wait_for("live.state === 'refused'")
    assert window.run("return events") == [["refused", {"code": 4401, "reason": "there is no ticket for this page"}]]
    assert companies == []


# Groups


@pytest.fixture
def groups(settings: Any) -> None:
    settings.MEASE_ROUTES = {"news": "djmease.senders.broadcast"}
    settings.MEASE_GROUPS = {"board.*": True, "users": {"LOGIN_REQUIRED": True}}
    settings.MEASE_PRESENCE = ["board.9"]


@pytest.fixture
def joined(connected: Any, groups: None) -> Callable[[str], tuple[Window, LiveServer]]:
    """A function that opens a page which has joined a group."""

    def join(group: str) -> tuple[Window, LiveServer]:
        window, server = connected()
        window.run(JOIN, group)
        window.wait_for("board.state === 'joined'")
        return window, server

    return join


def test_a_page_joins_a_group_hears_what_is_for_it_and_leaves(joined: Any) -> None:
    window, server = joined("board.7")
    djmease.publish("news", "not for it", group="board.8")
    djmease.publish("news", {"n": 1}, group="board.7")
    djmease.publish("news", "for all")
    window.wait_for("texts.includes('for all')")
    assert window.run("return told") == [["joined", {"again": False}], {"n": 1}]
    assert window.run("return texts") == [{"n": 1}, "for all"]
    window.run("board.leave(); window.again = live.group('board.8')")
    window.wait_for("again.state === 'joined'")
    djmease.publish("news", "not any more", group="board.7")
    djmease.publish("news", "the end")
    window.wait_for("texts.includes('the end')")
    assert window.run("return [texts.length, told.length, board.state]") == [3, 2, "left"]
    assert server.server.clients.snapshot()[0].groups == {"board.8"}
    assert window.logged() == []


def test_a_page_that_leaves_and_joins_in_one_breath_is_in(joined: Any) -> None:
    window, server = joined("board.7")
    window.run("for (let i = 0; i < 20; i++) live.group('board.7').leave()")
    window.run(JOIN, "board.7")
    window.wait_for("board.state === 'joined'")
    djmease.publish("news", "x", group="board.7")
    window.wait_for("told.at(-1) === 'x'")
    assert window.run("return told") == [["joined", {"again": False}], "x"]
    assert server.server.clients.snapshot()[0].groups == {"board.7"}


@pytest.mark.parametrize(("group", "reason"), [("users", "login_required"), ("elsewhere", "not_listed")])
def test_a_page_that_may_not_join_is_told_why(connected: Any, groups: None, group: str, reason: str) -> None:
    window, _ = connected()
    window.run(JOIN, group)
    window.wait_for("board.state === 'refused'")
    djmease.publish("news", "not for it", group=group)
    djmease.publish("news", "for all")
    window.wait_for("texts.includes('for all')")
    assert window.run("return [told, texts, live.state]") == [[["refused", {"reason": reason}]], ["for all"], "open"]


def test_who_comes_and_goes_is_told_in_the_group(joined: Any, browser: Browser, site: str) -> None:
    window, server = joined("board.9")
    window.wait_for("told.filter(([name]) => name === 'mease.presence').length === 1")
    other = browser.open(site)
    other.run(CONNECT, f":{server.port}/")
    other.run(JOIN, "board.9")
    window.wait_for("told.filter(([name]) => name === 'mease.presence').length === 2")
    other.run("board.leave()")
    window.wait_for("told.filter(([name]) => name === 'mease.presence').length === 3")
    presence = [details for name, details in window.run("return told") if name == "mease.presence"]
    assert [details["event"] for details in presence] == ["join", "join", "leave"]
    assert {details["group"] for details in presence} == {"board.9"}


def test_what_begins_with_the_mark_of_a_header_goes_both_ways_unharmed(joined: Any, heard: list[Any]) -> None:
    texts = ["\x1e", '\x1e{"type":"ping"}', "\x1e{}\n\x1e", "a\x1eb"]
    window, server = joined("board.7")
    window.run("for (const text of arguments[0]) live.send(text); live.send(new Uint8Array([30, 10]))", texts)
    eventually(lambda: len(heard) == len(texts) + 1, "all of them")
    assert heard == [*texts, b"\x1e\n"]
    window.run("window.texts = []; live.on('message', (data, event) => texts.push([event.data]))")
    for text in texts:
        server.call(lambda text=text: server.server.clients.snapshot().send(text))
        djmease.publish("news", text, group="board.7")
        window.wait_for("texts.length === 4 && texts.splice(0).flat().every(text => text === arguments[0])", text)
    window.run("""
        window.bytes = []
        const keep = data => data instanceof ArrayBuffer && bytes.push([...new Uint8Array(data)])
        live.on("message", keep)
        board.on("message", keep)
    """)
    djmease.publish("news", b"\x1e\n\xff", group="board.7")
    djmease.publish("news", b"\x1e")
    window.wait_for("bytes.length === 3")
    assert window.run("return bytes") == [[30, 10, 255], [30, 10, 255], [30]]


PUBLISHER = """
import djmease

@djmease.receiver
def publish(message):
    djmease.publish("news", message, group="board.7")
"""


def start_publisher(project: Project, port: int = 0) -> tuple[Process, int]:
    """Start a server that publishes to a group what it is sent; returns its port."""
    project.registry(PUBLISHER)
    routes = "MEASE_ROUTES = {'news': 'djmease.senders.broadcast'}\nMEASE_GROUPS = {'board.*': True}\n"
    project.settings(f"MEASE_DRAIN_TIMEOUT = 1\n{routes}")
    server = project.start("run_websocket_server", f"127.0.0.1:{port}", "--noreload")
    return server, server.port()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda number: number.name)
def test_a_server_that_comes_back_has_its_pages_back_in_their_groups(
    browser: Browser, site: str, project: Project, number: int
) -> None:
    server, port = start_publisher(project)
    window = browser.open(site)
    window.run("Math.random = () => 0.2")
    window.run(CONNECT, f":{port}/")
    window.run(JOIN, "board.7")
    window.run("live.group('board.8').leave(); live.send('before')")
    window.wait_for("told.at(-1) === 'before'")
    server.send_signal(number)
    window.wait_for("live.state === 'reconnecting'")
    server.wait()
    assert window.run("return board.state") == "joining"
    window.run("live.send('waited')")
    start_publisher(project, port)
    # What waited is sent behind the question, so that it is published to who is in the group again.
    window.wait_for("told.at(-1) === 'waited'", timeout=60)
    joined = [["joined", {"again": again}] for again in (False, True)]
    assert window.run("return told") == [joined[0], "before", joined[1], "waited"]
    assert window.run("return [board.state, live.group('board.7') === board]") == ["joined", True]


def test_a_network_that_was_cut_has_its_page_back_in_the_group(
    browser: Browser, site: str, start_server: StartServer, wire_to: Callable[[int], Wire], groups: None
) -> None:
    wire = wire_to(start_server().port)
    window = browser.open(site)
    window.run(CONNECT, f":{wire.port}/", {"heartbeat": 2})
    window.run(JOIN, "board.7")
    window.wait_for("board.state === 'joined'")
    wire.cut()
    window.wait_for("live.state === 'reconnecting'")
    djmease.publish("news", "missed", group="board.7")
    wire.mend()
    window.wait_for("live.state === 'open' && board.state === 'joined'")
    djmease.publish("news", "heard", group="board.7")
    window.wait_for("told.at(-1) === 'heard'")
    # What a dead connection still had in it comes to nobody.
    assert window.run("return told") == [["joined", {"again": False}], ["joined", {"again": True}], "heard"]


def test_a_ticket_goes_with_groups(
    connected: Any, browser: Browser, site: str, settings: Any, ada: User, groups: None
) -> None:
    settings.MEASE_AUTHENTICATORS = ["djmease.authenticators.ticket"]
    window = browser.open(site)
    log_in(browser, window, ada)
    window.close()
    window, server = connected({"ticket": "/ws-ticket/"})
    window.run(JOIN, "users")
    window.wait_for("board.state === 'joined'")
    djmease.publish("news", "to who is in", group="users")
    window.wait_for("told.at(-1) === 'to who is in'")
    (client,) = server.server.clients.snapshot()
    assert (client.user, client.selected_subprotocol) == (ada, "mease.v1")


# Servers that know nothing of us


@pytest.fixture
def foreign() -> Iterator[tuple[int, list[str | None]]]:
    """A plain WebSocket server, which says everything back and agrees on nothing: its port, and what it was offered."""
    offered: list[str | None] = []

    def echo(connection: ServerConnection) -> None:
        assert connection.request is not None
        offered.append(connection.request.headers.get("Sec-WebSocket-Protocol"))
        for message in connection:
            connection.send(message)

    with serve(echo, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.socket.getsockname()[1], offered
        server.shutdown()
        thread.join(DEADLINE)
        assert not thread.is_alive()


def test_a_server_of_another_kind_is_tried_again_and_again(
    browser: Browser, site: str, foreign: tuple[int, list[str | None]]
) -> None:
    port, offered = foreign
    window = browser.open(site)
    window.run("Math.random = () => 0.1")
    window.run(CONNECT, f":{port}/")
    window.wait_for("events.length === 3")
    assert window.run("return live.state") == "reconnecting"
    assert set(names_of(window)) == {"reconnecting"}
    assert set(offered) == {"mease.v1"}
