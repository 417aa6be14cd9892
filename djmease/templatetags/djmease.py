"""``{% load djmease %}{% mease_script %}``: the browser client in a page, with the address of the server.

``{% mease_url %}`` is that address alone, for pages that connect without it.
"""

from __future__ import annotations

import os
from typing import Any

from django import template
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.http.request import split_domain_port
from django.template.context import Context
from django.templatetags.static import static
from django.utils.html import format_html
from django.utils.safestring import SafeString

register = template.Library()

SCRIPT = "djmease/mease.js"
PORT_ENV = "DJMEASE_SERVER_PORT"
"""Names the variable by which ``run_websocket_server 8002 --with-site`` tells the site its port; no setting."""


@register.simple_tag(takes_context=True)
def mease_script(context: Context | dict[str, Any]) -> SafeString:
    """Return the script element of ``mease.js``; scripts behind it find ``mease.connect()``.

    It holds no code of its own: the address goes in an attribute. It has the nonce of a Content-Security-Policy, of
    Django 6's middleware or django-csp's, where ``request`` or ``csp_nonce`` is in the context.
    """
    nonce = _nonce(context)
    attributes = format_html(' nonce="{}"', nonce) if nonce is not None else ""
    return format_html('<script src="{}" data-mease-url="{}"{}></script>', static(SCRIPT), server_url(), attributes)


@register.simple_tag(takes_context=True)
def mease_url(context: Context | dict[str, Any]) -> str:
    """Return the whole address of the server, for what wants one: ``ws-connect="{% mease_url %}"`` of htmx.

    It follows the same rule as ``mease_script``, with host name and scheme as ``request`` has them. Raises
    ``ImproperlyConfigured`` where they are needed and the context has no ``request``.
    """
    url = server_url()
    if url.startswith(("ws://", "wss://")):
        return url
    request = context.get("request")
    if request is None:
        raise ImproperlyConfigured(
            "{% mease_url %} needs the request: render with it, and have 'django.template.context_processors.request' "
            "among the context processors, or set MEASE_URL to a whole address such as 'wss://example.com/ws/'."
        )
    scheme = "wss" if request.is_secure() else "ws"
    if url.startswith("//"):
        return f"{scheme}:{url}"
    host = request.get_host()
    return f"{scheme}://{split_domain_port(host)[0] if url.startswith(':') else host}{url}"


def server_url() -> str:
    """Return where pages connect to, in the form that ``mease.connect()`` takes.

    The rule: ``MEASE_URL``, where it is set. Else the host name in the page's own address, the port ``MEASE_PORT`` (or
    the one that the server beside this site was given instead) and the path ``MEASE_PATH``, by ``wss://`` where the
    page came by ``https://``. The browser fills in host name and scheme, since only it knows what it was told, whatever
    proxies stand between. That is right on a laptop and wherever browsers reach the server's own port; behind nginx it
    is ``MEASE_URL = "/ws/"``.
    """
    url = settings.MEASE_URL
    if url is not None:
        return str(url)
    port = os.environ.get(PORT_ENV) or settings.MEASE_PORT
    if not port:
        raise ImproperlyConfigured(
            "MEASE_PORT is 0, any free port, which pages cannot know: set MEASE_URL, for example to ':8001/'."
        )
    return f":{port}{settings.MEASE_PATH or '/'}"


def _nonce(context: Context | dict[str, Any]) -> Any:
    # Both kinds of nonce are lazy, and false until they are used: only None is none.
    request = context.get("request")
    nonces = (
        context.get("csp_nonce"),
        getattr(request, "csp_nonce", None),  # django-csp
        getattr(request, "_csp_nonce", None),  # Django 6, where its context processor is not set
    )
    return next((nonce for nonce in nonces if nonce is not None), None)
