"""The sample site's pages in a real Chromium. Two persons are two host names, whose cookies are apart."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from selenium.webdriver.common.keys import Keys

from tests.browser import Browser, Window
from tests.demo import Demo, SingleSteps
from tests.support import eventually

ADDRESSES = ["/", "/chat/", "/chat/garden/", "/board/", "/jobs/", "/scores/", "/questions/", "/login/"]


@pytest.fixture(scope="module")
def demo() -> Iterator[Demo]:
    demo = Demo()
    yield demo
    demo.stop()


@pytest.fixture
def ada(browser: Browser, demo: Demo) -> Iterator[Person]:
    yield Person(browser, demo, "127.0.0.1")
    assert browser.open(demo.url("/login/")).logged() == []


@pytest.fixture
def grace(browser: Browser, demo: Demo) -> Person:
    return Person(browser, demo, "localhost")


class Person:
    """Somebody with cookies of their own, and as many windows as it takes."""

    def __init__(self, browser: Browser, demo: Demo, host: str) -> None:
        self._browser = browser
        self._demo = demo
        self._host = host

    def open(self, path: str) -> Window:
        """Open a page in a new window, and wait until it is live."""
        window = self._browser.open(self._demo.url(path, self._host))
        window.wait_for_text("#state", "Live")
        return window

    def chat(self, name: str, path: str = "/chat/") -> Window:
        window = self.open(path)
        rename(window, name)
        window.wait_for_text("#here", name)
        return window

    def log_in(self, name: str) -> None:
        window = self.open("/login/")
        window.find("#id_username").send_keys(name)
        window.find("#id_password").send_keys("demo", Keys.ENTER)
        window.wait_for_text(".foot", f"You are {name}")


def rename(window: Window, name: str) -> None:
    field = window.find("#who")
    field.clear()
    field.send_keys(name, Keys.TAB)


def say(window: Window, text: str) -> None:
    window.find("#text").send_keys(text, Keys.ENTER)


def texts(window: Window, selector: str) -> list[str]:
    """Return what stands in each element, in one look."""
    found: list[str] = window.run(
        "return [...document.querySelectorAll(arguments[0])].map((e) => e.innerText)", selector
    )
    return found


def test_two_windows_talk(ada: Person, grace: Person) -> None:
    one, two = ada.chat("Ada"), grace.chat("Grace")
    say(one, "<i>Good</i> morning!")
    two.wait_for_text("#messages", "<i>Good</i> morning!")
    say(two, "Good morning, Ada.")
    for window in (one, two):
        eventually(
            lambda window=window: texts(window, ".message-text")[-2:] == ["<i>Good</i> morning!", "Good morning, Ada."]
        )
        assert texts(window, ".message-who")[-2:] == ["Ada", "Grace"]
    assert one.run("return document.getElementById('text').value") == ""


def test_those_who_are_here_are_seen_to_come_and_go(ada: Person, grace: Person) -> None:
    one, two = ada.chat("Ada", "/chat/garden/"), grace.chat("Grace", "/chat/garden/")
    one.wait_for_text("#here", "Grace")
    for window in (one, two):
        eventually(lambda window=window: texts(window, "#here bdi") == ["Ada", "Grace"])
    one.wait_for("document.getElementById('news').textContent === 'Grace has come.'")
    two.close()
    eventually(lambda: texts(one, "#here bdi") == ["Ada"])
    one.wait_for("document.getElementById('news').textContent === 'Grace has left.'")


HOLD_LISTS_BACK = """
const { set } = Object.getOwnPropertyDescriptor(WebSocket.prototype, "onmessage");
window.held = [];
Object.defineProperty(WebSocket.prototype, "onmessage", { set(handler) {
  set.call(this, handler && ((event) => {
    if (event.data.includes("chat.here")) held.push([event, handler]);
    else handler(event);
  }));
} });
"""


def test_who_leaves_while_the_list_is_on_its_way_is_not_in_it(browser: Browser, grace: Person, demo: Demo) -> None:
    two = grace.chat("Grace", "/chat/garden/")
    one = browser.open("about:blank")
    one.driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": HOLD_LISTS_BACK})
    one.load(demo.url("/chat/garden/"))
    one.wait_for("held.length")
    two.close()
    one.wait_for("document.getElementById('news').textContent === 'Grace has left.'")
    assert "Grace" in one.run("return held[0][0].data")
    one.run("for (const [event, handler] of held) handler(event)")
    assert texts(one, "#here bdi") == [one.run("return document.getElementById('who').value")]


def test_who_takes_another_name_is_seen_by_that_alone(ada: Person, grace: Person) -> None:
    one, two = ada.chat("Ada", "/chat/garden/"), grace.chat("Grace", "/chat/garden/")
    rename(two, "Zoë <i>Z</i>")
    for window in (one, two):
        eventually(lambda window=window: texts(window, "#here bdi") == ["Ada", "Zoë <i>Z</i>"])


TABS_OF_GRACE = """
import djmease
print(*(person.connections for person in djmease.presence("room.garden") if person.user == "grace"))
"""


def test_two_tabs_of_a_user_are_one_name_that_no_guest_has(ada: Person, grace: Person, demo: Demo) -> None:
    grace.log_in("grace")
    guest = ada.chat("Ada", "/chat/garden/")
    tabs = [grace.open("/chat/garden/") for _ in range(2)]
    for window in (guest, *tabs):
        eventually(lambda window=window: texts(window, "#here bdi") == ["Ada", "grace"])
        assert texts(window, "#here .user bdi") == ["grace"]
        assert window.text("#here-label") == "Here 2"
    assert demo.run("shell", "-c", TABS_OF_GRACE).endswith("2\n")
    tabs[1].close()
    eventually(lambda: demo.run("shell", "-c", TABS_OF_GRACE).endswith("1\n"))
    say(tabs[0], "I am still here.")
    guest.wait_for_text("#messages", "I am still here.")
    assert texts(guest, "#here bdi") == ["Ada", "grace"]
    tabs[0].close()
    eventually(lambda: texts(guest, "#here bdi") == ["Ada"])


def test_a_refused_message_says_why_and_is_not_lost(ada: Person) -> None:
    window = ada.chat("Ada")
    say(window, "@grace psst")
    window.wait_for_text("#note", "Log in to whisper")
    assert window.run("return document.getElementById('text').value") == "@grace psst"


def test_a_whisper_is_seen_by_two(ada: Person, grace: Person, demo: Demo) -> None:
    ada.log_in("ada")
    grace.log_in("grace")
    one, two, guest = ada.open("/chat/"), grace.open("/chat/members/"), demo.connect("?room=lobby&name=Alan")
    say(one, "@grace psst")
    for window in (one, two):
        window.wait_for_text(".whisper", "psst")
    say(one, "Good morning!")
    with guest:
        guest.send('{"type": "chat.look", "after": 0}')
        heard = []
        while not heard or heard[-1].get("text") != "Good morning!":
            heard.append(json.loads(guest.recv(20)))
    assert "psst" not in str(heard)


def test_an_announcement_that_is_saved_in_the_admin_appears(
    ada: Person, grace: Person, browser: Browser, demo: Demo
) -> None:
    ada.log_in("demo")
    board = grace.open("/board/")
    admin = browser.open(demo.url("/admin/announcements/announcement/add/"))
    admin.find("#id_title").send_keys("The boats are in")
    admin.find("#id_text").send_keys("Herrings at the quay.", Keys.ENTER)
    board.wait_for_text("#board", "The boats are in")
    board.wait_for_text("#board", "Herrings at the quay.")
    board.wait_for("document.querySelector('.notice.fresh h3')?.textContent === 'The boats are in'")


def test_the_bar_of_a_job_moves_to_its_end_in_every_window(ada: Person, grace: Person) -> None:
    one, two = ada.open("/jobs/"), grace.open("/jobs/")
    one.find(".start-job button").click()
    two.wait_for("document.querySelector('.job')?.dataset.state === 'running'")
    two.wait_for("document.querySelector('.job progress').value > 3")
    for window in (one, two):
        window.wait_for("document.querySelector('.job')?.dataset.state === 'done'")
        assert window.run("return document.querySelector('.job progress').position") == 1


def test_a_job_of_one_user_is_seen_by_that_user(ada: Person, grace: Person, demo: Demo) -> None:
    ada.log_in("ada")
    one, two = ada.open("/jobs/"), grace.open("/jobs/")
    demo.run("run_job", "A present", "--user", "ada", "--steps", "3", "--seconds", "0")
    demo.run("run_job", "Nightly import", "--steps", "3", "--seconds", "0")
    for window in (one, two):
        window.wait_for_text(".job", "Nightly import")
    assert texts(one, ".job-name")[:2] == ["Nightly import", "A present"]
    assert "A present" not in texts(two, ".job-name")


SCORE = '{"type": "score", "home": 31, "away": 17}'


@pytest.mark.parametrize(
    "command",
    [
        ["mease_publish", "scores", SCORE, "--json"],
        ["shell", "-c", f"import djmease; djmease.publish('scores', {SCORE})"],
    ],
    ids=["mease_publish", "shell"],
)
def test_the_scoreboard_changes_by_a_command(ada: Person, grace: Person, demo: Demo, command: list[str]) -> None:
    windows = [ada.open("/scores/"), grace.open("/scores/")]
    demo.run(*command)
    for window in windows:
        window.wait_for_text("#home", "31")
        window.wait_for_text("#away", "17")


def test_the_scoreboard_changes_by_the_page_of_who_has_logged_in(ada: Person, grace: Person) -> None:
    ada.log_in("ada")
    one, two = ada.open("/scores/"), grace.open("/scores/")
    field = one.find("#set-home")
    field.clear()
    field.send_keys("7", Keys.ENTER)
    for window in (one, two):
        window.wait_for_text("#home", "7")
    assert texts(two, "#score") == []


def test_htmx_keeps_the_questions_live(ada: Person, grace: Person) -> None:
    one, two = ada.open("/questions/"), grace.open("/questions/")
    one.find("#id_text").send_keys("<b>Why</b> herrings?", Keys.ENTER)
    for window in (one, two):
        window.wait_for_text("#questions", "<b>Why</b> herrings?")
    one.wait_for("document.querySelector('#id_text').value === ''")
    one.find("#id_text").send_keys("And how many?", Keys.ENTER)
    two.wait_for_text("#questions", "And how many?")


def test_who_votes_by_the_keyboard_keeps_the_place_when_the_list_is_swapped(ada: Person, grace: Person) -> None:
    one, two = ada.open("/questions/"), grace.open("/questions/")
    vote = "document.querySelector('#questions li:last-child button')"
    asked = one.run(f"return {vote}.getAttribute('aria-label')")
    one.run(f"{vote}.focus()")
    for votes in ("1", "2"):
        one.run("return document.activeElement").send_keys(Keys.ENTER)
        two.wait_for(f"document.querySelector('#questions .votes').textContent === '{votes}'")
        one.wait_for(f"document.querySelector('#questions .votes').textContent === '{votes}'")
        assert one.run("return document.activeElement.getAttribute('aria-label')") == asked
    assert two.run("return document.querySelector('#questions button').getAttribute('aria-label')") == asked


@pytest.mark.parametrize("width", [320, 375, 768, 1280])
def test_no_page_is_wider_than_its_window_and_nothing_comes_from_elsewhere(ada: Person, demo: Demo, width: int) -> None:
    ada.log_in("demo")
    window = ada.open("/")
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 1000}
    window.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    for address in ADDRESSES:
        window.load(demo.url(address))
        window.wait_for_text("#state", "Live")
        wide = window.run("return [document.documentElement.scrollWidth, innerWidth]")
        assert wide[0] <= wide[1] == width, address
        hosts = window.run("return performance.getEntriesByType('resource').map((each) => new URL(each.name).hostname)")
        assert set(hosts) == {"127.0.0.1"}, address


def test_on_a_phone_the_name_of_a_file_stays_beside_its_triangle(ada: Person, demo: Demo) -> None:
    window = ada.open("/")
    size = {"width": 360, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    window.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    for address in ("/board/", "/jobs/"):
        window.load(demo.url(address))
        # The text of each line, and the height of the first, where the triangle is.
        below = window.run(
            "return [...document.querySelectorAll('.code summary')].filter((each) => {"
            "const range = document.createRange(); range.selectNodeContents(each.firstChild);"
            "const line = range.getClientRects()[0], box = each.getBoundingClientRect();"
            "return line.top - box.top > line.height}).map((each) => each.textContent)"
        )
        assert below == [], address


def test_pages_can_be_read_and_used_without_javascript(browser: Browser, demo: Demo) -> None:
    window = browser.open(demo.url("/"))
    window.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    for address in ADDRESSES:
        window.load(demo.url(address))
        assert window.text("#state") == "Not live"
        assert "Without JavaScript" in window.text(".foot")
    window.load(demo.url("/board/"))
    assert "pinned" in window.text("#board")
    window.load(demo.url("/questions/"))
    window.find("#id_text").send_keys("Without a script?", Keys.ENTER)
    window.wait_for_text("#questions", "Without a script?")
    window.load(demo.url("/jobs/"))
    window.find(".start-job button").click()
    window.wait_for_text("#jobs", "Count 40 herrings")


def test_the_keyboard_reaches_everything(ada: Person) -> None:
    window = ada.open("/board/")

    def focused() -> str:
        text: str = window.run("return document.activeElement.innerText || document.activeElement.tagName")
        return text.strip()

    reached = []
    for _ in range(30):
        window.run("return document.activeElement").send_keys(Keys.TAB)
        reached.append(focused())
        assert window.run("return getComputedStyle(document.activeElement).outlineStyle") != "none", reached[-1]
        if reached[-1] == "Admin":
            break
    assert reached[0] == "Skip to the page"
    assert {"Chat", "Questions", "Edit in the admin", "announcements/live.py", "Log in", "Admin"} <= set(reached)
    summary = window.find(".code details:nth-of-type(2) summary")
    summary.send_keys(Keys.ENTER)
    window.wait_for(
        "document.querySelectorAll('.code details')[1].open && !document.querySelector('.code details').open"
    )


def test_a_page_survives_the_death_of_the_server_and_sends_what_was_typed_meanwhile(browser: Browser) -> None:
    site = SingleSteps()
    try:
        window, other = (Person(browser, site, host) for host in ("127.0.0.1", "localhost"))
        one, two = window.chat("Ada"), other.chat("Grace")
        one.wait_for_text("#here", "Grace")
        site.kill()
        one.wait_for_text("#state", "Reconnecting")
        say(one, "Is anybody there?")
        one.wait_for_text("#note", "Kept, and sent")
        rename(one, "Alan")
        site.start_again()
        for page in (one, two):
            page.wait_for_text("#state", "Live")
            page.wait_for_text("#messages", "Is anybody there?")
        say(two, "Yes.")
        one.wait_for_text("#messages", "Yes.")
        assert texts(one, ".message-text") == texts(two, ".message-text") == ["Is anybody there?", "Yes."]
        assert texts(one, ".message-who") == ["Ada", "Grace"]
        # The dead server has told nobody that its clients went; the new one finds out.
        for page in (one, two):
            eventually(lambda page=page: sorted(texts(page, "#here bdi")) == ["Alan", "Grace"])
        assert one.text("#note") == ""
    finally:
        site.stop()
