"""`python manage.py demo`: everything that it takes to see the sample site, in one command."""

from __future__ import annotations

import sys

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.management import call_command, execute_from_command_line
from django.core.management.base import BaseCommand, CommandError

from announcements.models import Announcement

LOGIN = "demo"
PASSWORD = "demo"
FIRST_ANNOUNCEMENT = "Welcome! Change this line in the admin, and watch it change here."

GREETING = """\
The sample site   {site}   (open it in two windows)
Its admin         {site}admin/   (log in as {login}, password {password})

For the demo only: everybody knows that password.
"""


class Command(BaseCommand):
    help = "Prepares the database of the sample site and runs it, with its WebSocket server. For the demo only."

    def handle(self, *args, **options) -> None:
        refuse_without_debug()
        call_command("migrate", interactive=False, verbosity=0)
        make_superuser()
        make_announcement()
        self.stdout.write(greeting())
        run_server()


def refuse_without_debug() -> None:
    if not settings.DEBUG:
        raise CommandError("The demo makes a superuser whose password is known: it runs only while DEBUG is on.")


def make_superuser() -> None:
    user_model = get_user_model()
    if not user_model.objects.filter(username=LOGIN).exists():
        user_model.objects.create_superuser(LOGIN, password=PASSWORD)


def make_announcement() -> None:
    if not Announcement.objects.exists():
        # bulk_create sends no signals, so this one is not published: no server runs yet that would hear it.
        Announcement.objects.bulk_create([Announcement(text=FIRST_ANNOUNCEMENT)])


def site_address() -> str:
    return f"127.0.0.1:{settings.SAMPLE_SITE_PORT}"


def greeting() -> str:
    return GREETING.format(site=f"http://{site_address()}/", login=LOGIN, password=PASSWORD)


def run_server() -> None:
    # When the code changes, the server's reloader starts sys.argv again. If that still said "demo", each reload would
    # begin with the migrations and the greeting.
    sys.argv[1:] = ["run_websocket_server", "--with-site", site_address()]
    execute_from_command_line(sys.argv)
