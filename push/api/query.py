"""Query parameters that a route does not know are refused: one that is mistyped would else be taken for one
that was left out, such as a filter."""

from collections.abc import Collection
from urllib.parse import parse_qsl

from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from starlette.requests import HTTPConnection

from bellwire.signaling.errors import InvalidInput

_ASKED_BY_NAME = "/v1/"
"""Routes of the API. Whoever watches the others, such as a load balancer, may write into an address what it
likes: a probe that is refused takes a relay that is well out of service."""

_SIGNED = "/v1/twilio/"
"""Whoever signs its URL may, too."""

_SHOWN = 80


def refuse_unknown(query: bytes, known: Collection[str]) -> None:
    """Lets a query string pass that has no other parameters than these.

    Raises:
        InvalidInput: it has; names it and them.
    """
    if not query:
        return
    for name, _ in parse_qsl(query.decode("latin-1"), keep_blank_values=True):
        if name not in known:
            takes = ", ".join(f"`{one}`" for one in known) or "none"
            raise InvalidInput(
                f"unknown query parameter `{name[:_SHOWN]}`: this route takes {takes}",
                parameter=name[:_SHOWN],
                known=[*known],
            )


async def refuse_unknown_query(connection: HTTPConnection) -> None:
    """What every route of HTTP depends on; a `CallRoute`, which takes no query, sees to it itself.

    Raises:
        InvalidInput: as `refuse_unknown`.
    """
    query, route = connection.scope["query_string"], connection.scope.get("route")
    if not query or not isinstance(route, APIRoute):
        return
    if route.path.startswith(_ASKED_BY_NAME) and not route.path.startswith(_SIGNED):
        refuse_unknown(query, _taken_by(route.dependant))


def _taken_by(part: Dependant) -> list[str]:
    """What an endpoint takes from a query, and what it depends on."""
    own = [field.alias for field in part.query_params]
    return [*own, *(name for needed in part.dependencies for name in _taken_by(needed))]
