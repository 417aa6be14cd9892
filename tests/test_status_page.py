"""The status page in a real Chromium, against real servers under traffic."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.contrib.sessions.models import Session
from selenium.webdriver.common.keys import Keys

import djmease
from djmease import status_page
from djmease.embedded import EmbeddedValkey
from tests.browser import Browser, Window
from tests.support import DEADLINE, LiveServer, Project, eventually

StartServer = Callable[[], LiveServer]

PAGE = "/admin/djmease/status/"

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def often(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports, and questions of an open page, more often than usual."""
    settings.MEASE_REPORT_INTERVAL = 0.2
    monkeypatch.setattr(status_page, "INTERVAL", 0.5)
    monkeypatch.setattr(status_page, "LISTS_INTERVAL", 1.0)


@pytest.fixture
def site(live_server: Any, redis: str) -> str:
    """The address of the status page, of a site with an administrator."""
    User.objects.create_superuser("ada", password="secret")
    return f"{live_server.url}{PAGE}"


@pytest.fixture(autouse=True)
def chatting() -> None:
    """The callbacks of the servers."""

    @djmease.sender(routing="chat.message")
    def show(message: Any, clients_list: Any) -> None:
        clients_list.send(message)

    @djmease.receiver
    def say(message: Any) -> None:
        if message == "bad":
            raise ValueError("<b>not this</b>")
        djmease.publish("chat.message", message)


def log_in(browser: Browser, address: str, name: str = "ada") -> Window:
    """Return a window that shows this page, after the login that it asks for."""
    window = browser.open(address)
    window.find("#id_username").send_keys(name)
    window.find("#id_password").send_keys("secret")
    window.find("[type=submit]").click()
    window.find("#mease, #content h1")
    return window


def figure(window: Window, label: str) -> str:
    """Return one of the figures below the line at the top."""
    return str(
        window.run(
            "return [...document.querySelectorAll('.mease-figures div')].filter("
            "each => each.querySelector('dt').textContent === arguments[0])[0]?.querySelector('dd').textContent ?? ''",
            label,
        )
    )


def wait_for_figure(window: Window, label: str, value: str) -> None:
    eventually(lambda: figure(window, label) == value, f"{label} {value}, and not {figure(window, label)}")


def row(window: Window, part: str, path: str) -> list[str]:
    """Return the texts of the cells of the row of a callback."""
    found = window.run(
        "return [...document.querySelectorAll(`[data-part=${arguments[0]}] tbody tr:not(.mease-error)`)].filter("
        "each => each.textContent.includes(arguments[1])).map(each => [...each.cells].map(cell => cell.innerText))[0]",
        part,
        path,
    )
    return list(found or [])


def state(window: Window) -> str:
    return str(window.run("return document.querySelector('[data-state]').dataset.state"))


def nothing_was_blocked(window: Window) -> None:
    lines = [line for line in window.logged() if "favicon" not in line and "403" not in line]
    assert lines == []


def test_it_shows_the_right_counts_as_they_come(site: str, browser: Browser, start_server: StartServer) -> None:
    server = start_server()
    clients = [server.connect() for _ in range(3)]
    window = log_in(browser, site)
    window.wait_for_text(".mease-headline", "All is well")
    window.run("window.mark = 'not loaded again'")
    for number in range(5):
        clients[0].send(f"message {number}")
    for client in clients:
        for number in range(5):
            assert client.recv(timeout=DEADLINE) == f"message {number}"
    wait_for_figure(window, "Clients", "3")
    # Messages, calls and what was written: five, once for each of three clients.
    eventually(lambda: row(window, "routes", "show")[2:4] == ["5", "5"], "the calls of the sender")
    eventually(lambda: row(window, "routes", "show")[5] == "15", "what was written")
    assert row(window, "callbacks", "say")[2] == "5"
    assert window.run("return document.querySelectorAll('[data-part=messages] tbody tr').length") == 5
    assert "3" in row(window, "messages", "chat.message")[4]
    clients.pop().close()
    wait_for_figure(window, "Clients", "2")
    assert window.run("return window.mark") == "not loaded again"
    nothing_was_blocked(window)


def test_an_error_turns_it_yellow_and_is_shown_as_text(site: str, browser: Browser, start_server: StartServer) -> None:
    client = start_server().connect()
    window = log_in(browser, site)
    client.send("bad")
    window.wait_for_text(".mease-headline", "one thing wants looking at")
    window.wait_for_text("[data-part=callbacks] .mease-error", "ValueError: <b>not this</b>")
    assert state(window) == "warn"
    assert window.run("return document.title").startswith("! ")


@pytest.mark.parametrize("stop", ["killed", "halted"])
def test_it_goes_red_and_back_with_redis(
    site: str, browser: Browser, start_server: StartServer, own_valkey: EmbeddedValkey, stop: str
) -> None:
    start_server()
    window = log_in(browser, site)
    window.wait_for_text(".mease-headline", "All is well")
    pid = own_valkey._pid()
    os.kill(pid, signal.SIGKILL if stop == "killed" else signal.SIGSTOP)
    try:
        window.wait_for_text(".mease-headline", "Not well")
        window.wait_for_text(".mease-troubles", "Redis does not answer")
        assert state(window) == "bad"
        assert window.run("return document.title").startswith("✕ ")
    finally:
        if stop == "killed":
            own_valkey.ensure_running()
        else:
            os.kill(pid, signal.SIGCONT)
    window.wait_for_text(".mease-headline", "All is well")
    wait_for_figure(window, "Servers", "1")
    assert state(window) == "good"


def connected(browser: Browser, site: str, server: LiveServer) -> Window:
    """Return a window whose page has a WebSocket, as the one who is logged in."""
    # The policy of the admin's own pages lets none out.
    window = browser.open(site.replace(PAGE, "/second/"))
    window.run(
        "window.socket = new WebSocket(arguments[0]);"
        "socket.onmessage = event => { window.heard = event.data };"
        "socket.onclose = event => { window.closeCode = event.code }",
        server.url.replace("127.0.0.1", "localhost"),
    )
    window.wait_for("window.socket.readyState === 1")
    return window


def test_a_client_that_is_disconnected_sees_it(site: str, browser: Browser, start_server: StartServer) -> None:
    server = start_server()
    window = log_in(browser, site)
    page = connected(browser, site, server)
    window.find("#mease-clients summary").click()
    window.wait_for_text("[data-part=clients]", "1 in all")
    window.wait_for_text("[data-part=clients] tbody th", "ada")
    window.find(".mease-actions a").click()
    window.wait_for_text("#content", "Are you sure you want to disconnect the client")
    assert page.run("return window.closeCode") is None
    window.find("#content form [type=submit]").click()
    window.wait_for_text(".messagelist", "The servers were told to disconnect")
    page.wait_for("window.closeCode === 4401")
    window.wait_for_text("[data-part=clients]", "Nobody is connected")
    nothing_was_blocked(window)


def test_all_connections_of_a_user_are_disconnected_and_no_other(
    site: str, browser: Browser, start_server: StartServer
) -> None:
    server = start_server()
    stranger = server.connect()
    window = log_in(browser, site)
    pages = [connected(browser, site, server) for _ in range(2)]
    window.find("#mease-clients summary").click()
    window.wait_for_text("[data-part=clients]", "3 in all")
    window.find("#mease-search").send_keys("ada")
    window.wait_for_text("[data-part=clients]", "2 in all")
    window.find(".mease-actions a + a").click()
    window.wait_for_text("#content", "all connections of ada")
    assert window.run("return document.querySelectorAll('.mease-closing li').length") == 2
    window.find("#content form [type=submit]").click()
    for page in pages:
        page.wait_for("window.closeCode === 4401")
    assert stranger.ping().wait(DEADLINE)


def test_a_test_message_arrives_and_its_fate_is_shown(site: str, browser: Browser, start_server: StartServer) -> None:
    client = start_server().connect()
    window = log_in(browser, site)
    window.find("#mease-publish summary").click()
    window.find("#id_routing").send_keys("chat.mesage")
    window.find("#id_message").send_keys('{"hello": "world"}')
    window.find("#id_kind_1").click()
    window.find(".mease-submit input").click()
    window.wait_for_text(".mease-field-routing .errorlist", "Did you mean 'chat.message'?")
    window.find("#id_routing").clear()
    window.find("#id_routing").send_keys("chat.message")
    window.find(".mease-submit input").click()
    assert client.recv(timeout=DEADLINE) == '{"hello":"world"}'
    window.wait_for_text(".mease-result.mease-is-good", "It arrives: written to 1 client.")
    wait_for_updates(window)
    assert "It arrives" in window.text(".mease-result")


def test_staff_without_the_permission_gets_a_403(site: str, browser: Browser, live_server: Any) -> None:
    user = User.objects.create_user("bob", password="secret", is_staff=True)
    window = log_in(browser, f"{live_server.url}/admin/", "bob")
    assert "WebSocket status" not in window.text("#content")
    window.load(site)
    window.wait_for_text("body", "403")
    user.user_permissions.add(Permission.objects.get(codename="view_status"))
    window.load(site)
    window.wait_for_text(".mease-headline", "")
    assert not window.run("return document.getElementById('mease-publish')")
    user.user_permissions.clear()
    window.wait_for_text("[data-note=forbidden]", "may no longer see this page")


def test_two_servers_appear_and_one_that_is_killed_is_gone_within_ten_seconds(
    site: str, browser: Browser, project: Project, settings: Any
) -> None:
    project.settings(
        f"MEASE_REDIS_URL = {settings.MEASE_REDIS_URL!r}\nMEASE_KEY_PREFIX = {settings.MEASE_KEY_PREFIX!r}"
    )
    servers = [project.start("run_websocket_server", "--noreload") for _ in range(2)]
    for server in servers:
        server.port()
    window = log_in(browser, site)
    for server in servers:
        window.wait_for_text("[data-part=servers]", f"process {server.pid}")
    wait_for_figure(window, "Servers", "2")
    servers[0].send_signal(signal.SIGKILL)
    began = time.monotonic()
    wait_for_figure(window, "Servers", "1")
    assert time.monotonic() - began < 10
    assert f"process {servers[0].pid}" not in window.text("[data-part=servers]")
    assert f"process {servers[1].pid}" in window.text("[data-part=servers]")


# Groups


@pytest.fixture
def entering() -> None:
    @djmease.opener
    def enter(client: Any) -> None:
        for room in client.request.arguments.get("room", ()):
            client.join(room.decode())


def texts(window: Window, selector: str) -> list[str]:
    return list(window.run("return [...document.querySelectorAll(arguments[0])].map(e => e.innerText)", selector))


def groups(window: Window) -> list[str]:
    """Return each group with its connections, and its persons if it has presence."""
    return list(
        window.run(
            "return [...document.querySelectorAll('[data-part=groups] tbody tr')].map("
            "each => [...each.cells].map(cell => cell.innerText).join(' ').trim())"
        )
    )


def test_groups_are_shown_with_their_sizes_on_two_servers_and_who_is_in_one(
    site: str, browser: Browser, entering: None, start_server: StartServer, settings: Any
) -> None:
    settings.MEASE_PRESENCE = ["board.*"]
    servers = [start_server(), start_server()]
    for server in servers:
        server.connect("?room=lobby")
        server.connect("?room=lobby&room=board.1")
    leaving = servers[0].connect("?room=lobby")
    window = log_in(browser, site)
    wait_for_figure(window, "Servers", "2")
    window.find("#mease-groups summary").click()
    window.wait_for_text("[data-part=groups]", "2 in all, the biggest first.")
    eventually(lambda: groups(window) == ["lobby 5", "board.1 2 2"], "the groups")
    leaving.close()
    eventually(lambda: groups(window)[0] == "lobby 4", "one less")
    window.find("#mease-group-search").send_keys("board")
    eventually(lambda: groups(window) == ["board.1 2 2"], "what is searched for")
    window.find("[data-part=groups] tbody a").click()
    window.wait_for_text(".mease-only .mease-group", "board.1")
    window.wait_for_text("[data-part=clients]", "2 in all, the newest first.")
    assert texts(window, "[data-part=groups] .mease-chosen th") == ["board.1"]
    servers[1].connect("?room=board.1")
    servers[1].connect("?room=lobby")
    window.wait_for_text("[data-part=clients]", "3 in all, the newest first.")
    assert window.run("return document.getElementById('mease-group-search').value") == "board"
    window.find(".mease-only a").click()
    window.wait_for_text("[data-part=clients]", "6 in all, the newest first.")
    nothing_was_blocked(window)


# What its reader is at


def updates(window: Window) -> int:
    """Return how often the page has been asked for its parts."""
    return int(
        window.run(
            "return performance.getEntriesByType('resource').filter(each => /status\\/\\?/.test(each.name)).length"
        )
    )


def wait_for_updates(window: Window, number: int = 2) -> None:
    before = updates(window)
    eventually(lambda: updates(window) >= before + number, "updates")


def test_focus_filter_details_and_scroll_stay_where_they_are(
    site: str, browser: Browser, start_server: StartServer, settings: Any
) -> None:
    settings.MEASE_ROUTES = {f"shop.item.{number}": "djmease.senders.broadcast" for number in range(200)}
    client = start_server().connect()
    window = log_in(browser, site)
    window.find(".mease-server .mease-more summary").click()
    window.find("#mease-filter").send_keys("item.17")
    window.wait_for_text("#mease-filtered", "11 of 201")
    assert window.run("return document.querySelector('.mease-quiet-routes').open")
    # One of those that are shown has traffic now, and moves from one list to the other.
    djmease.publish("shop.item.170", "x")
    client.recv(timeout=DEADLINE)
    eventually(lambda: row(window, "routes", "shop.item.170"), "the route among the busy ones")
    client.send("said")
    window.wait_for_text("[data-part=messages]", "chat.message")
    wait_for_updates(window)
    assert window.run("return document.activeElement.id") == "mease-filter"
    assert window.run("return document.getElementById('mease-filter').value") == "item.17"
    assert window.text("#mease-filtered") == "11 of 201"
    assert window.run("return document.querySelector('.mease-server .mease-more').open")
    window.run("document.querySelector('.mease-server .mease-more summary').focus(); scrollTo(0, 300)")
    wait_for_updates(window)
    assert window.run("return document.activeElement.tagName") == "SUMMARY"
    assert window.run("return scrollY") == 300


def test_what_is_selected_stays_selected(site: str, browser: Browser, start_server: StartServer) -> None:
    client = start_server().connect()
    client.send("first")
    window = log_in(browser, site)
    window.wait_for_text("[data-part=messages]", "chat.message")
    window.run("getSelection().selectAllChildren(document.querySelector('[data-part=messages] tbody th code'))")
    client.send("second")
    eventually(lambda: row(window, "routes", "show")[2] == "2", "the second message")
    wait_for_updates(window)
    assert window.run("return getSelection().toString()") == "chat.message"
    window.run("getSelection().removeAllRanges()")
    window.wait_for("document.querySelectorAll('[data-part=messages] tbody tr').length === 2")


def test_rows_that_move_keep_their_focus(site: str, browser: Browser, start_server: StartServer) -> None:
    server = start_server()
    first, second = server.connect(), server.connect()
    window = log_in(browser, site)
    window.find("#mease-clients summary").click()
    window.wait_for_text("[data-part=clients]", "2 in all")
    window.run("document.querySelectorAll('.mease-actions a')[1].focus(); window.kept = document.activeElement")
    second.close()
    window.wait_for_text("[data-part=clients]", "1 in all")
    server.connect()
    window.wait_for_text("[data-part=clients]", "2 in all")
    assert window.run("return window.kept === document.activeElement && window.kept.isConnected")
    assert first.ping().wait(DEADLINE)


# When it cannot be updated


def test_who_is_logged_out_is_told_so(site: str, browser: Browser) -> None:
    window = log_in(browser, site)
    window.wait_for("document.getElementById('mease') !== null")
    Session.objects.all().delete()
    window.wait_for_text("[data-note=login]", "You are logged out")
    window.find("[data-note=login] a").click()
    window.find("#id_username")


@contextmanager
def offline(window: Window) -> Iterator[None]:
    def emulate(is_offline: bool) -> None:
        window.driver.execute_cdp_cmd(
            "Network.emulateNetworkConditions",
            {"offline": is_offline, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1},
        )

    window.driver.execute_cdp_cmd("Network.enable", {})
    emulate(True)
    yield
    emulate(False)


def test_data_that_is_old_is_said_to_be(site: str, browser: Browser, start_server: StartServer) -> None:
    start_server()
    window = log_in(browser, site)
    window.wait_for_text(".mease-headline", "All is well")
    with offline(window):
        window.wait_for_text("[data-note=late]", "Not updated for")
        age = window.text("[data-age]")
        eventually(lambda: window.text("[data-age]") != age, "a greater age")
        assert window.run("return document.querySelector('.mease-is-old') !== null")
    eventually(lambda: window.run("return document.querySelector('[data-note=late]').hidden"), "that it is new again")
    assert not window.run("return document.querySelector('.mease-is-old')")


def test_a_window_that_nobody_sees_asks_for_nothing(site: str, browser: Browser) -> None:
    window = log_in(browser, site)
    wait_for_updates(window)
    # What the browser says when a window is minimised.
    window.run(
        "Object.defineProperty(document, 'hidden', {value: true, configurable: true});"
        "document.dispatchEvent(new Event('visibilitychange'))"
    )
    other = browser.open(site)
    before = updates(window)
    wait_for_updates(other, 3)
    assert updates(window) <= before + 1  # One was perhaps on its way.
    window.run("delete document.hidden; document.dispatchEvent(new Event('visibilitychange'))")
    wait_for_updates(window)


# Other readers


def test_without_javascript_it_is_a_plain_page(site: str, browser: Browser, start_server: StartServer) -> None:
    start_server().connect()
    window = log_in(browser, site)
    window.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    window.load(site)
    assert window.text("[data-plain]") == "Reload"
    assert window.find("#mease-filter").is_displayed() is False
    window.find("#mease-clients summary").click()
    window.find("#mease-search").send_keys("127.0.0.1", Keys.ENTER)
    window.wait_for_text("[data-part=clients]", "1 in all")
    window.find(".mease-actions a").click()
    window.find("#content form [type=submit]").click()
    window.wait_for_text(".messagelist", "The servers were told to disconnect")
    window.find("p[data-plain] a").click()
    window.wait_for_text("[data-part=clients]", "Nobody is connected")


def test_without_javascript_a_group_leads_to_those_in_it_and_back(
    site: str, browser: Browser, entering: None, start_server: StartServer
) -> None:
    server = start_server()
    for room in ("lobby", "lobby", "attic"):
        server.connect(f"?room={room}")
    window = log_in(browser, site)
    window.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    window.load(site)
    window.find("#mease-groups summary").click()
    window.find("#mease-group-search").send_keys("", Keys.ENTER)
    window.wait_for_text("[data-part=groups]", "2 in all")
    window.find("[data-part=groups] tbody a").click()
    window.wait_for_text("[data-part=clients]", "2 in all")
    window.find("#mease-search").send_keys("attic", Keys.ENTER)
    window.wait_for_text("[data-part=clients]", "No client matches.")
    window.wait_for_text("[data-part=groups]", "2 in all")
    window.find(".mease-only a").click()
    window.wait_for_text("[data-part=clients] tbody", "attic")
    window.wait_for_text("[data-part=clients]", "1 in all")
    window.find("#mease-search").clear()
    window.find("#mease-search").send_keys("", Keys.ENTER)
    window.wait_for_text("[data-part=clients]", "3 in all")


@pytest.mark.parametrize("language", ["en", "ar"])
@pytest.mark.parametrize("width", [360, 768, 1400])
def test_nothing_is_wider_than_the_window(
    site: str, browser: Browser, entering: None, start_server: StartServer, settings: Any, width: int, language: str
) -> None:
    settings.LANGUAGE_CODE = language
    settings.MEASE_PRESENCE = ["room.*"]
    client = start_server().connect(f"?room=lobby&room=room.{'x' * 190}")
    client.send("bad")
    client.send("x" * 1000)
    client.recv(timeout=DEADLINE)
    window = log_in(browser, site)
    window.driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    )
    window.load(f"{site}?clients=1&groups=1&group=room.{'x' * 190}")
    window.wait_for("document.querySelectorAll('[data-part=messages] tbody tr').length === 2")
    window.wait_for("document.querySelectorAll('[data-part=groups] tbody tr').length === 2")
    wider = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert window.run(f"return {wider}") == 0
    assert window.run(
        "return [...document.querySelectorAll('.mease-scroll')].every(e => e.scrollWidth <= e.clientWidth)"
    )


def at_width(window: Window, width: int, address: str) -> None:
    window.driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    )
    window.load(address)


def lines_of(window: Window, selector: str) -> list[int]:
    """Return of each element how many lines it takes."""
    return list(
        window.run(
            "return [...document.querySelectorAll(arguments[0])].map("
            "each => new Set([...each.getClientRects()].map(box => Math.round(box.top))).size)",
            selector,
        )
    )


def test_beside_the_sidebar_no_short_name_is_broken(
    site: str, browser: Browser, entering: None, start_server: StartServer, settings: Any
) -> None:
    settings.MEASE_PRESENCE = ["room.*"]

    @djmease.sender(routing="mease.presence")
    def show_who_comes_and_goes_in_a_room_by_a_name_that_takes_all_the_width_there_is() -> None: ...

    start_server().connect("?room=room.1")
    window = log_in(browser, site)
    at_width(window, 1280, site)
    window.wait_for("document.querySelector('[data-part=routes] tbody th')?.textContent === 'mease.presence'")
    assert window.run("return document.getElementById('nav-sidebar').offsetWidth > 200")
    assert lines_of(window, "[data-part=routes] tbody th code") == [1]


def test_on_a_phone_nothing_scrolls_by_itself_without_a_hint_and_every_link_has_its_heading(
    site: str, browser: Browser, entering: None, start_server: StartServer
) -> None:
    server = start_server()
    client = server.connect("?room=lobby")
    for _ in range(20):
        client.send("x")
        client.recv(timeout=DEADLINE)
    window = log_in(browser, site)
    at_width(window, 390, f"{site}?clients=1&groups=1")
    window.wait_for("document.querySelectorAll('[data-part=messages] tbody tr').length === 20")
    window.wait_for("document.querySelector('[data-part=clients] .mease-actions') !== null")
    cut = "[...document.querySelectorAll('.mease-scroll')].filter(e => e.scrollHeight > e.clientHeight)"
    assert window.run(f"return {cut}.map(e => e.closest('[data-part]').dataset.part)") == ["messages"]
    assert window.run(f"return {cut}.every(e => getComputedStyle(e, '::after').position === 'sticky')")
    heading = "getComputedStyle(document.querySelector('.mease-actions'), '::before').content"
    assert window.run(f"return {heading}") == '"Disconnect"'
    # What does not fit beside the triangle stays behind it.
    assert window.run(
        "return [...document.querySelectorAll('.mease-fold > summary')].every(each => {"
        "const left = each.querySelector('h2').getClientRects()[0].left;"
        "return [...(each.querySelector('span')?.getClientRects() ?? [])].every(box => box.left >= left - 4)})"
    )


def test_tables_have_captions_and_headings_and_whatever_scrolls_can_be_reached(
    site: str, browser: Browser, entering: None, start_server: StartServer
) -> None:
    client = start_server().connect("?room=lobby")
    client.send("x")
    client.recv(timeout=DEADLINE)
    window = log_in(browser, f"{site}?clients=1&groups=1")
    window.wait_for("document.querySelectorAll('.mease table').length >= 5")
    assert window.run("return [...document.querySelectorAll('.mease table')].every(e => e.caption.textContent.trim())")
    assert window.run("return [...document.querySelectorAll('.mease th')].every(e => e.scope)")
    assert window.run("return [...document.querySelectorAll('.mease-scroll')].every(e => e.tabIndex === 0)")
    labelled = "[...document.querySelectorAll('.mease [aria-labelledby]')].every(e => document.getElementById("
    assert window.run(f"return {labelled} e.getAttribute('aria-labelledby')))")
    unlabelled = "[...document.querySelectorAll('.mease input:not([type=hidden]):not([type=submit]), .mease textarea')]"
    assert window.run(f"return {unlabelled}.every(e => e.labels.length)")
