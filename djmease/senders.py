"""Stock senders, for routes that need no Python."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from django.template import TemplateDoesNotExist, TemplateSyntaxError
from django.template.loader import get_template

from djmease.types import ClientsList


async def broadcast(message: Any, clients_list: ClientsList) -> None:
    """Write the message to every client: ``MEASE_ROUTES = {'news': 'djmease.senders.broadcast'}``."""
    # It waits for nothing, and on the loop it needs no way to a thread and back: that is half of what a message costs.
    clients_list.send(message)


def render(message: Any, clients_list: ClientsList, *, template: str) -> None:
    """Render a Django template, once per message, and write its HTML to every client.

    The template has the keys of a message that is a dict, and the whole of it as ``message``. htmx's ``ws`` extension
    swaps the HTML in as it comes, by the ``id`` and ``hx-swap-oob`` of its elements::

        MEASE_ROUTES = {'news': {'SENDERS': 'djmease.senders.render', 'TEMPLATE': 'news/_item.html'}}
    """
    keys = message if isinstance(message, Mapping) else {}
    clients_list.send(str(get_template(template).render({**keys, "message": message})))


def _check_render(*, template: Any = None) -> Iterator[str]:
    if not isinstance(template, str):
        yield f"the option TEMPLATE is {template!r}, and should be the name of a template."
        return
    try:
        get_template(template)
    except TemplateDoesNotExist as error:
        yield f"the option TEMPLATE is {template!r}, and there is no template {str(error)!r}."
    except TemplateSyntaxError as error:
        yield f"the option TEMPLATE is {template!r}, which has an error: {error}."


render.check_options = _check_render  # type: ignore[attr-defined]
