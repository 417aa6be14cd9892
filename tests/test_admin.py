"""The status page as the Django test client sees it, on reports in a real Redis."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.core.management import call_command
from django.test import Client, override_settings
from redis import Redis
from websockets.exceptions import ConnectionClosed

import djmease
from djmease import connections
from djmease.embedded import EmbeddedValkey
from djmease.reports import CallbackReport, RoutingReport
from djmease.status_page import PARTS
from djmease.test import captured_messages
from tests import reported
from tests.made_reports import flat_history, numbered_message, numbered_sender
from tests.support import DEADLINE, ROOT, LiveServer, eventually

PAGE = "/admin/djmease/status/"
SCRIPT = "<script>alert(1)</script>"
StartServer = Callable[[], LiveServer]

pytestmark = pytest.mark.django_db


def staff(*permissions: str) -> Client:
    """Return the browser of a member of the staff who has these of our permissions."""
    user = User.objects.create_user(f"staff {User.objects.count()}", password="x", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions, content_type__app_label="djmease"))
    client = Client()
    client.force_login(user)
    return client


@pytest.fixture
def browser_of_admin() -> Client:
    client = Client()
    client.force_login(User.objects.create_superuser("ada", password="x"))
    return client


def text_of(response: Any) -> str:
    return str(response.content.decode())


def parts_of(client: Client, versions: str = "", **query: Any) -> dict[str, Any]:
    response = client.get(PAGE, query, headers={"X-Mease-Parts": versions})
    assert response.status_code == 200
    parts: dict[str, Any] = response.json()["parts"]
    return parts


# Who may


def test_nobody_is_sent_to_the_login(redis: str) -> None:
    response = Client().get(PAGE)
    assert (response.status_code, response["Location"]) == (302, f"/admin/login/?next={PAGE}")


@pytest.mark.parametrize("path", ["", "disconnect/?client=x", "publish/"])
@pytest.mark.parametrize("method", ["get", "post"])
def test_staff_without_the_permission_is_refused(redis: str, path: str, method: str) -> None:
    assert getattr(staff(), method)(PAGE + path).status_code == 403


@pytest.mark.parametrize("path", ["disconnect/?client=x", "publish/"])
def test_who_may_only_look_can_do_nothing(redis: str, path: str) -> None:
    looking = staff("view_status")
    assert looking.get(PAGE).status_code == 200
    assert (looking.get(PAGE + path).status_code, looking.post(PAGE + path).status_code) == (403, 403)
    assert 'method="post" action="/admin/djmease' not in text_of(looking.get(PAGE))
    assert 'id="publish"' not in text_of(looking.get(PAGE))


def test_who_may_act_but_not_look_can_do_nothing(redis: str) -> None:
    acting = staff("disconnect_client", "publish_message")
    for path in ("", "disconnect/?client=x", "publish/"):
        assert acting.get(PAGE + path).status_code == 403


def test_the_index_links_to_the_page_for_those_who_may_see_it(redis: str) -> None:
    page = text_of(staff("view_status").get("/admin/"))
    assert "django-mease" in page and f'href="{PAGE}"' in page and "WebSocket status" in page
    assert "django-mease" not in text_of(staff().get("/admin/"))


def test_the_page_is_below_another_admin_site_too(redis: str, browser_of_admin: Client) -> None:
    page = text_of(browser_of_admin.get("/second/djmease/status/"))
    assert 'data-url="/second/djmease/status/"' in page and 'action="/second/djmease/status/publish/#publish"' in page
    assert 'href="/admin/' not in page


def test_nothing_but_the_page_is_there(redis: str, browser_of_admin: Client) -> None:
    for path in ("add/", "1/change/", "1/delete/", "1/history/"):
        assert browser_of_admin.get(PAGE + path).status_code == 404


# Is it well?


def test_all_is_well(redis: str, browser_of_admin: Client) -> None:
    reported.put(reported.server(clients=1234, history=flat_history(1234), callbacks=(numbered_sender(),)))
    page = text_of(browser_of_admin.get(PAGE))
    assert "All is well" in page and 'data-state="good"' in page
    assert "1,234" in page and "web1" in page and "4711" in page and "ws://127.0.0.1:8001/" in page
    assert page.count('<svg class="mease-plot"') == 5


def test_without_a_server_the_command_is_named(redis: str, browser_of_admin: Client) -> None:
    page = text_of(browser_of_admin.get(PAGE))
    assert 'data-state="bad"' in page
    assert "<code>python manage.py run_websocket_server</code>" in page


def test_a_redis_that_does_not_answer_is_one_of_the_problems(settings: Any, browser_of_admin: Client) -> None:
    settings.MEASE_REDIS_URL = "redis://:secret@127.0.0.1:1/"
    page = text_of(browser_of_admin.get(PAGE, {"clients": "1"}))
    assert 'data-state="bad"' in page and "Redis does not answer" in page and "secret" not in page
    assert "secret" not in str(parts_of(browser_of_admin, clients="1"))


def test_a_redis_that_is_not_set_is_one_of_the_problems(settings: Any, browser_of_admin: Client) -> None:
    settings.MEASE_REDIS_URL = None
    page = text_of(browser_of_admin.get(PAGE))
    assert 'data-state="bad"' in page and "MEASE_REDIS_URL is not set" in page


def test_what_wants_looking_at_is_yellow_and_each_problem_has_its_cure(redis: str, browser_of_admin: Client) -> None:
    reported.put(reported.server("one", recent_errors=3))
    reported.put(reported.server("two", is_draining=True))
    page = text_of(browser_of_admin.get(PAGE))
    assert 'data-state="warn"' in page and "2 things want looking at" in page
    assert "Callbacks raised 3 times in the last minute" in page and "the log has their tracebacks" in page
    assert "stopping" in page


def test_a_deaf_server_is_red(redis: str, browser_of_admin: Client) -> None:
    reported.put(reported.server(trouble="it has heard nothing for 12 seconds"))
    page = text_of(browser_of_admin.get(PAGE))
    assert 'data-state="bad"' in page and "it has heard nothing for 12 seconds" in page and "may not hear" in page


# What it shows


def test_routes_that_raised_come_first_then_the_busiest_then_the_quiet(redis: str, browser_of_admin: Client) -> None:
    senders = (
        numbered_sender(1),
        numbered_sender(2, heard=5, calls=5),
        numbered_sender(3, heard=9000, calls=9000, is_async=True),
        numbered_sender(4, heard=1, calls=1, errors=1, last_error="ValueError: no", last_error_at=time.time() - 12),
    )
    reported.put(reported.server(callbacks=senders))
    parts = parts_of(browser_of_admin)
    busy, quiet = parts["routes"]["html"], parts["quiet"]["html"]
    assert [busy.index(f"shop.item.{number}<") for number in (4, 3, 2)] == sorted(
        busy.index(f"shop.item.{number}<") for number in (2, 3, 4)
    )
    assert "shop.item.1<" in quiet and "shop.item.1<" not in busy
    assert "ValueError: no" in busy and "12 s ago" in busy and "9,000" in busy and "async def" in busy
    assert "shop.mease_registry:11" in quiet


def test_the_senders_of_a_route_stay_together_in_their_order(redis: str, browser_of_admin: Client) -> None:
    first, second = (numbered_sender(number, routing="news", heard=3, calls=3) for number in (1, 2))
    reported.put(reported.server(callbacks=(first, numbered_sender(9, heard=3, calls=3), second)))
    html = parts_of(browser_of_admin)["routes"]["html"]
    assert html.count("mease-repeated") == 1
    assert html.index("show_1") < html.index("show_2")


def test_receivers_openers_and_closers_are_listed(redis: str, browser_of_admin: Client) -> None:
    kinds = ("receiver", "opener", "closer")
    callbacks = tuple(
        CallbackReport(kind=kind, path=f"chat.live.{kind}_of_chat", source=f"MEASE_{kind.upper()}S[0]", is_async=False)
        for kind in kinds
    )
    reported.put(reported.server(callbacks=callbacks))
    html = parts_of(browser_of_admin)["callbacks"]["html"]
    for kind in kinds:
        assert f"chat.live.{kind}_of_chat" in html and f"MEASE_{kind.upper()}S[0]" in html


def test_a_routing_without_a_sender_is_shown_with_what_was_perhaps_meant(
    redis: str, browser_of_admin: Client, settings: Any
) -> None:
    settings.MEASE_ROUTES = {"chat.message": "djmease.senders.broadcast"}
    unrouted = RoutingReport(routing="chat.mesage", count=12, last_at=time.time() - 300)
    for server in ("one", "two"):
        reported.put(reported.server(server, unrouted=(unrouted,)))
    html = parts_of(browser_of_admin)["routes"]["html"]
    assert html.count("<code>chat.mesage</code>") == 1
    assert "12 times, last 5 min ago" in html and "<code>chat.message</code>" in html


def test_the_last_messages_are_shown(redis: str, browser_of_admin: Client) -> None:
    messages = (numbered_message(1), numbered_message(2, errors=1, senders=("a.b", "c.d"), body='{"a": 1}'))
    reported.put(reported.server(messages=messages))
    html = parts_of(browser_of_admin)["messages"]["html"]
    assert "shop.item.1" in html and "a.b" in html and "c.d" in html and "1 raised" in html and "120\xa0bytes" in html
    assert "{&quot;a&quot;: 1}" in html


def test_whatever_comes_from_outside_is_escaped(redis: str, browser_of_admin: Client, settings: Any) -> None:
    text = f"{SCRIPT}\"'"
    receiver = CallbackReport(
        kind="receiver", path=text, source=text, is_async=False, calls=1, errors=1, last_error=text, last_error_at=1.0
    )
    bad = reported.server(
        text,
        host=text,
        addresses=(text,),
        settings=text,
        version=text,
        trouble=text,
        presence_trouble=text,
        refused={text: 1},
        lost={text: 1},
        closed={text: 1},
        callbacks=(
            numbered_sender(1, routing=text, path=text, source=text),
            numbered_sender(2, routing=text + "2", path=text, source=text, calls=1, errors=1, last_error=text),
            receiver,
        ),
        unrouted=(RoutingReport(routing=text, count=1, last_at=1.0),),
        messages=(numbered_message(1, id=text, routing=text, senders=(text,), body=text),),
    )
    reported.put(bad)
    reported.put(reported.server("other", settings="another"))
    answer = {"server": text, "total": 1, "clients": [client_fields(text)], "groups": [group_fields(text)]}
    asked = {"clients": "1", "search": text, "routing": text, "groups": "1", "group_search": text, "group": text}
    with answering([answer], times=2):
        page = text_of(browser_of_admin.get(PAGE, asked))
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") > 30
    assert "<script>alert" not in page
    with answering([{"server": text, "total": 1, "clients": [client_fields(text)]}] * 2):
        page = text_of(browser_of_admin.get(f"{PAGE}disconnect/", {"client": text}))
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page and "<script>alert" not in page


def client_fields(text: str = "x", **changes: Any) -> dict[str, Any]:
    fields = {
        "server": text,
        "id": text,
        "user": text,
        "user_key": text,
        "address": text,
        "groups": [text],
        "connected_at": time.time() - 90,
        "received": 3,
        "unsent": 2048,
    }
    return {**fields, **changes}


def group_fields(name: str = "lobby", connections: int = 1) -> dict[str, Any]:
    return {"name": name, "connections": connections, "persons": None}


class answering:  # noqa: N801 (it is used as a function)
    """Answers the next questions to the servers with these answers, as servers do."""

    def __init__(self, answers: list[dict[str, Any]], times: int = 1) -> None:
        self.answers = answers
        self.times = times
        self.questions: list[dict[str, Any]] = []
        self.redis = Redis.from_url(connections.connection_url())

    def __enter__(self) -> answering:
        self.orders = self.redis.pubsub()
        self.orders.subscribe(connections.names().control_channel)
        eventually(lambda: self.orders.get_message(timeout=1), "the subscription")
        self.thread = threading.Thread(target=self._answer)
        self.thread.start()
        return self

    def _answer(self) -> None:
        for _ in range(self.times):
            order = eventually(lambda: self.orders.get_message(timeout=0.1), "a question")
            question = json.loads(order["data"])
            self.questions.append(question)
            for answer in self.answers:
                self.redis.rpush(connections.names().reply_key(question["reply"]), json.dumps(answer))

    def __exit__(self, *_: Any) -> None:
        self.thread.join(DEADLINE)
        self.orders.close()
        self.redis.close()


# Updates


def test_only_the_parts_that_changed_are_sent_again(redis: str, browser_of_admin: Client) -> None:
    reported.put(
        reported.server(
            callbacks=(numbered_sender(1), numbered_sender(2, heard=1, calls=1)), messages=(numbered_message(),)
        )
    )
    first = parts_of(browser_of_admin)
    assert set(first) == set(PARTS)
    versions = ",".join(f"{name}:{part['version']}" for name, part in first.items())
    page = text_of(browser_of_admin.get(PAGE))
    assert f"quiet:{first['quiet']['version']}" in page
    second = parts_of(browser_of_admin, versions)
    assert not {"quiet", "messages", "groups", "clients", "published", "callbacks"} & set(second)
    reported.put(
        reported.server(
            clients=7, callbacks=(numbered_sender(1, heard=1, calls=1), numbered_sender(2, heard=1, calls=1))
        )
    )
    third = parts_of(browser_of_admin, versions)
    assert {"servers", "routes", "quiet", "messages"} <= set(third)
    assert third["quiet"]["html"].strip() == ""


def test_nothing_is_cached(redis: str, browser_of_admin: Client) -> None:
    response = browser_of_admin.get(PAGE)
    assert "no-store" in response["Cache-Control"] and "X-Mease-Parts" in response["Vary"]


def test_servers_are_asked_for_clients_only_when_somebody_looks(redis: str, browser_of_admin: Client) -> None:
    reported.put(reported.server())
    listener = Redis.from_url(connections.connection_url()).pubsub()
    listener.subscribe(connections.names().control_channel)
    eventually(lambda: listener.get_message(timeout=1), "the subscription")
    browser_of_admin.get(PAGE)
    parts_of(browser_of_admin)
    parts_of(browser_of_admin, clients="1", search="ada")
    order = eventually(lambda: listener.get_message(timeout=1), "the question")
    assert b'"search":"ada"' in order["data"]
    assert listener.get_message(timeout=0.05) is None
    listener.close()


def test_three_hundred_clients_are_shown_and_how_many_there_are(redis: str, browser_of_admin: Client) -> None:
    reported.put(reported.server())
    clients = [client_fields("one", id=f"client-{number}") for number in range(300)]
    with answering([{"server": "one", "total": 5000, "clients": clients}]):
        html = parts_of(browser_of_admin, clients="1")["clients"]["html"]
    assert html.count('data-key="client-') == 300
    assert "The newest 300 of 5,000" in html


# Groups


def test_servers_are_asked_for_groups_only_when_somebody_looks(redis: str, browser_of_admin: Client) -> None:
    reported.put(reported.server())
    listener = Redis.from_url(connections.connection_url()).pubsub()
    listener.subscribe(connections.names().control_channel)
    eventually(lambda: listener.get_message(timeout=1), "the subscription")
    browser_of_admin.get(PAGE)
    parts_of(browser_of_admin, group_search="lobby")
    html = parts_of(browser_of_admin, groups="1", group_search=" lobby ")["groups"]["html"]
    order = eventually(lambda: listener.get_message(timeout=1), "the question")
    assert json.loads(order["data"]).items() >= {"order": "list_groups", "search": "lobby"}.items()
    assert listener.get_message(timeout=0.05) is None
    assert "No answer in time from: 4711 · web1" in html and "No group matches." in html
    listener.close()


def test_the_biggest_group_comes_first_and_leads_to_those_in_it(redis: str, browser_of_admin: Client) -> None:
    reported.put(reported.server("one"))
    answer = {"server": "one", "total": 5000, "groups": [group_fields("a/b", 2), group_fields("lobby", 1200)]}
    with answering([answer]):
        html = parts_of(browser_of_admin, groups="1", group_search="b")["groups"]["html"]
    assert html.index("<bdi>lobby</bdi>") < html.index("<bdi>a/b</bdi>")
    assert "1,200" in html and "The biggest 2 of 5,000 at least" in html and "Persons" not in html
    link = f"{PAGE}?groups=1&amp;group_search=b&amp;clients=1&amp;group=a%2Fb&amp;search=#clients"
    assert f'href="{link}"' in html
    answer = {**answer, "clients": [client_fields("one", groups=["a/b"])], "total": 1}
    with answering([answer], times=2) as servers:
        page = text_of(browser_of_admin.get(link.partition("#")[0].replace("&amp;", "&")))
    assert servers.questions[1].items() >= {"order": "list_clients", "group": "a/b", "search": ""}.items()
    assert "Only who is in" in page and 'name="group" value="a/b">' in page
    assert f'href="{PAGE}?groups=1&amp;group_search=b&amp;clients=1&amp;group=&amp;search=#clients"' in page
    assert 'class="mease-chosen"' in page and 'href="#groups"' in page


def test_persons_are_shown_where_groups_have_presence(redis: str, browser_of_admin: Client, settings: Any) -> None:
    settings.MEASE_PRESENCE = ["board.*"]
    reported.put(reported.server("one"))
    Redis.from_url(connections.connection_url()).hset(f"{connections.names().presence_prefix}persons.board.1", "u1", "")
    with answering([{"server": "one", "total": 2, "groups": [group_fields("board.1", 31), group_fields("lobby", 5)]}]):
        html = parts_of(browser_of_admin, groups="1")["groups"]["html"]
    assert "Persons" in html and "2 in all, the biggest first." in html
    board, lobby = html.split("<bdi>board.1</bdi>")[1].split("<bdi>lobby</bdi>")
    assert ">31<" in board and ">1<" in board and ">5<" in lobby and "></td>" in lobby


def test_without_groups_it_says_so(redis: str, browser_of_admin: Client) -> None:
    reported.put(reported.server("one"))
    with answering([{"server": "one", "total": 0, "groups": [], "clients": []}], times=2):
        parts = parts_of(browser_of_admin, groups="1", clients="1", group="lobby")
    assert "Nobody is in a group." in parts["groups"]["html"]
    assert "Nobody is in this group." in parts["clients"]["html"]


def test_a_redis_that_forbids_asking_for_groups_is_said(
    own_valkey: EmbeddedValkey, settings: Any, browser_of_admin: Client
) -> None:
    reported.put(reported.server("one"))
    redis = Redis.from_url(connections.connection_url())
    redis.acl_setuser("some", enabled=True, nopass=True, commands=["+@all", "-blpop"], keys=["*"], channels=["*"])
    settings.MEASE_REDIS_URL = f"unix://some:x@{own_valkey.socket}"
    html = parts_of(browser_of_admin, groups="1")["groups"]["html"]
    assert "The servers could not be asked:" in html and "blpop" in html


def test_a_server_that_cannot_tell_of_presence_is_yellow(redis: str, browser_of_admin: Client) -> None:
    reported.put(reported.server(presence_trouble="it may not"))
    html = parts_of(browser_of_admin)["top"]["html"]
    assert 'data-state="warn"' in html and "could not tell Redis who is in its groups: it may not." in html


def test_a_server_that_does_not_tell_its_clients_is_named(redis: str, browser_of_admin: Client) -> None:
    reported.put(reported.server())
    html = parts_of(browser_of_admin, clients="1")["clients"]["html"]
    assert "No answer in time from: 4711 · web1" in html


def test_a_thousand_routes_cost_a_bounded_number_of_commands_and_queries(
    redis: str, browser_of_admin: Client, django_assert_num_queries: Any
) -> None:
    def cost(servers: int, routes: int, clients: int) -> int:
        for number in range(servers):
            callbacks = tuple(numbered_sender(each, heard=1, calls=1) for each in range(routes))
            reported.put(reported.server(f"server-{number}", callbacks=callbacks))
        told = [client_fields("server-0", id=f"client-{number}") for number in range(clients)]
        with answering([{"server": f"server-{number}", "total": 1, "clients": told} for number in range(servers)]):
            before = commands()
            with django_assert_num_queries(2):  # The session and its user.
                text_of(browser_of_admin.get(PAGE, {"clients": "1"}))
            return commands() - before

    connection = Redis.from_url(connections.connection_url())

    def commands() -> int:
        stats = connection.info("commandstats")
        return sum(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("zrange", "hmget", "publish"))

    browser_of_admin.get(PAGE)
    assert cost(1, 1, 1) == 3
    assert cost(3, 1000, 100) == 5  # One hmget for each server.
    connection.close()


# Disconnecting


def test_disconnecting_is_asked_about_and_logged(redis: str) -> None:
    client = staff("view_status", "disconnect_client")
    reported.put(reported.server("one"))
    mine, other = client_fields("one", id="abc", user="grace"), client_fields("one", id="abcd")
    with answering([{"server": "one", "total": 2, "clients": [mine, other]}]):
        page = text_of(client.get(f"{PAGE}disconnect/?client=abc"))
    assert "Are you sure you want to disconnect the client abc?" in page and "grace" in page and "abcd" not in page
    assert LogEntry.objects.count() == 0
    with answering([]) as servers:
        response = client.post(f"{PAGE}disconnect/?client=abc", follow=True)
    assert servers.questions == [{"order": "disconnect", "clients": ["abc"]}]
    (entry,) = LogEntry.objects.all()
    assert entry.object_repr == "the client abc" and entry.is_deletion() and str(entry.user) == "staff 0"
    assert "The servers were told to disconnect: the client abc." in text_of(response)
    assert "the client abc" in text_of(client.get("/admin/"))


def test_without_a_csrf_token_nothing_is_done(redis: str, browser_of_admin: Client) -> None:
    strict = Client(enforce_csrf_checks=True)
    strict.force_login(User.objects.get(username="ada"))
    assert strict.post(f"{PAGE}disconnect/?client=abc").status_code == 403
    assert strict.post(f"{PAGE}publish/", {"routing": "a", "message": "x", "kind": "text"}).status_code == 403
    assert LogEntry.objects.count() == 0


def test_a_client_is_really_disconnected(start_server: StartServer, browser_of_admin: Client, settings: Any) -> None:
    settings.MEASE_REPORT_INTERVAL = 0.1
    server = start_server()
    kept, closed = server.connect(), server.connect()

    def newest_first() -> list[str]:
        return [each.id for each in djmease.reporting.list_clients(djmease.get_status()).clients]

    found = eventually(lambda: len(ids := newest_first()) == 2 and ids, "the clients")
    browser_of_admin.post(f"{PAGE}disconnect/?client={found[0]}")
    with pytest.raises(ConnectionClosed) as ended:
        closed.recv(timeout=DEADLINE)
    assert ended.value.rcvd is not None and ended.value.rcvd.code == 4401
    eventually(lambda: newest_first() == found[1:], "that it is gone")
    assert kept.ping().wait(DEADLINE)


@pytest.mark.parametrize("query", ["", "?client=a&user=b", "?client="])
def test_whom_to_disconnect_has_to_be_said(redis: str, browser_of_admin: Client, query: str) -> None:
    response = browser_of_admin.post(f"{PAGE}disconnect/{query}")
    assert (response.status_code, response["Location"]) == (302, f"{PAGE}?clients=1#clients")
    assert LogEntry.objects.count() == 0


def test_a_user_is_named_and_a_key_that_is_none_is_shown_as_it_is(redis: str, browser_of_admin: Client) -> None:
    user = User.objects.create_user("grace")
    assert "all connections of grace" in text_of(browser_of_admin.get(f"{PAGE}disconnect/?user={user.pk}"))
    assert "all connections of no key" in text_of(browser_of_admin.get(f"{PAGE}disconnect/?user=no key"))


def test_an_order_that_redis_does_not_take_is_told_and_not_logged(settings: Any, browser_of_admin: Client) -> None:
    settings.MEASE_REDIS_URL = "redis://127.0.0.1:1/"
    page = text_of(browser_of_admin.post(f"{PAGE}disconnect/?client=abc"))
    assert "could not be published" in page and "errornote" in page
    assert LogEntry.objects.count() == 0


# Publishing


@pytest.fixture
def routes(settings: Any) -> None:
    settings.MEASE_ROUTES = {"news": "djmease.senders.broadcast"}


def publish(client: Client, **changes: str) -> Any:
    return client.post(f"{PAGE}publish/", {"routing": "news", "message": "hello", "kind": "text", **changes})


@pytest.mark.usefixtures("routes")
def test_a_test_message_is_published_and_logged(redis: str) -> None:
    user = User.objects.create_user("grace")
    with captured_messages() as messages:
        client = staff("view_status", "publish_message")
        response = publish(client)
        publish(client, message='{"a": [1]}', kind="json", group="room.7", user="grace")
    first, second = messages
    assert (first.body, first.groups, first.users) == ("hello", None, None)
    assert (second.body, second.groups, second.users) == ({"a": [1]}, ("room.7",), (str(user.pk),))
    assert response["Location"] == f"{PAGE}?published={first.id}#publish"
    assert second.id in text_of(client.get(f"{PAGE}?published={second.id}"))
    assert "mease-result" not in text_of(client.get(f"{PAGE}?published={first.id}"))
    assert [str(entry.object_repr) for entry in LogEntry.objects.order_by("pk")] == [
        f"Message {first.id} on news",
        f"Message {second.id} on news",
    ]


@pytest.mark.usefixtures("routes")
@pytest.mark.parametrize(
    ("fields", "field", "error"),
    [
        ({"routing": "nows"}, "routing", "Did you mean &#x27;news&#x27;?"),
        ({"routing": "mease.x"}, "routing", "reserved"),
        ({"routing": "a b"}, "routing", "is not a valid name"),
        ({"routing": ""}, "routing", "required"),
        ({"message": "{", "kind": "json"}, "message", "This is not JSON"),
        ({"message": "NaN", "kind": "json"}, "message", "JSON"),
        ({"message": "x" * 2000}, "message", "MEASE_MAX_PUBLISH_SIZE"),
        ({"group": "a b"}, "group", "is not a valid name"),
        ({"user": "nobody"}, "user", "There is no user of this name"),
    ],
)
def test_what_is_wrong_with_a_test_message_is_told_at_its_field(
    redis: str, browser_of_admin: Client, settings: Any, fields: dict[str, str], field: str, error: str
) -> None:
    settings.MEASE_MAX_PUBLISH_SIZE = 1000
    page = text_of(publish(browser_of_admin, **fields))
    at_field = page.split(f"mease-field-{field}")[1].split("mease-field-")[0]
    assert error in at_field
    assert 'id="mease-publish" open' in page and LogEntry.objects.count() == 0


@pytest.mark.usefixtures("routes")
def test_a_redis_that_does_not_take_the_test_message_is_told(settings: Any, browser_of_admin: Client) -> None:
    settings.MEASE_REDIS_URL = "redis://127.0.0.1:1/"
    page = text_of(publish(browser_of_admin))
    assert "could not be published to Redis" in page.split("mease-form-error")[1]
    assert LogEntry.objects.count() == 0


@pytest.mark.usefixtures("routes")
def test_a_test_message_that_nobody_hears_is_said_to_stop(redis: str, browser_of_admin: Client) -> None:
    page = text_of(browser_of_admin.get(publish(browser_of_admin)["Location"]))
    result = page.split("mease-result mease-is-bad")[1].split("</strong>")[0]
    assert "It stops behind Redis: no WebSocket server runs" in result


def test_what_each_sender_did_with_a_test_message_is_shown(
    start_server: StartServer, browser_of_admin: Client, settings: Any
) -> None:
    settings.MEASE_ROUTES = {"news": ["djmease.senders.broadcast", "tests.test_admin.fail"]}
    server = start_server()
    server.connect(), server.connect()
    page = text_of(browser_of_admin.get(publish(browser_of_admin)["Location"]))
    result = page.split("mease-result mease-is-warn")[1].split("</table>")[0]
    assert "It arrives: written to 2 clients." in result
    assert "djmease.senders.broadcast" in result and "RuntimeError: &lt;b&gt;broken" in result
    assert "<b>broken" not in result


def fail(message: Any) -> None:
    raise RuntimeError("<b>broken")


def test_the_form_knows_the_routings(redis: str, browser_of_admin: Client) -> None:
    reported.put(reported.server(callbacks=(numbered_sender(1), numbered_sender(2, routing="pattern.*"))))
    page = text_of(browser_of_admin.get(PAGE))
    options = page.split('<datalist id="mease-routings">')[1].split("</datalist>")[0]
    assert "shop.item.1" in options and "pattern" not in options
    assert browser_of_admin.get(f"{PAGE}publish/")["Location"] == f"{PAGE}#publish"


def test_without_a_server_routes_are_those_that_this_process_knows_of(
    redis: str, browser_of_admin: Client, settings: Any
) -> None:
    settings.MEASE_ROUTES = {
        "news": "shop.late.show",
        "two": ["shop.late.one", "shop.late.other"],
        "items": {"SENDERS": "djmease.senders.render", "TEMPLATE": "x.html"},
        "off": None,
        "bad": 7,
    }

    @djmease.sender(routing=["chat.message", "room.*"])
    async def show() -> None: ...

    page = text_of(browser_of_admin.get(PAGE))
    rows = re.findall("<tr><th scope=.row.*</tr>", page.split('data-part="quiet"')[1].split("</table>")[0])
    told = [re.sub("<[^>]*>", " ", row).replace("&#x27;", "'").split() for row in rows]
    assert told[:4] == [
        ["news", "shop.late.show", "MEASE_ROUTES['news']"],
        ["two", "shop.late.one", "MEASE_ROUTES['two']"],
        ["two", "shop.late.other", "MEASE_ROUTES['two']"],
        ["items", "djmease.senders.render", "MEASE_ROUTES['items']"],
    ]
    assert [row[0] for row in told[4:]] == ["chat.message", "room.*"] and "async" in told[4]
    assert "6 routes by the settings of this site: no server tells of any" in page
    assert "No server tells of a message." in page
    options = page.split('<datalist id="mease-routings">')[1].split("</datalist>")[0]
    assert re.findall('value="(.*?)"', options) == ["chat.message", "items", "news", "two"]
    reported.put(reported.server(callbacks=(numbered_sender(1),)))
    page = text_of(browser_of_admin.get(PAGE))
    assert "shop.late" not in page and "1 route, without traffic so far" in page
    assert "Nothing was published since the servers started." in page


def test_clients_that_were_closed_are_not_said_to_be_refused(redis: str, browser_of_admin: Client) -> None:
    reported.put(reported.server(refused={"login_ended": 2, "messages": 1, "forbidden": 4}))
    page = text_of(browser_of_admin.get(PAGE))
    assert "· Refused 4<" in page and "· Sent away 3<" in page


# Sites of other kinds


@pytest.fixture
def bare_site(tmp_path: Path) -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """Runs a command of a site that has just these apps, with warnings as errors."""

    def run(apps: list[str], *arguments: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "bare_settings.py").write_text(
            f"SECRET_KEY = 'x'\nINSTALLED_APPS = {apps!r}\nUSE_TZ = True\nDEBUG = True\n"
            f"DATABASES = {{'default': {{'ENGINE': 'django.db.backends.sqlite3', 'NAME': {str(tmp_path / 'db')!r}}}}}\n"
        )
        return subprocess.run(
            [sys.executable, "-W", "error", "-m", "django", *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}", "DJANGO_SETTINGS_MODULE": "bare_settings"},
            capture_output=True,
            text=True,
            check=False,
        )

    yield run


AUTH = ["django.contrib.auth", "django.contrib.contenttypes"]


@pytest.mark.parametrize("apps", [["djmease"], ["djmease", *AUTH], ["django.contrib.contenttypes", "djmease"]])
def test_sites_without_the_admin_work(bare_site: Any, apps: list[str]) -> None:
    for arguments in (["check", "--fail-level", "INFO"], ["migrate"], ["makemigrations", "--check", "--dry-run"]):
        done = bare_site(apps, *arguments)
        assert (done.returncode, done.stderr) == (0, ""), done.stdout


def test_the_shipped_migration_is_all_there_is_to_make() -> None:
    call_command("makemigrations", "djmease", check=True, dry_run=True, verbosity=0)


def test_it_may_stand_before_or_behind_the_admin(bare_site: Any) -> None:
    admin = ["django.contrib.admin", *AUTH, "django.contrib.sessions", "django.contrib.messages"]
    code = (
        "from django.contrib import admin; from djmease.models import Status\n"
        "import sys; assert admin.site.is_registered(Status); assert 'tornado' not in sys.modules; print('ok')"
    )
    for apps in (["djmease", *admin], [*admin, "djmease"]):
        done = bare_site(apps, "shell", "--no-startup", "-c", code)
        assert done.stdout.splitlines()[-1] == "ok", done.stderr


def test_the_permissions_are_made_and_no_table() -> None:
    names = set(Permission.objects.filter(content_type__app_label="djmease").values_list("codename", flat=True))
    assert names == {"view_status", "disconnect_client", "publish_message"}


def test_it_works_from_right_to_left_and_without_time_zones(redis: str, browser_of_admin: Client) -> None:
    reported.put(reported.server(callbacks=(numbered_sender(heard=1200, calls=1),), messages=(numbered_message(),)))
    with override_settings(LANGUAGE_CODE="ar", USE_TZ=False):
        page = text_of(browser_of_admin.get(PAGE))
    assert 'dir="rtl"' in page


def test_numbers_are_written_as_the_language_of_the_reader_has_them(redis: str, browser_of_admin: Client) -> None:
    reported.put(reported.server(clients=1234, lag_p99=0.0015))
    with override_settings(LANGUAGE_CODE="de"):
        html = parts_of(browser_of_admin)["top"]["html"]
    assert "1.234" in html and "1,5 ms" in html


def test_nothing_in_the_page_is_inline_or_from_another_host(redis: str, browser_of_admin: Client) -> None:
    reported.put(reported.server(history=flat_history()))
    page = text_of(browser_of_admin.get(PAGE))
    ours = page.split('id="mease"')[1].split("</main>")[0]
    for inline in ("<style", "<script", " style=", " onclick", "http://", "https://", "javascript:"):
        assert inline not in ours
