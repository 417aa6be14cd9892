"""The chat, tested with djmease.test alone: no Redis, no server, no event loop."""

from __future__ import annotations

from django.contrib.auth import get_user_model
from django.test import TestCase

from chat.models import Message
from djmease.test import captured_messages, connect


def texts(page):
    return [message["text"] for message in page.received if message["type"].startswith("chat.")]


class RoomTests(TestCase):
    def test_what_is_said_in_a_room_is_heard_and_kept_there(self):
        with connect(path="/?room=garden") as ada, connect(path="/?room=garden") as grace, connect() as lobby:
            ada.send({"type": "chat.say", "who": "Ada", "text": "  Good\n morning!"})
            self.assertEqual(texts(ada), ["Good morning!"])
            self.assertEqual(texts(grace), ["Good morning!"])
            self.assertEqual(texts(lobby), [])
        with connect(path="/?room=garden") as late:
            self.assertEqual(texts(late), ["Good morning!"])

    def test_what_is_no_message_is_answered_to_its_sender_and_not_stored(self):
        with connect() as page, captured_messages() as published:
            for message in ({"who": 1, "text": "x"}, {"who": "x", "text": ""}, {"who": "x", "text": "x" * 501}):
                page.send({"type": "chat.say", **message})
        self.assertEqual([message["type"] for message in page.received[1:]], 3 * ["error"])
        self.assertEqual(published, [])
        self.assertFalse(Message.objects.exists())


class WhisperTests(TestCase):
    def setUp(self):
        create = get_user_model().objects.create_user
        self.ada, self.grace, self.alan = create("ada"), create("grace"), create("alan")

    def test_a_whisper_reaches_all_tabs_of_one_user_in_whatever_room(self):
        with (
            connect(user=self.ada) as ada,
            connect(user=self.grace) as grace,
            connect(user=self.grace, path="/?room=garden") as second_tab,
            connect(user=self.alan) as alan,
        ):
            ada.send({"type": "chat.whisper", "to": "grace", "text": "psst"})
            self.assertEqual(
                [texts(page) for page in (ada, grace, second_tab, alan)], [["psst"], ["psst"], ["psst"], []]
            )

    def test_whispering_is_for_those_who_have_logged_in(self):
        with connect() as anybody:
            anybody.send({"type": "chat.whisper", "to": "ada", "text": "psst"})
        self.assertEqual(anybody.received[-1]["type"], "mease.refused")

    def test_there_must_be_somebody_to_whisper_to(self):
        with connect(user=self.ada) as ada:
            ada.send({"type": "chat.whisper", "to": "nobody", "text": "psst"})
        self.assertEqual(ada.received[-1], {"type": "error", "text": "There is nobody called nobody."})


class PageTests(TestCase):
    def test_the_members_room_wants_a_login(self):
        self.assertRedirects(self.client.get("/members/"), "/admin/login/?next=/members/")
        self.client.force_login(get_user_model().objects.create_user("ada"))
        self.assertContains(self.client.get("/members/"), 'data-room="members"')

    def test_a_room_shows_its_own_messages(self):
        Message.objects.create(room="garden", who="Ada", text="only here")
        self.assertContains(self.client.get("/rooms/garden/"), "only here")
        self.assertNotContains(self.client.get("/"), "only here")
