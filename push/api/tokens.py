"""`/v1/tokens`: issued and revoked, and the public keys to check tokens with."""

from functools import partial
from typing import Annotated

import structlog
from fastapi import APIRouter, Security
from sqlalchemy import Connection

from bellwire.push.access.tokens import Actor
from bellwire.push.api.services import Services
from bellwire.push.api.who_asks import ServicesDep, require_server
from bellwire.push.store.rows.access import Ended, revoke, revoke_device
from bellwire.push.store.rows.calls import to_ms
from bellwire.signaling.errors import Conflict, InvalidInput, Unauthenticated
from bellwire.signaling.identifiers import DeviceId, Identity
from bellwire.signaling.tokens import Scope
from bellwire.signaling.wire.answers import KeySetAnswer, RevokedTokensAnswer, TokenAnswer
from bellwire.signaling.wire.requests import RevokeTokensRequest, TokenRequest

log = structlog.get_logger(__name__)

router = APIRouter(tags=["tokens"])

ServerDep = Annotated[Actor, Security(require_server, scopes=[Scope.TOKENS])]


@router.post("/v1/tokens", status_code=201)
async def issue(body: TokenRequest, services: ServicesDep, _: ServerDep) -> TokenAnswer:
    """An access token for one identity, to hand to its app. One for a device lives with it: it is good
    while the device is registered for the identity."""
    identity = Identity(body.identity)
    device = None if body.device_id is None else DeviceId(body.device_id)
    owner = None if device is None else await services.devices.identity_of(device)
    if owner not in (None, identity):
        raise Conflict(f"{device} is another identity's device: a token is for devices of its own")
    # What another relay has revoked by now was revoked before.
    await services.access.look()
    token, expires_at = services.tokens.issue(identity, device, body.ttl)
    return TokenAnswer(token=token, expires_at=expires_at)


@router.post("/v1/tokens/revoke")
async def revoke_tokens(
    body: RevokeTokensRequest, services: ServicesDep, _: ServerDep
) -> RevokedTokensAnswer:
    """Ends access tokens before their time, at every relay within a second, and closes their streams.
    Nothing else is taken: a device keeps its access to the broker until it is removed."""
    revoked = RevokedTokensAnswer(
        identity=body.identity,
        device_id=body.device_id,
        jti=body.jti if body.token is None else await _jti(services, body.token),
    )
    at_ms = to_ms(services.calls.now())
    await services.database.write(partial(_revoke, revoked=revoked, at_ms=at_ms))
    await services.access.look()
    log.info("access tokens revoked", **revoked.model_dump(exclude_none=True))
    return revoked


@router.get("/.well-known/jwks.json")
async def jwks(services: ServicesDep) -> KeySetAnswer:
    """The keys that sign access tokens and caller tokens, as a JSON Web Key Set (RFC 7517)."""
    return await services.tokens.key_set()


async def _jti(services: Services, token: str) -> str:
    try:
        return (await services.tokens.read(token)).jti
    except Unauthenticated as error:
        raise InvalidInput(f"token: {error.detail}, so there is nothing to revoke") from error


def _revoke(connection: Connection, revoked: RevokedTokensAnswer, at_ms: int) -> None:
    if revoked.device_id is not None:
        revoke_device(connection, DeviceId(revoked.device_id), at_ms)
    elif revoked.identity is not None:
        revoke(connection, Ended.IDENTITY, [revoked.identity], at_ms)
    elif revoked.jti is not None:
        revoke(connection, Ended.TOKEN, [revoked.jti], at_ms)
