"""The live server and the fixtures that users test with: no Redis anywhere."""

from __future__ import annotations

import threading
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
from django.conf import settings as django_settings
from django.contrib.auth.models import User
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.test import LiveServerTestCase, override_settings
from django.urls import path
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Origin

import djmease
from djmease.test import LiveServer, Page, live_server


@pytest.fixture(autouse=True)
def no_redis(settings: Any) -> None:
    settings.MEASE_REDIS_URL = "redis://127.0.0.1:1/0"


def register_echo() -> None:
    @djmease.receiver
    def say(message: Any) -> None:
        djmease.publish("echo", message)

    @djmease.sender(routing="echo")
    def show(message: Any, clients_list: Any) -> None:
        clients_list.send(message)


def test_a_live_server_needs_no_redis_and_names_its_port() -> None:
    register_echo()
    with live_server() as server:
        assert server.port == django_settings.MEASE_PORT
        with connect(server.url) as one, connect(server.url) as two:
            one.send("hi")
            assert (one.recv(5), two.recv(5)) == ("hi", "hi")
            djmease.publish("echo", "from the test")
            assert one.recv(5) == "from the test"


@pytest.mark.parametrize("hosts", [["testserver"], [], ["example.com", "testserver"]])
def test_a_live_server_may_be_reached_at_its_own_address_whatever_the_sites_hosts_are(
    settings: Any, hosts: list[str]
) -> None:
    register_echo()
    settings.ALLOWED_HOSTS = hosts
    with live_server() as server:
        with connect(server.url) as page:
            page.send("hi")
            assert page.recv(5) == "hi"
        with pytest.raises(InvalidStatus, match="403"):
            connect(f"ws://localhost:{server.port}/")
    assert hosts == settings.ALLOWED_HOSTS


@pytest.mark.django_db(transaction=True)
def test_a_live_server_sees_the_tests_database_and_waits_for_the_commit() -> None:
    @djmease.receiver
    def names(client: Any) -> None:
        client.send(list(User.objects.values_list("username", flat=True)))

    register_echo()
    User.objects.create_user("ada")
    with live_server() as server, connect(server.url) as page:
        with transaction.atomic():
            djmease.publish("echo", "after the commit")
            User.objects.create_user("grace")
        assert page.recv(5) == "after the commit"
        page.send("who?")
        assert sorted((page.recv(5), page.recv(5))) == ['["ada","grace"]', "who?"]


def usernames(request: HttpRequest) -> HttpResponse:
    return HttpResponse(",".join(User.objects.values_list("username", flat=True)))


urlpatterns = [path("", usernames)]


@override_settings(ROOT_URLCONF=__name__, STATIC_URL="/static/")
class BesideDjangosLiveServer(LiveServerTestCase):
    def test_pages_of_both_see_the_same_data_and_may_connect(self) -> None:
        register_echo()
        User.objects.create_user("ada")
        with urllib.request.urlopen(self.live_server_url, timeout=5) as response:
            assert response.read() == b"ada"
        with live_server() as server:
            # As a page of the site would: its own host name, the other port, and its Origin.
            url = f"ws://localhost:{server.port}/"
            with connect(url, origin=Origin(self.live_server_url)) as page:
                page.send("hi")
                assert page.recv(5) == "hi"


def test_a_live_server_that_cannot_start_says_why(settings: Any) -> None:
    settings.MEASE_MAX_WORKERS = "many"
    with pytest.raises(TypeError), live_server():
        pass


def test_the_fixtures_capture_and_connect(mease_connect: Callable[..., Page]) -> None:
    register_echo()
    one, two = mease_connect(), mease_connect(user=User(pk=1))
    one.send("hi")
    assert one.received == two.received == ["hi"]


def test_the_fixture_of_messages(mease_messages: list[djmease.Message]) -> None:
    register_echo()
    djmease.publish("echo", "x")
    assert [message.body for message in mease_messages] == ["x"]


def test_the_fixture_of_a_live_server(mease_live_server: LiveServer) -> None:
    with connect(mease_live_server.url):
        pass


def test_a_live_server_that_stops_lets_callbacks_and_closers_end() -> None:
    begun, may_end = threading.Event(), threading.Event()
    done: list[str] = []

    @djmease.receiver
    def take_time(message: Any) -> None:
        begun.set()
        assert may_end.wait(20)
        done.append(message)

    @djmease.closer
    def say_goodbye() -> None:
        done.append("closed")

    with ExitStack() as pages:
        with live_server() as server:
            pages.enter_context(connect(server.url)).send("whole")
            assert begun.wait(20)
            threading.Timer(0.2, may_end.set).start()
        assert done == ["whole", "closed"]
