"""Takes the pictures of the status page in this folder: the sample site with two servers, clients and traffic.

Run it from a checkout, in an environment that has the ``test`` extra, with Chromium and its chromedriver installed:
``python docs/screenshots.py``. It takes two minutes, since the plots are to show something.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from http.cookiejar import CookieJar
from pathlib import Path

from websockets.asyncio.client import ClientConnection, connect

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT))

from tests.browser import Window, running_browser  # noqa: E402
from tests.support import Process  # noqa: E402

SITE = ROOT / "sample_site"
PAGE = "/admin/djmease/status/"
USERS = ("ada", "grace", "hedy", "katherine", "radia", "joan")
ROOMS = ("lobby", "lobby", "garden", "lobby", "workshop", "lobby", "garden")
SAID = ("Good morning!", "Who has the minutes?", "Tea is ready.", "Shall we move it to three?", "Found it, thank you.")
# Reports that come often fill the plots sooner.
SETTINGS = "from config.settings import *\nMEASE_REPORT_INTERVAL = 0.7\nMEASE_PRESENCE = ['room.*']\n"
MAKE_USERS = (
    "from django.contrib.auth.hashers import make_password\n"
    "from django.contrib.auth.models import User\n"
    # The demo has made some of them.
    "given = {{'is_staff': True, 'password': make_password('demo')}}\n"
    "for name in {users!r}: User.objects.update_or_create(username=name, defaults=given)"
)
SHOTS = (
    # Name, width, height, colours, query, what is brought to the top.
    ("status-light", 1280, 1152, "light", "", None),
    ("status-dark", 1280, 1152, "dark", "", None),
    ("status-phone", 390, 1500, "light", "", None),
    ("status-phone-dark", 390, 1500, "dark", "", None),
    ("status-clients", 1280, 760, "light", "?clients=1", "clients"),
    ("status-groups", 1280, 820, "light", "?groups=1&clients=1&group=room.garden", "groups"),
)


class SampleSite:
    """The sample site with two WebSocket servers, on ports and in a directory of its own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.port = free_port()
        (home / "screenshot_settings.py").write_text(SETTINGS)
        self.environment = {
            "DJANGO_SETTINGS_MODULE": "screenshot_settings",
            "PYTHONPATH": f"{ROOT}:{SITE}:{home}",
            "SAMPLE_SITE_DATABASE": str(home / "db.sqlite3"),
            "SAMPLE_SITE_EMBEDDED_DIR": str(home / "valkey"),
            "SAMPLE_SITE_PORT": str(self.port),
            "SAMPLE_SITE_WEBSOCKET_PORT": "0",
        }
        self.processes: list[Process] = []
        self.ports: list[int] = []

    def open(self) -> None:
        demo = self.start("demo")
        self.ports.append(demo.port())
        demo.wait_for("Quit the server with CONTROL-C.")
        self.ports.append(self.start("run_websocket_server", "--noreload").port())
        assert self.start("shell", "-c", MAKE_USERS.format(users=USERS)).wait() == 0

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self, *arguments: str) -> Process:
        process = Process([sys.executable, "manage.py", *arguments], SITE, self.environment)
        self.processes.append(process)
        return process

    def log_in(self, name: str) -> str:
        """Return the cookies of a user who has logged in."""
        cookies = CookieJar()
        opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(cookies))
        page = opener.open(f"{self.address}/admin/login/").read().decode()
        token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', page)
        assert token is not None
        fields = {"username": name, "password": "demo", "csrfmiddlewaretoken": token[1]}
        opener.open(f"{self.address}/admin/login/?next=/admin/", urllib.parse.urlencode(fields).encode()).read()
        return "; ".join(f"{cookie.name}={cookie.value}" for cookie in cookies)

    def stop(self) -> None:
        for process in self.processes:
            process.stop()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


class Crowd(threading.Thread):
    """People who come, talk, whisper and go."""

    def __init__(self, site: SampleSite, size: int) -> None:
        super().__init__(daemon=True)
        self.site = site
        self.size = size
        self.cookies = {name: site.log_in(name) for name in USERS}
        self.is_over = threading.Event()

    def run(self) -> None:
        asyncio.run(self._meet())

    async def _meet(self) -> None:
        async with AsyncExitStack() as door:
            people: list[ClientConnection] = []
            known: list[ClientConnection] = []
            began = time.monotonic()
            while not self.is_over.is_set():
                if len(people) < self.size and random.random() < 0.25:
                    name = self._who(len(people))
                    people.append(await self._enter(door, len(people), name))
                    known.extend(people[-1:] if name else ())
                if people:
                    await self._talk(people, known)
                # More is said at some times than at others.
                await asyncio.sleep(0.03 + 0.08 * random.random() * (1 + (time.monotonic() - began) // 15 % 3))

    def _who(self, number: int) -> str | None:
        # Those who have logged in come last, so that they are at the top of the list.
        left = self.size - 1 - number
        return USERS[left // 2] if left % 2 and left // 2 < len(USERS) else None

    async def _enter(self, door: AsyncExitStack, number: int, name: str | None) -> ClientConnection:
        connection = await door.enter_async_context(
            connect(
                f"ws://127.0.0.1:{self.site.ports[number % 2]}/?room={ROOMS[number % len(ROOMS)]}",
                origin=self.site.address,
                additional_headers={"Cookie": self.cookies[name]} if name else {},
            )
        )
        door.push_async_callback(connection.close)
        task = asyncio.create_task(listen(connection))
        door.callback(task.cancel)
        return connection

    async def _talk(self, people: list[ClientConnection], known: list[ClientConnection]) -> None:
        if known and random.random() < 0.1:
            frame = {"type": "chat.whisper", "to": random.choice(USERS), "text": "psst"}
            await random.choice(known).send(json.dumps(frame))
        else:
            frame = {"type": "chat.say", "who": random.choice(USERS).title(), "text": random.choice(SAID)}
            await random.choice(people).send(json.dumps(frame))


async def listen(connection: ClientConnection) -> None:
    with suppress(Exception):
        async for _ in connection:
            pass


@contextmanager
def busy_site(size: int) -> Iterator[SampleSite]:
    home = Path(tempfile.mkdtemp(prefix="mease-"))
    site = SampleSite(home)
    try:
        site.open()
        crowd = Crowd(site, size)
        crowd.start()
        yield site
        assert crowd.is_alive(), "the crowd has left"
        crowd.is_over.set()
        crowd.join(10)
    finally:
        site.stop()
        shutil.rmtree(home, ignore_errors=True)


def take(window: Window, site: SampleSite, folder: Path) -> None:
    for name, width, height, colours, query, top in SHOTS:
        show_at(window, width, height, colours)
        window.load(f"{site.address}{PAGE}{query}")
        window.wait_for("document.querySelector('[data-state=good]') !== null")
        if top:
            window.run("document.getElementById(arguments[0]).closest('section').scrollIntoView()", top)
        window.driver.save_screenshot(str(folder / f"{name}.png"))
    take_red(window, site, folder)


def take_red(window: Window, site: SampleSite, folder: Path) -> None:
    """Take what the page says when Redis hangs."""
    show_at(window, 1280, 452, "light")
    window.load(f"{site.address}{PAGE}")
    pid = int((site.home / "valkey" / "valkey.pid").read_text())
    os.kill(pid, signal.SIGSTOP)
    try:
        window.wait_for("document.querySelector('[data-state=bad]') !== null")
        window.driver.save_screenshot(str(folder / "status-red.png"))
    finally:
        os.kill(pid, signal.SIGCONT)


def show_at(window: Window, width: int, height: int, colours: str) -> None:
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    window.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    window.driver.execute_cdp_cmd("Emulation.setScrollbarsHidden", {"hidden": True})
    # Nothing is to be taken in the middle of its changing.
    features = {"prefers-color-scheme": colours, "prefers-reduced-motion": "reduce"}
    media = [{"name": name, "value": value} for name, value in features.items()]
    window.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=100, help="of traffic before the pictures are taken")
    parser.add_argument("--clients", type=int, default=60)
    parser.add_argument("--into", type=Path, default=HERE)
    options = parser.parse_args()
    with busy_site(options.clients) as site, running_browser() as browser:
        window = browser.open(f"{site.address}/admin/login/?next={PAGE}")
        window.find("#id_username").send_keys("demo")
        window.find("#id_password").send_keys("demo")
        window.find("[type=submit]").click()
        window.find("#mease")
        time.sleep(options.seconds)
        take(window, site, options.into)


if __name__ == "__main__":
    main()
