"""The chat, tested with djmease.test alone: no Redis, no server, no event loop."""

from __future__ import annotations

from django.contrib.auth import get_user_model
from django.test import TestCase
from django.utils import timezone

from chat import presence
from chat.models import HISTORY_LENGTH, Message, Visit
from djmease.test import captured_messages, connect

GARDEN = "/?room=garden&name={}"


def texts(page):
    return [message["text"] for message in page.received if message["type"] in ("chat.message", "chat.whisper")]


def names(page):
    return [message["names"] for message in page.received if message["type"] == "chat.here"]


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
    def test_those_in_a_room_see_who_comes_and_goes(self):
        with connect(path=GARDEN.format("Ada")) as ada:
            with connect(path=GARDEN.format("Grace")):
                pass
            ada.send({"type": "chat.look", "after": 0})
        self.assertEqual(names(ada), [["Ada", "Grace"], ["Ada"], ["Ada"]])
        self.assertFalse(Visit.objects.exists())

    def test_two_windows_are_one_person(self):
        with connect(path=GARDEN.format("Ada")), connect(path=GARDEN.format("Ada")):
            self.assertEqual(presence.here("garden"), ["Ada"])

    def test_the_name_of_a_user_is_taken_by_no_query(self):
        grace = get_user_model().objects.create_user("grace")
        with connect(path=GARDEN.format("Ada"), user=grace):
            self.assertEqual(presence.here("garden"), ["grace"])

    def test_what_a_dead_server_left_is_forgotten(self):
        Visit.objects.create(client_id="dead", room="garden", who="Ada", seen=timezone.now() - presence.LIFETIME)
        self.assertEqual(presence.here("garden"), [])
        with connect(path=GARDEN.format("Grace")):
            self.assertEqual(list(Visit.objects.values_list("who", flat=True)), ["Grace"])

    def test_who_looks_now_and_then_stays(self):
        with connect(path=GARDEN.format("Ada")) as ada:
            Visit.objects.update(seen=timezone.now() - presence.LIFETIME)
            self.assertEqual(presence.here("garden"), [])
            ada.send({"type": "chat.look", "after": 0})
            self.assertEqual(presence.here("garden"), ["Ada"])


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
