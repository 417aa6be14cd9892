from __future__ import annotations

from django.http import HttpRequest

from examples.catalogue import EXAMPLES


def examples(request: HttpRequest) -> dict[str, object]:
    """Give every page the examples that its navigation lists, and the one that it belongs to."""
    route = request.resolver_match.route if request.resolver_match else ""
    name = route.split("/")[0]
    return {"examples": EXAMPLES, "example": next((each for each in EXAMPLES if each.name == name), None)}
