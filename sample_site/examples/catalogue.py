"""The five examples: what each shows, the way of its messages, and the files that it takes."""

from __future__ import annotations

from dataclasses import dataclass

from django.urls import reverse

from examples.sources import SETTINGS, Source, count_python


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    name: str
    """The first part of its address, and the name of its URL."""
    title: str
    summary: str
    to_try: str
    declared_by: str
    app: str
    """Where its Python is, empty if there is none."""
    wire: tuple[str, ...]
    """What a message passes on its way to the page."""
    sources: tuple[Source, ...]

    @property
    def url(self) -> str:
        return reverse(self.name)

    @property
    def lines_of_python(self) -> int:
        return count_python(self.app) if self.app else 0


EXAMPLES = (
    Example(
        name="chat",
        title="Chat",
        summary="Rooms with names, who is here, and whispers between those who have logged in.",
        to_try="Open this page in a second window, give it another name, and talk to yourself.",
        declared_by="decorators",
        app="chat",
        wire=("a page sends", "receiver say", "database", "publish, group=room", "sender show", "pages of the room"),
        sources=(
            Source(path="chat/mease_registry.py"),
            Source(path="chat/static/chat/chat.js"),
            SETTINGS,
            Source(path="chat/frames.py"),
            Source(path="chat/templates/chat/page.html"),
        ),
    ),
    Example(
        name="board",
        title="Board",
        summary="Announcements that are edited in Django's admin, and change on every page that shows them.",
        to_try="Log in, change an announcement in the admin in a second window, and watch this one.",
        declared_by="settings and the admin",
        app="announcements",
        wire=("the admin saves", "signal", "commit", "publish", "stock sender broadcast", "pages with the board"),
        sources=(
            Source(path="announcements/live.py"),
            SETTINGS,
            Source(path="announcements/static/announcements/board.js"),
            Source(path="announcements/admin.py"),
            Source(path="announcements/templates/announcements/board.html"),
        ),
    ),
    Example(
        name="jobs",
        title="Jobs",
        summary="The progress of long jobs, that a thread or a management command publishes.",
        to_try="Start a job and watch its bar. Logged in, start one that nobody else sees.",
        declared_by="a command and a thread",
        app="jobs",
        wire=("a thread or command works", "publish, group= or user=", "stock sender broadcast", "pages it is for"),
        sources=(
            Source(path="jobs/work.py"),
            Source(path="jobs/management/commands/run_job.py"),
            Source(path="jobs/mease_registry.py"),
            SETTINGS,
            Source(path="jobs/static/jobs/jobs.js"),
            Source(path="jobs/views.py"),
            Source(path="jobs/templates/jobs/page.html"),
        ),
    ),
    Example(
        name="scores",
        title="Scores",
        summary="A scoreboard that has a route, a stock sender, a stock receiver, and not a line of Python.",
        to_try="Publish a score from a terminal, or log in and publish it from here.",
        declared_by="settings alone",
        app="",
        wire=("a command, redis-cli or a page", "stock receiver publish", "stock sender broadcast", "every page"),
        sources=(
            SETTINGS,
            Source(path="static/scores.js"),
            Source(path="templates/scores.html"),
        ),
    ),
    Example(
        name="questions",
        title="Questions",
        summary="A list that htmx keeps live: the server renders a Django template, and nobody writes JavaScript.",
        to_try="Ask something and vote, with this page open in a second window.",
        declared_by="settings and a template",
        app="questions",
        wire=("a form posts", "view", "database", "publish", "stock sender render", "htmx swaps it in"),
        sources=(
            Source(path="questions/templates/questions/list.html"),
            SETTINGS,
            Source(path="questions/templates/questions/page.html"),
            Source(path="questions/mease_registry.py"),
            Source(path="questions/views.py"),
            Source(path="questions/models.py"),
        ),
    ),
)
