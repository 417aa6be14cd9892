"""The chat, tested with djmease.test alone: no Redis, no server, no event loop."""

from __future__ import annotations

from django.contrib.auth import get_user_model
from django.test import TestCase

import djmease
from chat.models import HISTORY_LENGTH, Message
from djmease.test import captured_messages, connect

GARDEN = "/?room=garden&name={}"


def texts(page):
    return [message["text"] for message in page.received if message["type"] in ("chat.message", "chat.whisper")]


def changes(page):
    return [(each["event"], each["info"]["name"]) for each in page.received if each["type"] == "mease.presence"]


class RoomTests(TestCase):
    def test_what_is_said_in_a_room_is_heard_and_kept_there(self):
        with (
            connect(path=GARDEN.format("Ada")) as ada,
            connect(path=GARDEN.format("Grace")) as grace,
            connect(path="/?room=lobby&name=Alan") as lobby,
            connect() as elsewhere,
        ):
            ada.send({"type": "chat.say", "text": "  Good\n morning!"})
            self.assertEqual([texts(page) for page in (ada, grace, lobby)], [["Good morning!"], ["Good morning!"], []])
            self.assertEqual(elsewhere.received, [])
        message = Message.objects.get()
        self.assertEqual((message.room, message.who), ("garden", "Ada"))

    def test_a_page_that_connects_gets_what_it_missed(self):
        first, second, third = [Message.objects.create(room="garden", who="Ada", text=text) for text in "abc"]
        with connect(path=GARDEN.format("Grace")) as page:
            page.send({"type": "chat.look", "after": first.id})
        self.assertEqual(texts(page), ["b", "c"])

    def test_it_gets_no_more_than_the_last_ones(self):
        for number in range(HISTORY_LENGTH + 5):
            Message.objects.create(room="garden", who="Ada", text=str(number))
        with connect(path=GARDEN.format("Grace")) as page:
            page.send({"type": "chat.look", "after": 0})
        self.assertEqual(texts(page), [str(number) for number in range(5, HISTORY_LENGTH + 5)])

    def test_what_is_no_message_is_answered_to_its_sender_and_not_stored(self):
        with connect(path=GARDEN.format("Ada")) as page, captured_messages() as published:
            for text in (1, "", "x" * 501):
                page.send({"type": "chat.say", "text": text})
            for after in ("1", -1, 2**63, None):
                page.send({"type": "chat.look", "after": after})
        self.assertEqual([message["type"] for message in page.received[-7:]], 7 * ["chat.error"])
        self.assertEqual([message.routing for message in published if message.routing == "chat.message"], [])
        self.assertFalse(Message.objects.exists())

    def test_who_is_in_no_room_says_nothing_there(self):
        with connect() as page:
            page.send({"type": "chat.say", "text": "x"})
            page.send({"type": "chat.look", "after": 0})
        self.assertEqual(page.received, 2 * [{"type": "chat.error", "text": "You are in no room."}])

    def test_rooms_that_one_may_not_enter_are_closed(self):
        ada = get_user_model().objects.create_user("ada")
        for path in ("/?room=members&name=x", "/?room=cellar&name=x", "/?room=garden&name=" + 41 * "x"):
            with connect(path=path) as page:
                self.assertEqual(page.close_code, 4403, path)
        with connect(path="/?room=members", user=ada) as page:
            self.assertIsNone(page.close_code)


class PresenceTests(TestCase):
    def test_those_in_a_room_are_told_who_comes_and_goes(self):
        with connect(path=GARDEN.format("Ada")) as ada:
            with connect(path=GARDEN.format("Grace")), connect(path="/?room=lobby&name=Alan"):
                pass
            self.assertEqual(changes(ada), [("join", "Ada"), ("join", "Grace"), ("leave", "Grace")])
            self.assertEqual([person.info for person in djmease.presence("room.garden")], [{"name": "Ada"}])

    def test_a_page_that_looks_gets_everybody(self):
        with connect(path=GARDEN.format("Ada")), connect(path=GARDEN.format("Grace")) as grace:
            grace.send({"type": "chat.look", "after": 0})
            persons = grace.received[-1]["persons"]
            self.assertEqual([person["info"]["name"] for person in persons], ["Ada", "Grace"])
            self.assertEqual(persons[1]["key"], grace.client.id)

    def test_a_user_with_two_tabs_is_one_person_whatever_the_address_says(self):
        grace = get_user_model().objects.create_user("grace")
        with connect(path=GARDEN.format("Ada")) as ada:
            with connect(path=GARDEN.format("Alan"), user=grace), connect(path=GARDEN.format("Eve"), user=grace) as tab:
                tab.send({"type": "chat.look", "after": 0})
            names = [(person["user"], person["info"]["name"]) for person in tab.received[-1]["persons"]]
            self.assertEqual(names, [(None, "Ada"), ("grace", "grace")])
            self.assertEqual(changes(ada), [("join", "Ada"), ("join", "grace"), ("leave", "grace")])

    def test_a_guest_is_not_taken_for_a_user(self):
        with connect(path=GARDEN.format("@grace")) as guest:
            self.assertEqual(changes(guest), [("join", "grace")])
            self.assertEqual([person.user for person in djmease.presence("room.garden")], [None])

    def test_two_guests_of_one_name_are_two(self):
        with connect(path=GARDEN.format("Ada")), connect(path=GARDEN.format("Ada")):
            self.assertEqual(djmease.presence_count("room.garden"), 2)


class WhisperTests(TestCase):
    def setUp(self):
        create = get_user_model().objects.create_user
        self.ada, self.grace, self.alan = create("ada"), create("grace"), create("alan")

    def test_a_whisper_reaches_all_tabs_of_one_user_in_whatever_room(self):
        with (
            connect(user=self.ada, path="/?room=lobby") as ada,
            connect(user=self.grace, path="/?room=lobby") as grace,
            connect(user=self.grace, path="/?room=garden") as second_tab,
            connect(user=self.alan, path="/?room=lobby") as alan,
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
        self.assertEqual(ada.received[-1], {"type": "chat.error", "text": "There is nobody called nobody."})


class PageTests(TestCase):
    def test_the_members_room_wants_a_login(self):
        self.assertRedirects(self.client.get("/chat/members/"), "/login/?next=/chat/members/")
        self.client.force_login(get_user_model().objects.create_user("ada"))
        self.assertContains(self.client.get("/chat/members/"), 'data-room="members"')

    def test_a_room_shows_its_own_messages(self):
        Message.objects.create(room="garden", who="Ada", text="only <here>")
        self.assertContains(self.client.get("/chat/garden/"), "only &lt;here&gt;")
        self.assertNotContains(self.client.get("/chat/"), "only &lt;here&gt;")

    def test_there_are_no_other_rooms(self):
        self.assertEqual(self.client.get("/chat/cellar/").status_code, 404)
