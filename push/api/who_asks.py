"""Who asks over HTTP: the credentials that a request shows, what they open, and how often they may ask."""

from collections.abc import Mapping
from typing import Annotated, cast

import starlette.types
from fastapi import Depends, Request, Security
from fastapi.security import (
    APIKeyHeader,
    HTTPAuthorizationCredentials,
    HTTPBearer,
    SecurityScopes,
)

from bellwire.push.access.api_keys import API_KEY_PREFIX
from bellwire.push.access.tokens import Actor
from bellwire.push.api.server.admission import let_in
from bellwire.push.parts import Relay
from bellwire.signaling.errors import Forbidden, Unauthenticated
from bellwire.signaling.identifiers import DeviceId
from bellwire.signaling.tokens import Scope

_bearer = HTTPBearer(
    auto_error=False,
    scheme_name="bearer",
    description="An API key (`DIR/api-key` of the relay, or one of `POST /v1/keys`) with the scope that is"
    " named here, or, where that is `calls`, an access token from `POST /v1/tokens`",
)
_header = APIKeyHeader(
    name="X-API-Key", auto_error=False, scheme_name="api_key", description="An API key"
)


async def relay_of(request: Request) -> Relay:
    """The relay that is asked."""
    return cast("Relay", request.app.state.relay)


RelayDep = Annotated[Relay, Depends(relay_of)]


async def authenticate_any(
    needed: SecurityScopes,
    request: Request,
    relay: RelayDep,
    bearer: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
    header: Annotated[str | None, Depends(_header)],
) -> Actor:
    """Who asks, be it with a connect token for whichever call. An API key has the scope that the route
    names.

    Raises:
        Unauthenticated: no credentials were shown, or no good ones.
        Forbidden: the API key lacks the scope.
        TooManyRequests: as `take_turn`.
    """
    (scope,) = needed.scopes
    credentials = None if bearer is None else bearer.credentials
    actor = await authenticate_by(
        relay, request.scope, Scope(scope), api_key=header, bearer=credentials
    )
    take_turn(relay, actor)
    return actor


def take_turn(relay: Relay, actor: Actor) -> None:
    """Counts a request of who shows an access token: an app holds one, as a device its connection.

    Raises:
        TooManyRequests: it is one too many.
    """
    if actor.token is not None and actor.identity is not None:
        relay.devices.rate_limits.admit(actor.identity, actor.device)


CALL_SCOPE = Scope.CALLS
"""What opens all that access tokens may ask too, to API keys: also what is answered without FastAPI."""

AnyActorDep = Annotated[Actor, Security(authenticate_any, scopes=[CALL_SCOPE])]


async def authenticate(
    request: Request, actor: Annotated[Actor, Depends(authenticate_any)]
) -> Actor:
    """Who asks.

    Raises:
        Unauthenticated: no credentials were shown, or no good ones.
        Forbidden: a connect token was shown, and this is not of its call; or as `authenticate_any`.
    """
    actor.may_reach(request.path_params.get("call_sid"))
    return actor


async def authenticate_by(
    relay: Relay,
    connection: starlette.types.Scope,
    needed: Scope,
    *,
    authorization: str | None = None,
    api_key: str | None = None,
    bearer: str | None = None,
) -> Actor:
    """Who asks, as `identify` says unless that is known already, and may ask for this; lets the connection
    in.

    Raises:
        Unauthenticated: as `identify`.
        Forbidden: an API key without the scope was shown.
        Unavailable, TooManyRequests: as `let_in`.
    """
    actor: Actor | None = connection.get("user")
    if actor is None:
        actor = await identify(relay, authorization, api_key, bearer)
    try:
        actor.must_have(needed)
    except Forbidden as refusal:
        raise relay.access.ended.counted("scope-missing", refusal) from None
    let_in(connection, actor.identity)
    return actor


async def identify(
    relay: Relay, authorization: str | None, api_key: str | None, bearer: str | None
) -> Actor:
    """Who asks, by an `Authorization` header, an API key or a bearer's credentials, as they are shown.

    Raises:
        Unauthenticated: none were shown, or no good ones.
    """
    shown = api_key or bearer_of(authorization) or bearer
    if not shown:
        raise Unauthenticated(
            "show an API key or an access token: `Authorization: Bearer ...`, or `X-API-Key: ...`"
        )
    if api_key is not None or shown.startswith(API_KEY_PREFIX):
        return await relay.access.api_keys.check(shown)
    actor = await relay.access.tokens.check(shown)
    if actor.token is not None and actor.identity is not None:
        await relay.access.ended.admit(actor.token, actor.identity, actor.device)
    return actor


def bearer_of(authorization: str | None) -> str | None:
    """The credentials of an `Authorization` header; None where there is none, or one of another scheme."""
    scheme, _, credentials = (authorization or "").partition(" ")
    return credentials.strip() if scheme.lower() == "bearer" else None


def header_text(headers: Mapping[bytes, bytes], name: bytes) -> str | None:
    """A header's value as ASGI gives it; None where it is not there."""
    value = headers.get(name)
    return None if value is None else value.decode("latin-1")


async def settle_device(relay: Relay, actor: Actor, device: str | None) -> None:
    """Sees that a token for any device of an identity acts only as one that the identity has, and ends
    with it.

    Raises:
        Forbidden: the device is not the identity's.
    """
    if device is None or actor.token is None or actor.identity is None or actor.device is not None:
        return
    await relay.access.ended.act_as(actor.token, actor.identity, DeviceId(device))


ActorDep = Annotated[Actor, Security(authenticate, scopes=[CALL_SCOPE])]
"""Who moves calls: a server, or a token of an identity or device."""


async def require_server(actor: Annotated[Actor, Depends(authenticate)]) -> Actor:
    """A server, which shows an API key. A route names the scope that the key must have with
    `Security(require_server, scopes=[...])`.

    Raises:
        Forbidden: an access token was shown, or the key lacks the scope.
    """
    if not actor.is_server:
        raise Forbidden("this needs an API key, not an access token")
    return actor
