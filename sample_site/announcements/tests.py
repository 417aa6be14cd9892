"""The announcement, tested with djmease.test alone."""

from __future__ import annotations

from django.test import TestCase

from announcements.models import Announcement
from djmease.test import captured_messages, connect


class AnnouncementTests(TestCase):
    def test_saving_and_deleting_an_announcement_tell_every_page(self):
        with connect() as page:
            announcement = Announcement.objects.create(text="The board is open")
            announcement.delete()
        announced = [message["text"] for message in page.received if message["type"] == "announcement"]
        self.assertEqual(announced, ["", "The board is open", ""])

    def test_it_is_published_on_its_own_routing(self):
        with captured_messages() as messages:
            Announcement.objects.create(text="x")
        self.assertEqual([message.routing for message in messages], ["announcement"])
