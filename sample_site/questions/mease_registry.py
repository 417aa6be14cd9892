"""Who looks at the questions. What is published of them is rendered by a stock sender, which the settings name."""

from __future__ import annotations

from django.template.loader import render_to_string

import djmease
from questions.models import listed


@djmease.receiver(type="questions.look")
def look(client: djmease.Client) -> None:
    """Put a page into the group, and write it the list: htmx asks for it whenever it has connected."""
    client.join("questions")
    client.send(render_to_string("questions/list.html", listed()))
