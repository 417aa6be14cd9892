"""`python manage.py run_job`: a long job in a process of its own, that every page can watch."""

from __future__ import annotations

from argparse import ArgumentParser

from django.contrib.auth import get_user_model
from django.core.management.base import BaseCommand, CommandError

from jobs.models import Job
from jobs.work import run


class Command(BaseCommand):
    help = "Works through a job, and publishes its progress."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("name", nargs="?", default="Nightly import")
        parser.add_argument("--steps", type=int, default=100)
        parser.add_argument("--seconds", type=float, default=20)
        parser.add_argument("--user", help="tell this user alone, by name")

    def handle(self, *args, **options) -> None:
        if options["steps"] < 1 or options["seconds"] < 0:
            raise CommandError("A job has one step at least, and takes no negative time.")
        owner = user_called(options["user"]) if options["user"] else None
        job = Job.objects.create(name=options["name"], owner=owner, total=options["steps"])
        run(job, options["seconds"])
        if options["verbosity"]:
            self.stdout.write(f"{job.name}: done.")


def user_called(name: str):
    try:
        return get_user_model()._default_manager.get_by_natural_key(name)
    except get_user_model().DoesNotExist as error:
        raise CommandError(f"There is no user called {name}.") from error
