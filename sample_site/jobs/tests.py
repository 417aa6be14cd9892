"""The jobs, tested with djmease.test alone."""

from __future__ import annotations

from datetime import timedelta

from django.contrib.auth import get_user_model
from django.core.management import CommandError, call_command
from django.test import TestCase
from django.utils import timezone

from djmease.test import connect
from jobs.models import Job
from jobs.views import MAX_RUNNING


def progress(page):
    return [message["done"] for message in page.received]


class ProgressTests(TestCase):
    def setUp(self):
        create = get_user_model().objects.create_user
        self.ada, self.grace = create("ada"), create("grace")

    def test_everybody_who_looks_sees_the_job_of_a_command(self):
        with connect() as page, connect() as elsewhere:
            page.send({"type": "jobs.look"})
            call_command("run_job", "Count", steps=3, seconds=0, verbosity=0)
        self.assertEqual(progress(page), [0, 1, 2, 3])
        self.assertEqual(page.received[-1]["state"], "done")
        self.assertEqual(elsewhere.received, [])

    def test_the_job_of_one_user_is_seen_by_that_user_on_any_page(self):
        with connect(user=self.ada) as ada, connect(user=self.grace) as grace, connect() as anybody:
            grace.send({"type": "jobs.look"})
            anybody.send({"type": "jobs.look"})
            call_command("run_job", "Count", steps=2, seconds=0, user="ada", verbosity=0)
        self.assertEqual([progress(page) for page in (ada, grace, anybody)], [[0, 1, 2], [], []])

    def test_a_page_that_comes_later_is_told_how_far_the_jobs_are_that_it_may_see(self):
        Job.objects.create(name="all", total=9, done=4)
        Job.objects.create(name="one", total=9, done=5, owner=self.ada)
        with connect(user=self.ada) as ada, connect(user=self.grace) as grace, connect() as anybody:
            for page in (ada, grace, anybody):
                page.send({"type": "jobs.look"})
        self.assertEqual([progress(page) for page in (ada, grace, anybody)], [[4, 5], [4], [4]])

    def test_there_must_be_such_a_user(self):
        with self.assertRaisesMessage(CommandError, "There is no user called nobody."):
            call_command("run_job", user="nobody")

    def test_a_job_must_have_something_to_do(self):
        with self.assertRaises(CommandError):
            call_command("run_job", steps=0)

    def test_a_job_whose_process_has_died_is_broken_off(self):
        job = Job.objects.create(name="x", total=9, done=4)
        self.assertEqual(job.state, "running")
        Job.objects.update(updated=timezone.now() - timedelta(minutes=1))
        job.refresh_from_db()
        self.assertEqual(job.state, "broken off")


class PageTests(TestCase):
    def test_only_so_many_run_at_once(self):
        for _ in range(MAX_RUNNING):
            Job.objects.create(name="x", total=9)
        self.assertContains(self.client.post("/jobs/start/", follow=True), "jobs run already")
        self.assertEqual(Job.objects.count(), MAX_RUNNING)

    def test_a_private_job_is_on_its_owners_page_alone(self):
        ada = get_user_model().objects.create_user("ada")
        Job.objects.create(name="A present", total=9, owner=ada)
        self.assertNotContains(self.client.get("/jobs/"), "A present<")
        self.client.force_login(ada)
        self.assertContains(self.client.get("/jobs/"), "A present<")
