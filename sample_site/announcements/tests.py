"""The board, tested with djmease.test alone."""

from __future__ import annotations

from django.test import TestCase

from announcements.models import Announcement
from djmease.test import captured_messages, connect


def titles(page):
    return [[each["title"] for each in message["announcements"]] for message in page.received]


class BoardTests(TestCase):
    def test_saving_and_deleting_tell_the_pages_that_look(self):
        with connect(groups=["board"]) as page, connect() as elsewhere:
            page.send({"type": "board.look"})
            announcement = Announcement.objects.create(title="The board is open")
            announcement.delete()
        self.assertEqual(titles(page), [[], ["The board is open"], []])
        self.assertEqual(elsewhere.received, [])

    def test_what_is_pinned_stays_at_the_top(self):
        Announcement.objects.create(title="first", is_pinned=True)
        Announcement.objects.create(title="second")
        self.assertEqual([each["title"] for each in Announcement.board()], ["first", "second"])

    def test_it_is_published_on_its_own_routing(self):
        with captured_messages() as messages:
            Announcement.objects.create(title="x")
        self.assertEqual([message.routing for message in messages], ["board"])

    def test_the_page_has_it_before_its_websocket_opens(self):
        Announcement.objects.create(title="<b>Hello</b>", text="to all")
        self.assertContains(self.client.get("/board/"), "&lt;b&gt;Hello&lt;/b&gt;")
