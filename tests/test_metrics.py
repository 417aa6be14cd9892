"""``/metrics`` says what happened, in both formats, to those who may ask; and the board and the docs know each name."""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import socket
import subprocess
import sys
from bisect import bisect_left
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import parser
from prometheus_client.openmetrics import parser as openmetrics_parser

import djmease
from djmease import checks
from djmease.server import live
from djmease.server.metrics import COARSE_EDGES, CURE, EDGES, FAMILIES, Exporter, by_known_code, cumulated
from djmease.server.proxies import FORWARDED, UNIX_PEER, Proxies
from djmease.server.tallies import BOUNDS, Durations
from tests.support import DEADLINE, ROOT, LiveServer, Project, eventually
from tests.test_hostile import handshake, request

StartServer = Callable[[], LiveServer]
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]

OPENMETRICS = "application/openmetrics-text; version=1.0.0"


def get(port: int, *, path: str = "/metrics", method: str = "GET", **headers: str) -> tuple[int, str, str]:
    """Ask once, and return the status, the content type and the text."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE)
    try:
        connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        return response.status, response.headers["Content-Type"], response.read().decode()
    finally:
        connection.close()


def families(text: str) -> dict[str, Any]:
    """Return the metric families that Prometheus would read, by name."""
    found = list(parser.text_string_to_metric_families(text))
    assert len({family.name for family in found}) == len(found)
    return {family.name: family for family in found}


def samples(server: LiveServer) -> Samples:
    """Return the value of each series; none may come twice."""
    status, _, text = get(server.port)
    assert status == 200, text
    found: Samples = {}
    for family in families(text).values():
        for sample in family.samples:
            series = (sample.name, frozenset(sample.labels.items()))
            assert series not in found
            found[series] = sample.value
    return found


def value(found: Samples, name: str, **labels: str) -> float:
    return found[name, frozenset(labels.items())]


# What it says


def test_what_happens_is_what_is_counted(start_server: StartServer, settings: Any) -> None:
    settings.MEASE_STRICT_ROUTING = False

    @djmease.sender(routing="news.*")
    def show(message: Any, clients_list: Any) -> None:
        clients_list.send(message)

    @djmease.receiver
    async def hear(message: Any) -> None:
        if message == "bad":
            raise ValueError("bad")

    server = start_server()
    clients = [server.connect() for _ in range(3)]
    for index in range(4):
        djmease.publish(f"news.{index}", "x" * 10)
    djmease.publish("nobody", "x")
    for client in clients:
        assert [client.recv(timeout=DEADLINE) for _ in range(4)] == ["x" * 10] * 4
        client.send("good")
    clients[0].send("bad")
    clients[0].close(code=4000)
    show_labels = {"callback": f"{__name__}.{show.__qualname__}", "kind": "sender", "route": "news.*"}
    hear_labels = {"callback": f"{__name__}.{hear.__qualname__}", "kind": "receiver", "route": ""}
    is_done = lambda found: (  # noqa: E731
        value(found, "mease_clients") == 2
        and value(found, "mease_unrouted_messages_total") == 1
        and found.get(("mease_callback_duration_seconds_count", frozenset(hear_labels.items()))) == 4
    )
    found = eventually(lambda: is_done(found := samples(server)) and found, "the counts")
    expected = {
        "mease_ready": 1,
        "mease_draining": 0,
        "mease_presence_ready": 1,
        "mease_opened_connections_total": 3,
        "mease_received_messages_total": 4,
        "mease_published_messages_total": 5,
        "mease_sent_messages_total": 12,
        "mease_sent_bytes_total": 12 * 12,
        "mease_received_bytes_total": 3 * (6 + 4) + (6 + 3) + (6 + 2),
        "mease_unsent_bytes": 0,
        "mease_waiting_calls": 0,
        "mease_slow_calls_total": 0,
        "mease_redis_reconnects_total": 0,
        "mease_delivery_lag_seconds_count": 4,
    }
    assert {name: value(found, name) for name in expected} == expected
    assert value(found, "mease_closed_connections_total", code="4xxx") == 1
    assert value(found, "mease_closed_connections_total", code="1000") == 0
    assert value(found, "mease_callback_duration_seconds_count", **show_labels) == 4
    assert value(found, "mease_route_messages_total", **show_labels) == 4
    assert value(found, "mease_route_sent_messages_total", **show_labels) == 12
    assert value(found, "mease_callback_errors_total", **show_labels) == 0
    assert value(found, "mease_callback_errors_total", **hear_labels) == 1
    assert ("mease_route_messages_total", frozenset(hear_labels.items())) not in found
    assert value(found, "mease_info", version=djmease.__version__, registry=server.server.observer.about["registry"])
    assert value(found, "process_resident_memory_bytes") > 1_000_000
    assert value(found, "process_cpu_seconds_total") > 0
    assert not any("nobody" in label or "news.1" in label for _, labels in found for _, label in labels)


def test_a_histogram_says_how_long_calls_took(start_server: StartServer) -> None:
    @djmease.receiver
    async def hear(message: Any) -> None:
        await asyncio.sleep(float(message))

    server = start_server()
    client = server.connect()
    for seconds in ("0", "0", "0.02", "0.3"):
        client.send(seconds)
    name = "mease_callback_duration_seconds"
    labels = {"callback": f"{__name__}.{hear.__qualname__}", "kind": "receiver", "route": ""}
    count = (f"{name}_count", frozenset(labels.items()))
    found = eventually(lambda: (found := samples(server)).get(count) == 4 and found, "the calls")
    counts = {end: value(found, f"{name}_bucket", le=end, **labels) for end in ("0.016384", "0.262144", "1.048576")}
    assert counts == {"0.016384": 2, "0.262144": 3, "1.048576": 4}
    assert value(found, f"{name}_bucket", le="+Inf", **labels) == 4
    assert 0.32 < value(found, f"{name}_sum", **labels) < 1
    assert len([1 for name, all_labels in found if name.endswith("duration_seconds_bucket") and all_labels]) == 11


@given(st.lists(st.floats(min_value=0, max_value=2000), max_size=30))
def test_each_bucket_has_what_took_no_longer_than_its_end(seconds: list[float]) -> None:
    durations = Durations()
    for each in seconds:
        durations.add(each)
    for edges in (EDGES, COARSE_EDGES):
        expected = [sum(each <= BOUNDS[edge] for each in seconds) for edge in edges]
        assert cumulated(durations.counts, edges) == [*expected, len(seconds)]


@pytest.mark.parametrize("edges", [EDGES, COARSE_EDGES])
def test_the_edges_are_real_bounds(edges: range) -> None:
    assert [bisect_left(BOUNDS, BOUNDS[edge]) for edge in edges] == list(edges)


def test_callbacks_with_the_same_labels_are_one_series(start_server: StartServer, settings: Any) -> None:
    stock = "djmease.senders.broadcast"
    settings.MEASE_ROUTES = {"news": [stock, {"SENDER": "djmease.senders.to_group", "GROUP": "a"}]}

    def of(group: str) -> None:
        @djmease.sender(routing="news")
        def show(message: Any, clients_list: Any) -> None:
            clients_list.send(f"{group} {message}")

    of("first")
    of("second")
    server = start_server()
    client = server.connect()
    djmease.publish("news", "x")
    assert sorted(client.recv(timeout=DEADLINE) for _ in range(3)) == ["first x", "second x", "x"]
    labels = {"callback": f"{__name__}.{of.__qualname__}.<locals>.show", "kind": "sender", "route": "news"}
    found = eventually(
        lambda: (
            (found := samples(server)).get(("mease_callback_duration_seconds_count", frozenset(labels.items()))) == 2
            and found
        )
    )
    assert value(found, "mease_route_sent_messages_total", **labels) == 2
    assert value(found, "mease_route_sent_messages_total", **{**labels, "callback": stock}) == 1


def test_close_codes_that_a_client_makes_up_are_put_together() -> None:
    closed = {"1000": 1, "1012": 2, "none": 3, "4401": 4, **{str(code): 1 for code in range(3000, 3100)}, "4000": 5}
    assert by_known_code(closed) == {"1000": 1, "1012": 2, "none": 3, "4401": 4, "3xxx": 100, "4xxx": 5}


def test_what_nothing_is_counted_of_yet_is_there_as_zero(start_server: StartServer, settings: Any) -> None:
    settings.MEASE_ROUTES = {"news": "djmease.senders.broadcast"}
    found = samples(start_server())
    assert value(found, "mease_refused_total", reason="forbidden") == 0
    assert value(found, "mease_lost_total", reason="dropped") == 0
    labels = {"callback": "djmease.senders.broadcast", "kind": "sender", "route": "news"}
    assert value(found, "mease_callback_errors_total", **labels) == 0
    assert not [name for name, _ in found if name.startswith("mease_callback_duration")]


def test_every_reason_is_known_before_it_happens(start_server: StartServer) -> None:
    """What the observer can ever name is in the table: a reason that appears later would lose its first time."""
    observer = start_server().server.observer
    known = {family.field: set(family.known) for family in FAMILIES}
    limits, dispatch = observer._limits, observer._dispatch
    for reason in ("connections", "address", "user", "messages", "forbidden", "unauthenticated"):
        limits.refused[reason] += 1
    dispatch.turned_away = dispatch.refused = observer._logins.ended = 1
    dispatch.dropped = dispatch.overtaken = dispatch.given_up = observer._outbox.slow = observer._pings.timed_out = 1
    observer._listener.refused = 1
    counts = observer.counts()
    assert (set(counts["refused"]), set(counts["lost"])) == (known["refused"], known["lost"])


def test_a_refused_handshake_is_counted_with_its_reason(start_server: StartServer) -> None:
    server = start_server()
    status, _, _ = request(server, *handshake(Origin="https://elsewhere.example"))
    assert b"403" in status
    assert value(samples(server), "mease_refused_total", reason="forbidden") == 1


# Formats


def test_openmetrics_is_given_to_who_asks_for_it(start_server: StartServer, settings: Any) -> None:
    settings.MEASE_ROUTES = {"news": "djmease.senders.broadcast"}
    server = start_server()
    client = server.connect()
    djmease.publish("news", "x")
    client.recv(timeout=DEADLINE)
    eventually(lambda: "mease_callback_duration_seconds_count" in get(server.port)[2])
    status, content_type, text = get(server.port, Accept=OPENMETRICS)
    assert (status, content_type.split("; charset")[0]) == (200, OPENMETRICS)
    found = {family.name: family.type for family in openmetrics_parser.text_string_to_metric_families(text)}
    assert text.endswith("\n# EOF\n") and text.count("# EOF") == 1
    plain = {name: family.type for name, family in families(get(server.port)[2]).items()}
    assert {name for name in found if name != "mease"} == {name for name in plain if name != "mease_info"}
    assert (found["mease"], found["mease_callback_duration_seconds"]) == ("info", "histogram")


@pytest.mark.parametrize(
    "accept",
    ["", "*/*", "text/plain;version=0.0.4", "text/html", ";;,=,", "\xff"],
)
def test_anything_else_is_answered_with_the_plain_format(start_server: StartServer, accept: str) -> None:
    status, content_type, text = get(start_server().port, Accept=accept)
    assert (status, content_type) == (200, "text/plain; version=0.0.4; charset=utf-8")
    assert "mease_clients" in families(text)


def test_a_version_that_is_none_breaks_nothing(start_server: StartServer) -> None:
    assert get(start_server().port, Accept="application/openmetrics-text;version=x")[0] == 200


def test_what_prometheus_sends_is_understood(start_server: StartServer) -> None:
    accept = (
        "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,"
        "application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,"
        "text/plain;version=0.0.4;q=0.2,*/*;q=0.1"
    )
    status, content_type, text = get(start_server().port, Accept=accept, Accept_Encoding="gzip")
    assert status == 200 and content_type.startswith("application/openmetrics-text; version=1.0.0; charset=utf-8")
    assert list(openmetrics_parser.text_string_to_metric_families(text))


def test_the_loop_turns_while_a_thousand_routes_are_written(start_server: StartServer, settings: Any) -> None:
    settings.MEASE_ROUTES = {f"news.{index}": "djmease.senders.broadcast" for index in range(1000)}
    server = start_server()
    tallies = server.server.observer.tallies
    for tally in tallies.all:
        tally.durations.add(0.001)
    samples(server)  # The package is imported now.

    async def turns() -> tuple[int, int]:
        count, is_over = 0, False

        async def turn() -> None:
            nonlocal count
            while not is_over:
                count += 1
                await asyncio.sleep(0)

        turning = asyncio.ensure_future(turn())
        text, _ = await Exporter(server.server.observer).write("")
        is_over = True
        await turning
        return count, text.count(b"\n")

    count, lines = asyncio.run_coroutine_threadsafe(turns(), server.loop).result(DEADLINE)
    assert lines > 1000 * 16
    assert count >= 40


def test_a_server_without_redis_has_them_too(settings: Any) -> None:
    settings.MEASE_ROUTES = {"news": "djmease.senders.broadcast"}
    server = live.LiveServer()
    server.start()
    try:
        found = families(get(server.port)[2])
    finally:
        server.stop()
    assert [sample.value for sample in found["mease_redis_reconnects"].samples] == [0]


def test_without_reports_what_is_not_by_callback_is_counted(start_server: StartServer, settings: Any) -> None:
    settings.MEASE_REPORT_INTERVAL = None
    settings.MEASE_ROUTES = {"news": "djmease.senders.broadcast"}
    server = start_server()
    client = server.connect()
    djmease.publish("news", "x")
    assert client.recv(timeout=DEADLINE) == "x"
    found = samples(server)
    assert value(found, "mease_sent_messages_total") == value(found, "mease_published_messages_total") == 1
    assert value(found, "mease_delivery_lag_seconds_count") == 0
    assert value(found, "mease_loop_delay_seconds_count") > 0


# Who may ask


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("127.0.0.1", "MEASE_METRICS_ALLOW is '127.0.0.1'."),
        (["127.0.0.1", "prometheus"], "MEASE_METRICS_ALLOW[1] is 'prometheus'."),
        ([None], "MEASE_METRICS_ALLOW[0] is None."),
    ],
)
def test_a_wrong_setting_is_a_fault(settings: Any, given: Any, message: str) -> None:
    settings.MEASE_METRICS_ALLOW = given
    assert [fault.message for fault in checks.faults() if fault.id == "djmease.E008"] == [message]


@pytest.mark.parametrize("given", [[], ["127.0.0.1", "::1", "10.0.0.0/8", "fd00::/8", "unix"], ("127.0.0.1",)])
def test_a_good_setting_is_none(settings: Any, given: Any) -> None:
    settings.MEASE_METRICS_ALLOW = given
    assert not [fault for fault in checks.faults() if fault.id == "djmease.E008"]


def test_the_host_does_not_matter_and_the_path_is_no_websocket(start_server: StartServer) -> None:
    server = start_server()
    assert get(server.port, Host="10.0.0.7:8001")[0] == 200
    assert get(server.port, path="/metrics/")[0] == 426
    assert get(server.port, method="HEAD")[2] == ""
    assert get(server.port, method="POST")[0] == 405
    status, body, _ = request(server, *["GET /metrics HTTP/1.1", *handshake()[1:]])
    assert b"200" in status and body.startswith(b"# HELP")


def test_a_websocket_path_that_the_server_needs_is_a_fault(settings: Any) -> None:
    settings.MEASE_PATH = "/metrics"
    assert [fault.message for fault in checks.faults() if fault.id == "djmease.E008"] == ["MEASE_PATH is '/metrics'."]


def test_who_is_not_allowed_is_told_and_logged(
    start_server: StartServer, settings: Any, log_of: Callable[[], list[str]]
) -> None:
    settings.MEASE_METRICS_ALLOW = ["192.0.2.0/24", "unix"]
    status, content_type, text = get(start_server().port)
    assert (status, text) == (403, "127.0.0.1 is not in MEASE_METRICS_ALLOW\n")
    assert content_type == "text/plain; charset=utf-8"
    assert any("refused /metrics to 127.0.0.1" in line for line in log_of())


def test_nobody_is_allowed_by_an_empty_list(start_server: StartServer, settings: Any) -> None:
    settings.MEASE_METRICS_ALLOW = []
    assert get(start_server().port)[0] == 403


@pytest.mark.parametrize("allowed", [["127.0.0.0/8"], ["127.0.0.1"], ["::/0", "0.0.0.0/0"]])
def test_addresses_and_networks_are_allowed(start_server: StartServer, settings: Any, allowed: list[str]) -> None:
    settings.MEASE_METRICS_ALLOW = allowed
    assert get(start_server().port)[0] == 200


@pytest.mark.parametrize("name", FORWARDED)
@pytest.mark.parametrize("said", ["203.0.113.9", "127.0.0.1", ""])
def test_what_a_proxy_passed_on_is_refused(start_server: StartServer, name: str, said: str) -> None:
    status, _, text = get(start_server().port, **{name.lower(): said})
    assert status == 403 and "127.0.0.1 is not in MEASE_TRUSTED_PROXIES" in text


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"X_Forwarded_For": "192.0.2.7"}, 200),
        ({"X_Forwarded_For": "203.0.113.9, 192.0.2.7", "Via": "1.1 proxy"}, 200),
        ({"X_Forwarded_For": "192.0.2.7, 127.0.0.1"}, 200),
        ({"X_Forwarded_For": "192.0.2.7, 203.0.113.9"}, 403),
        ({"X_Forwarded_For": "127.0.0.1, 203.0.113.9"}, 403),
        ({"X_Forwarded_For": "203.0.113.9"}, 403),
        ({"X_Forwarded_For": "192.0.2.7, unknown"}, 403),
        ({"X_Forwarded_For": "0.0.0.0"}, 403),
        ({"X_Forwarded_For": ""}, 403),
        ({"Forwarded": "for=192.0.2.7"}, 403),
        ({"X_Real_Ip": "192.0.2.7"}, 403),
        ({"Via": "1.1 proxy"}, 403),
        ({}, 403),
    ],
)
def test_a_trusted_proxy_says_who_asks(
    start_server: StartServer, settings: Any, headers: dict[str, str], status: int
) -> None:
    settings.MEASE_TRUSTED_PROXIES = ["127.0.0.1"]
    settings.MEASE_METRICS_ALLOW = ["192.0.2.7", "unix"]
    assert get(start_server().port, **headers)[0] == status


def test_a_trusted_proxy_on_this_machine_does_not_open_the_loopback(start_server: StartServer, settings: Any) -> None:
    settings.MEASE_TRUSTED_PROXIES = ["127.0.0.1"]
    server = start_server()
    assert get(server.port, X_Forwarded_For="203.0.113.9")[0] == 403
    assert get(server.port, X_Real_Ip="203.0.113.9")[0] == 403
    assert get(server.port)[0] == 200


@given(st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=40), st.sampled_from(FORWARDED))
def test_no_header_makes_somebody_of_a_proxy(text: str, name: str) -> None:
    proxies = Proxies(["10.0.0.1", "unix"], trusts_host=False)
    assert proxies.caller("127.0.0.1", {name: text}) is None
    assert proxies.caller("10.0.0.1", {name: text}) not in ("10.0.0.1", UNIX_PEER)
    assert proxies.caller(UNIX_PEER, {name: text}) != UNIX_PEER


def ask_by_unix(path: Path) -> bytes:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(DEADLINE)
        sock.connect(str(path))
        sock.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        return b"".join(iter(lambda: sock.recv(65536), b""))


@pytest.mark.parametrize(("allowed", "status"), [(["unix"], b"200"), (["127.0.0.1", "0.0.0.0/0"], b"403")])
def test_who_comes_by_a_unix_socket_is_allowed_where_the_setting_says_so(
    project: Project, short_directory: Path, allowed: list[str], status: bytes
) -> None:
    project.settings(f"MEASE_METRICS_ALLOW = {allowed!r}")
    path = short_directory / "socket"
    server = project.start("run_websocket_server", "--unix", str(path), "--noreload")
    server.wait_for("Quit with Ctrl-C.")
    assert ask_by_unix(path).split(b" ")[1] == status
    if status == b"403":
        server.wait_for(
            "refused /metrics to a Unix socket ('unix'): a Unix socket ('unix') is not in MEASE_METRICS_ALLOW"
        )


# Without the package

BLOCK = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "prometheus_client":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
"""


def test_without_the_package_the_cure_is_named(project: Project) -> None:
    project.settings(BLOCK)
    server = project.start("run_websocket_server", "--noreload")
    port = server.port()
    assert get(port) == (501, "text/plain; charset=utf-8", f"{CURE}\n")
    assert get(port, Via="1.1 x")[0] == 403
    assert get(port, path="/readyz")[0] == 200
    assert "Traceback" not in server.err


def test_the_package_is_imported_for_nobody_who_does_not_ask() -> None:
    code = (
        "import sys, django; from django.conf import settings\n"
        "settings.configure(INSTALLED_APPS=['djmease']); django.setup(); import djmease.server.factory\n"
        "print('prometheus_client' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout == "False\n", done.stderr


# The docs and the board


@pytest.fixture
def exposed(start_server: StartServer, settings: Any) -> dict[str, Any]:
    """Returns every family that there is, each with its samples."""
    settings.MEASE_ROUTES = {"news": "djmease.senders.broadcast"}
    server = start_server()
    client = server.connect()
    djmease.publish("news", "x")
    client.recv(timeout=DEADLINE)
    name = "mease_callback_duration_seconds"
    return eventually(lambda: name in (found := families(get(server.port)[2])) and found, "the families")


def documented() -> Iterator[tuple[str, str, set[str]]]:
    """Yield the rows of the table in the docs: name, type and labels."""
    text = (ROOT / "docs" / "metrics.rst").read_text()
    rows = re.findall(r"^   \* - ``(\w+)``\n     - (\w+)\n     - (.*)\n     - .+", text, re.MULTILINE)
    for name, kind, labels in rows:
        yield name, kind, set(re.findall(r"``(\w+)``", labels))


def test_the_docs_know_every_metric_its_type_and_its_labels(exposed: dict[str, Any]) -> None:
    found = {}
    for name, family in exposed.items():
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        found[f"{name}_total" if family.type == "counter" else name] = (family.type, labels)
    table = {name: (kind, labels) for name, kind, labels in documented()}
    # Older kernels do not say it at once.
    found.setdefault("process_open_fds", ("gauge", set()))
    assert table == found


NAME = re.compile(r"\b(?:mease|process)_[a-z_]+\b")


def metric_of(name: str) -> str:
    return re.sub(r"_(bucket|sum|count)$", "", name)


def test_the_board_asks_for_nothing_that_is_not_there(exposed: dict[str, Any]) -> None:
    board = json.loads((ROOT / "docs" / "grafana.json").read_text())
    names = {name for name, _, _ in documented()}
    histograms = {name for name, kind, _ in documented() if kind == "histogram"}
    queries = [target["expr"] for panel in board["panels"] for target in panel.get("targets", ())]
    assert len(queries) >= 15
    for query in queries:
        asked = NAME.findall(query)
        assert asked and '{job=~"$job", instance=~"$instance"' in query, query
        for name in asked:
            assert metric_of(name) in names, query
            assert (name != metric_of(name)) == (metric_of(name) in histograms), query
            assert name.endswith("_total") <= ("rate(" in query or "increase(" in query), query
    labels = {label for _, _, labels in documented() for label in labels} | {"le", "instance", "job"}
    for group in re.findall(r"by \(([^)]*)\)", " ".join(queries)):
        assert {label.strip() for label in group.split(",")} <= labels


def test_the_board_can_be_imported_anywhere() -> None:
    board = json.loads((ROOT / "docs" / "grafana.json").read_text())
    assert board["schemaVersion"] >= 39 and board["id"] is None
    variables = {variable["name"]: variable for variable in board["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    places = set()
    for panel in board["panels"]:
        if panel["type"] == "row":
            continue
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert panel["title"] and panel["targets"]
        places.add((panel["gridPos"]["x"], panel["gridPos"]["y"]))
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24
    shown = [panel for panel in board["panels"] if panel["type"] != "row"]
    assert len(places) == len(shown) == len({panel["id"] for panel in shown})


def test_the_alerts_in_the_docs_ask_for_nothing_that_is_not_there() -> None:
    text = (ROOT / "docs" / "metrics.rst").read_text()
    rules = re.findall(r"^ +expr: (.+)$", text, re.MULTILINE)
    assert len(rules) >= 3
    names = {name for name, _, _ in documented()}
    for rule in rules:
        asked = [name for name in NAME.findall(rule) if name != "mease_server"]
        assert all(metric_of(name) in names for name in asked) and (asked or "up{" in rule), rule
