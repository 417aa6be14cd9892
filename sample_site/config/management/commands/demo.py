"""`python manage.py demo`: everything that it takes to see the sample site, in one command."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from http.client import HTTPConnection, HTTPException

from django.conf import settings
from django.contrib.auth import get_user_model
from django.contrib.auth.hashers import make_password
from django.core.management import call_command, execute_from_command_line
from django.core.management.base import BaseCommand, CommandError

from announcements.models import Announcement
from questions.models import Question

SUPERUSER = "demo"
USERS = [SUPERUSER, "ada", "grace"]
PASSWORD = "demo"
ANNOUNCEMENTS = [
    {"title": "The tide turns at noon", "text": "Change this line in the admin, and watch it change here."},
    {"title": "Welcome", "text": "This one is pinned, and stays at the top.", "is_pinned": True},
]
QUESTIONS = ["What is lost while a page is away?", "How many herrings are a mease?"]

GREETING = """
The sample site   {site}   (open it in two windows)
Its admin         {site}admin/   (log in as demo, password demo)

Two more to whisper with: ada and grace, with the same password.
For the demo only: everybody knows that password.
"""


class Command(BaseCommand):
    help = "Prepares the database of the sample site and runs it, with its WebSocket server. For the demo only."

    def handle(self, *args, **options) -> None:
        refuse_without_debug()
        refuse_a_port_in_use("SAMPLE_SITE_PORT", settings.SAMPLE_SITE_PORT)
        refuse_a_port_in_use("SAMPLE_SITE_WEBSOCKET_PORT", settings.MEASE_PORT)
        call_command("migrate", interactive=False, verbosity=0)
        make_users()
        make_content()
        threading.Thread(target=self.greet, daemon=True).start()
        run_server()

    def greet(self) -> None:
        """Say where to go when somebody can go there, below all that the two servers say of themselves."""
        while not is_up():
            time.sleep(0.2)
        self.stdout.write(GREETING.format(site=f"http://{site_address()}/"))


def refuse_without_debug() -> None:
    if not settings.DEBUG:
        raise CommandError("The demo makes users whose password is known: it runs only while DEBUG is on.")


def refuse_a_port_in_use(variable: str, port: int) -> None:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError as error:
        raise CommandError(
            f"Port {port} cannot be used ({os.strerror(error.errno)}): stop what listens there, or name another, "
            f"for example {variable}={port + 100} python manage.py demo"
        ) from error


def make_users() -> None:
    users = get_user_model().objects
    known = set(users.filter(username__in=USERS).values_list("username", flat=True))
    if known.issuperset(USERS):
        return
    # Hashing takes long, as it should: once is enough for all.
    password = make_password(PASSWORD)
    for name in USERS:
        if name not in known:
            users.create(username=name, password=password, is_staff=name == SUPERUSER, is_superuser=name == SUPERUSER)


def make_content() -> None:
    # bulk_create sends no signals, so nothing is published: no server runs yet that would hear it.
    if not Announcement.objects.exists():
        Announcement.objects.bulk_create(Announcement(**fields) for fields in ANNOUNCEMENTS)
    if not Question.objects.exists():
        Question.objects.bulk_create(Question(text=text) for text in QUESTIONS)


def site_address() -> str:
    return f"127.0.0.1:{settings.SAMPLE_SITE_PORT}"


def is_up() -> bool:
    """Tell whether the site listens, and its WebSocket server is ready; one on any free port is not asked."""
    try:
        socket.create_connection(("127.0.0.1", settings.SAMPLE_SITE_PORT), timeout=5).close()
        return not settings.MEASE_PORT or is_ready(settings.MEASE_PORT)
    except (OSError, HTTPException):
        return False


def is_ready(port: int) -> bool:
    connection = HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    finally:
        connection.close()


def run_server() -> None:
    # When the code changes, the server's reloader starts sys.argv again. If that still said "demo", each reload would
    # begin with the migrations and the greeting.
    sys.argv[1:] = ["run_websocket_server", "--with-site", site_address()]
    execute_from_command_line(sys.argv)
