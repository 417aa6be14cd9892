"""Headless Chromium for tests that need a real browser, driven by selenium through the system's chromedriver."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import pytest
from selenium import webdriver
from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

from tests.support import DEADLINE, eventually

REQUIRE_ALL = "MEASE_TESTS_REQUIRE_ALL"
"""An environment variable that makes a test fail where it would be skipped for want of a program."""

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--no-proxy-server",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
)


def find_program(*names: str) -> str:
    """Return the path of the first of these programs there is; without any the test is skipped, or fails in CI."""
    for name in names:
        path = shutil.which(name)
        if path is not None:
            return path
    _go_without(f"none of these is installed: {', '.join(names)}")


def _go_without(reason: str) -> NoReturn:
    if os.environ.get(REQUIRE_ALL):
        pytest.fail(f"{reason}, and {REQUIRE_ALL} is set")
    pytest.skip(reason)


@contextmanager
def running_browser() -> Iterator[Browser]:
    """A Chromium with a profile of its own; it ends with the block."""
    binary = find_program("chromium", "chromium-browser", "google-chrome")
    service = webdriver.ChromeService(find_program("chromedriver"))
    profile = Path(tempfile.mkdtemp(prefix="mease-browser-"))
    try:
        driver = webdriver.Chrome(_options(binary, profile), service)
        try:
            yield Browser(driver)
        finally:
            driver.quit()
    finally:
        shutil.rmtree(profile, ignore_errors=True)


def _options(binary: str, profile: Path) -> webdriver.ChromeOptions:
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return options


class Browser:
    """A browser with as many windows (tabs) as a test opens; they share cookies, as those of one person do."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver
        driver.set_script_timeout(DEADLINE)
        driver.set_page_load_timeout(DEADLINE)
        self._resting = driver.current_window_handle

    def open(self, url: str) -> Window:
        """Return a new window that has loaded this page."""
        self.driver.switch_to.new_window("tab")
        window = Window(self.driver)
        window.load(url)
        return window

    def clear(self) -> None:
        """Close every window but an empty one, and forget all cookies and what was logged."""
        for handle in self.driver.window_handles:
            if handle != self._resting:
                self.driver.switch_to.window(handle)
                self.driver.close()
        self.driver.switch_to.window(self._resting)
        self.driver.execute_cdp_cmd("Network.clearBrowserCookies", {})
        self.driver.get_log("browser")


class Window:
    """One window of the browser; each method brings it to where the driver looks first."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self._driver = driver
        self.handle = driver.current_window_handle

    @property
    def driver(self) -> webdriver.Chrome:
        """The driver, looking at this window."""
        self._driver.switch_to.window(self.handle)
        return self._driver

    def load(self, url: str) -> None:
        self.driver.get(url)

    def run(self, script: str, *arguments: Any) -> Any:
        """Return what a function body returns in the page; ``arguments`` is what it was given. Promises are awaited."""
        return self.driver.execute_script(script, *arguments)

    def wait_for(self, expression: str, *arguments: Any) -> Any:
        """Return the first true value of a JavaScript expression, looked at until the deadline."""
        return eventually(lambda: self.run(f"return {expression}", *arguments), expression)

    def find(self, selector: str) -> WebElement:
        """Return the element of a CSS selector, once it is there."""
        return eventually(lambda: self._find_now(selector), f"an element {selector}")

    def text(self, selector: str) -> str:
        """Return what a person reads there."""
        return self.find(selector).text

    def wait_for_text(self, selector: str, text: str) -> None:
        """Wait until the element has this text somewhere."""

        def has_text() -> bool:
            try:
                return text in self.find(selector).text
            except StaleElementReferenceException:
                return False

        eventually(has_text, f"the text {text!r} in {selector}")

    def _find_now(self, selector: str) -> WebElement | None:
        try:
            return self.driver.find_element(By.CSS_SELECTOR, selector)
        except NoSuchElementException:
            return None

    def logged(self) -> list[str]:
        """Return what all windows wrote to the console since this was last called, errors of the browser included."""
        return [f"{entry['level']} {entry['message']}" for entry in self.driver.get_log("browser")]

    def close(self) -> None:
        self.driver.close()
