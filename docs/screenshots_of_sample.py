"""Write docs/sample.png, the sample site on a desk and on a phone: ``python -m docs.screenshots_of_sample``.

It takes Chromium and its driver, starts the demo in a directory of its own, and lets two people use it.
"""

from __future__ import annotations

import base64
import tempfile
from pathlib import Path

from selenium.webdriver.common.keys import Keys

from tests.browser import Browser, Window, running_browser
from tests.demo import Demo
from tests.support import ROOT

PICTURE = ROOT / "docs" / "sample.png"
MAX_SIZE = 250_000
DESK = (1180, 825)
PHONE = (360, 700)

TALK = [
    ("Ada", "Good morning! Is the tide in already?"),
    ("Grace", "Not before noon. Half a mease of herrings came in with the first boat, though."),
    ("Ada", "So 250. I will be at the quay with the cart."),
    ("Grace", "See you there."),
]

SHOW_CALLBACKS = """
const line = [...document.querySelectorAll(".code span")].find((each) => each.textContent.startsWith("@djmease."));
line.closest("pre").scrollTop = line.offsetTop - line.closest("pre").offsetTop - 8;
"""

SHEET = """\
<!doctype html>
<style>
  body { position: relative; width: 1400px; height: 860px; margin: 0; }
  img { position: absolute; }
  .desk { top: 0; left: 0; border: 1px solid #8aa3a6; border-radius: 12px; }
  .phone { right: 0; bottom: 0; border: 8px solid #26363a; border-radius: 32px; }
</style>
<img class="desk" src="desk.png"><img class="phone" src="phone.png">
"""


def main() -> None:
    demo = Demo()
    try:
        with tempfile.TemporaryDirectory() as home, running_browser() as browser:
            shoot(browser, demo, Path(home))
            PICTURE.write_bytes(compose(browser, Path(home)))
    finally:
        demo.stop()
    size = PICTURE.stat().st_size
    if size > MAX_SIZE:
        raise SystemExit(f"{PICTURE} has {size} bytes, and should have {MAX_SIZE} at most.")


def shoot(browser: Browser, demo: Demo, home: Path) -> None:
    windows = {name: enter(browser, demo, name, host) for name, host in (("Ada", "127.0.0.1"), ("Grace", "localhost"))}
    for name, text in TALK:
        windows[name].find("#text").send_keys(text, Keys.ENTER)
        for window in windows.values():
            window.wait_for_text("#messages", text)
    look_like(windows["Ada"], *DESK, theme="light")
    windows["Ada"].run(SHOW_CALLBACKS)
    (home / "desk.png").write_bytes(picture(windows["Ada"], *DESK, theme="light"))
    phone = windows["Grace"]
    look_like(phone, *PHONE, theme="dark")
    phone.load(demo.url("/jobs/", "localhost"))
    phone.wait_for_text("#state", "Live")
    for name, steps, seconds in (("Sort the catch", 60, 1), ("Count herrings", 500, 50)):
        demo.manage("run_job", name, "--steps", str(steps), "--seconds", str(seconds))
        phone.wait_for_text("#jobs", name)
    phone.wait_for("document.querySelector('progress').value > 120")
    (home / "phone.png").write_bytes(picture(phone, *PHONE, theme="dark"))


def enter(browser: Browser, demo: Demo, name: str, host: str) -> Window:
    window = browser.open(demo.url("/chat/", host))
    window.find("#who").clear()
    window.find("#who").send_keys(name, Keys.TAB)
    window.wait_for_text("#here", name)
    return window


def look_like(window: Window, width: int, height: int, *, theme: str) -> None:
    command = window.driver.execute_cdp_cmd
    command("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": theme}]})
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    command("Emulation.setDeviceMetricsOverride", size)
    window.run("document.documentElement.style.scrollbarWidth = 'none'")


def picture(window: Window, width: int, height: int, *, theme: str) -> bytes:
    look_like(window, width, height, theme=theme)
    window.run("document.activeElement.blur(); scrollTo(0, 0)")
    return captured(window)


def compose(browser: Browser, home: Path) -> bytes:
    sheet = home / "sheet.html"
    sheet.write_text(SHEET)
    window = browser.open(sheet.as_uri())
    size = {"width": 1400, "height": 860, "deviceScaleFactor": 1, "mobile": False}
    window.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    nothing = {"color": {"r": 0, "g": 0, "b": 0, "a": 0}}
    window.driver.execute_cdp_cmd("Emulation.setDefaultBackgroundColorOverride", nothing)
    return captured(window)


def captured(window: Window) -> bytes:
    return base64.b64decode(window.driver.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})["data"])


if __name__ == "__main__":
    main()
