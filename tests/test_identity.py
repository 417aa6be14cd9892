"""Which handshakes are let in, by their Host and their Origin."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tornado.httputil import HTTPHeaders, HTTPServerRequest, RequestStartLine

from djmease.server.identity import LOCAL_HOSTS, Gate


def refusal(
    host: str | None,
    origin: str | None = None,
    *,
    allowed_hosts: tuple[str, ...] = ("example.com", ".shop.example", "127.0.0.1", "[::1]"),
    allowed_origins: tuple[str, ...] = (),
) -> str | None:
    # Tornado itself refuses some Hosts when it makes a request; the gate does not rely on that.
    headers = HTTPHeaders({"Host": "valid"})
    request = HTTPServerRequest(start_line=RequestStartLine("GET", "/", "HTTP/1.1"), headers=headers)
    del headers["Host"]
    if host is not None:
        headers["Host"] = host
    if origin is not None:
        headers["Origin"] = origin
    return Gate(allowed_hosts=allowed_hosts, allowed_origins=allowed_origins).refusal(request)


@pytest.mark.parametrize(
    "host",
    [
        "example.com",
        "EXAMPLE.com",
        "example.com:8001",
        "example.com.",
        "shop.example",
        "a.b.shop.example",
        "[::1]:8001",
    ],
)
def test_a_host_that_allowed_hosts_names_is_let_in(host: str) -> None:
    assert refusal(host) is None


@pytest.mark.parametrize(
    "host",
    [
        "evil.com",
        "example.com.evil.com",
        "evilexample.com",
        "www.example.com",
        "",
        "example.com@evil.com",
        "a b",
        "x/y",
    ],
)
def test_a_forged_host_is_refused_with_the_setting_that_would_allow_it(host: str) -> None:
    reason = refusal(host)
    assert reason is not None
    assert repr(host) in reason and "ALLOWED_HOSTS" in reason


def test_a_request_without_a_host_is_refused() -> None:
    assert refusal(None) is not None


def test_any_host_is_let_in_where_the_site_says_so() -> None:
    assert refusal("anything.example", allowed_hosts=("*",)) is None
    assert refusal("anything.example", "http://anything.example", allowed_hosts=("*",)) is None
    assert refusal("anything.example", "http://evil.com", allowed_hosts=("*",)) is not None


@pytest.mark.parametrize("host", ["localhost", "localhost:8001", "x.localhost", "127.0.0.1:1", "[::1]"])
def test_the_hosts_of_this_machine_are_let_in_where_debug_allows_them(host: str) -> None:
    assert refusal(host, f"http://{host}", allowed_hosts=LOCAL_HOSTS) is None
    assert refusal("example.com", allowed_hosts=LOCAL_HOSTS) is not None


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("example.com", None),
        ("example.com", "http://example.com"),
        ("example.com", "https://example.com"),
        ("example.com:8001", "https://example.com:8000"),
        ("example.com:8001", "HTTPS://EXAMPLE.COM"),
        ("a.shop.example", "https://a.shop.example"),
        ("[::1]:8001", "http://[::1]:8000"),
        ("127.0.0.1:8001", "http://127.0.0.1:8000"),
    ],
)
def test_the_requests_own_host_name_is_let_in_on_any_port_and_scheme(host: str, origin: str | None) -> None:
    assert refusal(host, origin) is None


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.com",
        "http://example.com.evil.com",
        "http://evil.com/example.com",
        "http://example.com@evil.com",
        "http://evil.com#example.com",
        "http://evil.com?example.com",
        "http://www.example.com",
        "http://com",
        "null",
        "",
        "example.com",
        "//example.com",
        "http://",
        "http:///example.com",
        "file://",
        "file://example.com",
        "chrome-extension://example.com",
        "javascript:alert(1)",
        "http://[::1",
        "http://[example.com]",
        "http://example.com:port",
        "http://example.com,http://evil.com",
        "http://evil.com, http://example.com",
        "\xff",
    ],
)
def test_a_foreign_or_broken_origin_is_refused_with_its_name_and_the_settings(origin: str) -> None:
    reason = refusal("example.com", origin)
    if origin == "http://example.com:port":
        # The host name is right; what is behind it decides nothing.
        assert reason is None
        return
    assert reason is not None
    assert repr(origin) in reason and "MEASE_ALLOWED_ORIGINS" in reason and "CSRF_TRUSTED_ORIGINS" in reason


@pytest.mark.parametrize(
    ("allowed", "origin", "is_let_in"),
    [
        ("https://app.example", "https://app.example", True),
        ("https://app.example", "https://APP.example", True),
        ("https://app.example", "http://app.example", False),
        ("https://app.example", "https://www.app.example", False),
        ("https://app.example", "https://app.example:8443", False),
        ("https://app.example:8443", "https://app.example:8443", True),
        ("https://*.app.example", "https://www.app.example", True),
        ("https://*.app.example", "https://a.b.app.example", True),
        ("https://*.app.example", "http://www.app.example", False),
        ("https://*.app.example", "https://evilapp.example", False),
        ("https://*.app.example", "https://app.example.evil.com", False),
        ("https://*.app.example", "https://www.app.example:8443", False),
        ("https://*.app.example:8443", "https://www.app.example:8443", True),
        ("null", "null", True),
        ("chrome-extension://abcdef", "chrome-extension://abcdef", True),
        ("chrome-extension://abcdef", "chrome-extension://other", False),
        ("app.example", "https://app.example", False),
        ("*", "https://app.example", True),
        ("*", "null", True),
        ("https://", "https://app.example", False),
        ("", "https://app.example", False),
    ],
)
def test_allowed_origins_are_as_djangos_csrf_trusted_origins(allowed: str, origin: str, is_let_in: bool) -> None:
    assert (refusal("example.com", origin, allowed_origins=("https://other.example", allowed)) is None) is is_let_in


@given(st.text(st.characters(min_codepoint=1, exclude_categories=["Cs"], exclude_characters="\r\n\0"), max_size=40))
def test_no_origin_breaks_the_gate_or_gets_in_by_chance(text: str) -> None:
    allowed = ("https://app.example", "https://*.shop.example", "null")
    for origin in (text, f"http://{text}", f"https://{text}.example", f"https://app.example{text}"):
        reason = refusal("site.test", origin, allowed_hosts=("site.test",), allowed_origins=allowed)
        assert reason is None or "MEASE_ALLOWED_ORIGINS" in reason


@given(st.text(st.characters(min_codepoint=33, max_codepoint=255, exclude_characters="\r\n\0"), max_size=40))
def test_no_host_breaks_the_gate(host: str) -> None:
    reason = refusal(host, f"http://{host}")
    assert reason is None or "ALLOWED_HOSTS" in reason or "MEASE_ALLOWED_ORIGINS" in reason
