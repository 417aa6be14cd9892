"""``{% mease_script %}``: the address, the nonce, and nothing that can break out of an attribute."""

from __future__ import annotations

import importlib.util
import re
from typing import Any

import django
import pytest
from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest, HttpResponse
from django.template import Context, RequestContext, Template
from django.test import RequestFactory
from django.utils.module_loading import import_string

from djmease.templatetags.djmease import PORT_ENV
from tests.support import go_without

URL_TAG = "{% load djmease %}{% mease_url %}"
TAG = "{% load djmease %}{% mease_script %}"


@pytest.fixture(autouse=True)
def static_url(settings: Any) -> None:
    settings.STATIC_URL = "/static/"


def rendered(context: Context | None = None) -> str:
    return Template(TAG).render(context or Context())


def url_in(html: str) -> str:
    return re.search('data-mease-url="([^"]*)"', html)[1]


def test_it_is_one_script_element_without_code_of_its_own() -> None:
    assert rendered() == '<script src="/static/djmease/mease.js" data-mease-url=":8001/"></script>'


def test_unset_the_address_is_the_servers_own_port_and_path(settings: Any) -> None:
    settings.MEASE_PORT, settings.MEASE_PATH = 9090, "/ws/"
    assert url_in(rendered()) == ":9090/ws/"


@pytest.mark.parametrize("url", ["/ws/", ":8443/", "wss://ws.example.com/live/?v=1"])
def test_the_setting_is_told_as_it_is(settings: Any, url: str) -> None:
    settings.MEASE_URL = url
    assert url_in(rendered()) == url


def test_a_site_beside_its_server_knows_the_port_that_the_server_was_given(
    settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PORT_ENV, "8002")
    assert url_in(rendered()) == ":8002/"
    settings.MEASE_URL = "/ws/"
    assert url_in(rendered()) == "/ws/"


def test_a_port_that_pages_cannot_know_is_an_error_that_names_the_cure(settings: Any) -> None:
    settings.MEASE_PORT = 0
    with pytest.raises(ImproperlyConfigured, match="MEASE_URL"):
        rendered()
    settings.MEASE_URL = "/ws/"
    assert url_in(rendered()) == "/ws/"


@pytest.mark.parametrize(
    ("setting", "secure", "host", "expected"),
    [
        (None, False, "127.0.0.1:8000", "ws://127.0.0.1:8001/"),
        (None, True, "localhost", "wss://localhost:8001/"),
        (None, False, "[::1]:8000", "ws://[::1]:8001/"),
        (":9000/ws/", False, "localhost:8000", "ws://localhost:9000/ws/"),
        ("/ws/?v=1", True, "localhost:8443", "wss://localhost:8443/ws/?v=1"),
        ("//live.example.com/", True, "localhost", "wss://live.example.com/"),
        ("ws://live.example.com/", True, "localhost", "ws://live.example.com/"),
    ],
)
def test_the_whole_address_is_that_of_the_request(
    settings: Any, setting: str | None, secure: bool, host: str, expected: str
) -> None:
    settings.MEASE_URL, settings.ALLOWED_HOSTS = setting, ["*"]
    request = RequestFactory().get("/", secure=secure, headers={"host": host})
    assert Template(URL_TAG).render(Context({"request": request})) == expected


def test_the_whole_address_needs_a_request_or_a_setting_that_is_whole(settings: Any) -> None:
    with pytest.raises(ImproperlyConfigured, match="context_processors.request"):
        Template(URL_TAG).render(Context())
    settings.MEASE_URL = 'wss://live.example.com/"'
    assert Template(URL_TAG).render(Context()) == "wss://live.example.com/&quot;"


def test_everything_is_escaped(settings: Any) -> None:
    evil = '"><script>alert(1)</script>'
    settings.MEASE_URL = settings.STATIC_URL = f"/{evil}/"
    html = rendered(Context({"csp_nonce": evil}, autoescape=False))
    assert html.count("<script") == html.count("</script>") == 1
    assert html.count('"') == 6
    assert "&lt;script&gt;alert(1)" in html


def answered(middleware: str, settings: Any, render: Any) -> tuple[str, str]:
    """Return the page that a view gives behind this middleware, and its Content-Security-Policy."""

    def view(request: HttpRequest) -> HttpResponse:
        return HttpResponse(render(request))

    response = import_string(middleware)(view)(RequestFactory().get("/"))
    return response.content.decode(), response.headers["Content-Security-Policy"]


def by_request_alone(request: HttpRequest) -> str:
    return rendered(Context({"request": request}))


def by_context_processor(request: HttpRequest) -> str:
    processor = import_string("django.template.context_processors.csp")
    return rendered(RequestContext(request, processors=[processor]))


def assert_same_nonce(html: str, policy: str) -> None:
    nonce = re.search(' nonce="([^"]+)"', html)[1]
    assert len(nonce) > 16
    assert f"'nonce-{nonce}'" in policy


@pytest.mark.skipif(django.VERSION < (6, 0), reason="Django has a Content-Security-Policy since 6.0")
@pytest.mark.parametrize("render", [by_request_alone, by_context_processor])
def test_it_has_the_nonce_of_djangos_policy(settings: Any, render: Any) -> None:
    csp = import_string("django.utils.csp.CSP")
    settings.SECURE_CSP = {"script-src": [csp.STRICT_DYNAMIC, csp.NONCE]}
    assert_same_nonce(*answered("django.middleware.csp.ContentSecurityPolicyMiddleware", settings, render))


def test_it_has_the_nonce_of_django_csp(settings: Any) -> None:
    if importlib.util.find_spec("csp") is None:
        go_without("django-csp is not installed")
    nonce = import_string("csp.constants.NONCE")
    settings.CONTENT_SECURITY_POLICY = {"DIRECTIVES": {"script-src": [nonce]}}
    assert_same_nonce(*answered("csp.middleware.CSPMiddleware", settings, by_request_alone))


def test_without_a_policy_there_is_no_nonce() -> None:
    assert "nonce" not in rendered(Context({"request": RequestFactory().get("/")}))
