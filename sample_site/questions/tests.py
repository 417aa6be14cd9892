"""The questions, tested with djmease.test alone."""

from __future__ import annotations

from django.test import TestCase

from djmease.test import captured_messages, connect
from questions.models import Question

HTMX = {"HX-Request": "true"}


class ListTests(TestCase):
    def test_a_new_question_is_rendered_to_the_pages_that_look(self):
        with connect() as page, connect() as elsewhere:
            page.send({"type": "questions.look", "HEADERS": {}})
            self.client.post("/questions/", {"text": "<b>Why</b>?"}, headers=HTMX)
        before, after = page.received
        self.assertIn('id="questions" hx-swap-oob="true"', before)
        self.assertNotIn("Why", before)
        self.assertIn("&lt;b&gt;Why&lt;/b&gt;?", after)
        self.assertEqual(elsewhere.received, [])

    def test_the_page_and_the_message_are_of_one_template(self):
        Question.objects.create(text="Why?", votes=3)
        with connect() as page:
            page.send({"type": "questions.look"})
        self.assertContains(self.client.get("/questions/"), page.received[0], html=True)

    def test_votes_change_the_order(self):
        why, how = Question.objects.create(text="Why?"), Question.objects.create(text="How?")
        with captured_messages() as messages:
            response = self.client.post("/questions/vote/", {"question": why.id}, headers=HTMX)
        self.assertEqual(response.status_code, 204)
        ids = [question["id"] for question in messages[0].body["questions"]]
        self.assertEqual(ids, [why.id, how.id])

    def test_it_works_without_javascript(self):
        self.assertRedirects(self.client.post("/questions/", {"text": "Why?"}), "/questions/")
        question = Question.objects.get()
        self.assertRedirects(self.client.post("/questions/vote/", {"question": question.id}), "/questions/")
        self.assertContains(self.client.get("/questions/"), "Why?")

    def test_what_is_no_question_is_said_in_its_form(self):
        for headers in ({}, HTMX):
            with captured_messages() as messages:
                response = self.client.post("/questions/", {"text": ""}, headers=headers)
            self.assertContains(response, "This field is required.")
            self.assertEqual(messages, [])

    def test_htmx_is_told_where_to_connect(self):
        for setting, url in (
            (None, "ws://testserver:8001/"),
            ("/ws/", "/ws/"),
            ("wss://example.com/", "wss://example.com/"),
        ):
            with self.settings(MEASE_URL=setting, MEASE_PORT=8001):
                self.assertContains(self.client.get("/questions/"), f'ws-connect="{url}"')

    def test_votes_for_nothing_are_not_found(self):
        for question in ("7", "x", "", "9" * 30):
            self.assertEqual(self.client.post("/questions/vote/", {"question": question}).status_code, 404)
