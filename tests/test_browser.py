"""The browser that other tests use: windows, their scripts, and nothing left behind."""

from __future__ import annotations

import urllib.parse

from tests.browser import Browser


def page(body: str) -> str:
    return "data:text/html," + urllib.parse.quote(f"<!doctype html>{body}")


def test_two_windows_are_separate_pages(browser: Browser) -> None:
    one, two = browser.open(page("<p>one</p>")), browser.open(page("<p>two</p>"))
    one.run("window.mark = 1")
    assert (one.text("p"), two.text("p")) == ("one", "two")
    assert (one.run("return window.mark"), two.run("return window.mark ?? null")) == (1, None)


def test_it_waits_for_what_a_page_does_later(browser: Browser) -> None:
    script = "setTimeout(() => { document.body.innerHTML = '<b>here</b>'; window.done = 'yes' }, 50)"
    window = browser.open(page(f"<body><script>{script}</script>"))
    window.wait_for_text("b", "here")
    assert window.wait_for("window.done") == "yes"
    assert window.run("return Promise.resolve(arguments[0] + 1)", 2) == 3


def test_it_tells_what_the_console_has(browser: Browser) -> None:
    window = browser.open(page("<script>console.warn('look here'); nothing.there</script>"))
    logged = "\n".join(window.logged())
    assert "look here" in logged and "nothing is not defined" in logged
    assert window.logged() == []


def test_clearing_leaves_one_empty_window(browser: Browser) -> None:
    browser.open(page("one"))
    browser.clear()
    assert len(browser.driver.window_handles) == 1
