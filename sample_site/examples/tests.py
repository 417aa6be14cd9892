"""The start page and the code beside each page."""

from __future__ import annotations

import re

from django.conf import settings
from django.test import TestCase
from django.utils.html import escape

from examples.catalogue import EXAMPLES


class PageTests(TestCase):
    def test_the_start_page_leads_to_every_example(self):
        page = self.client.get("/").content.decode()
        for example in EXAMPLES:
            self.assertIn(f'href="{example.url}"', page)
            self.assertIn(escape(example.summary), page)

    def test_every_example_shows_the_files_it_is_made_of(self):
        for example in EXAMPLES:
            page = self.client.get(example.url)
            for source in example.sources:
                self.assertContains(page, f"<summary>{'<wbr>'.join(source.steps)}", msg_prefix=example.name)
                for line in source.lines:
                    self.assertContains(page, escape(line))

    def test_every_page_needs_nothing_from_elsewhere(self):
        for address in ["/", "/login/", *(example.url for example in EXAMPLES)]:
            page = self.client.get(address).content.decode()
            tags = re.findall(r"<(?:script|link|img|form|iframe|style)\b[^>]*>", page.split("<pre", 1)[0])
            for url in re.findall(r'(?:src|href|action)="([^"]+)"', "".join(tags)):
                self.assertRegex(url, r"^/(?!/)", address)

    def test_settings_are_shown_from_where_django_mease_begins(self):
        (source,) = (source for source in EXAMPLES[0].sources if source.since)
        text = (settings.BASE_DIR / source.path).read_text().splitlines()
        self.assertEqual(source.lines, text[source.skipped :])
        self.assertEqual(source.lines[0], "# django-mease")
        self.assertNotIn("SECRET_KEY", "".join(source.lines))

    def test_the_scoreboard_has_no_python(self):
        lines = {example.name: example.lines_of_python for example in EXAMPLES}
        self.assertEqual([name for name, count in lines.items() if not count], ["scores"])

    def test_passwords_are_told_while_debug_is_on_alone(self):
        with self.settings(DEBUG=True):
            self.assertContains(self.client.get("/login/"), "the password demo")
        with self.settings(DEBUG=False):
            self.assertNotContains(self.client.get("/login/"), "the password demo")
