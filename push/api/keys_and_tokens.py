"""`/v1/keys`, the API keys of servers, and `/v1/tokens`, the access tokens of apps: made and ended; and the
public keys to check tokens with. Each route says which scope of an API key opens it, here and elsewhere."""

from datetime import timedelta
from functools import partial
from typing import Annotated

import structlog
from fastapi import APIRouter, Path, Security
from sqlalchemy import Connection

from bellwire.push.access.tokens import Actor
from bellwire.push.api.who_asks import RelayDep, require_server
from bellwire.push.parts import Relay
from bellwire.push.store.rows.access import Ended, revoke_device
from bellwire.push.store.rows.access import revoke as end_tokens
from bellwire.push.store.tables import to_ms
from bellwire.signaling.errors import Conflict, InvalidInput, Unauthenticated
from bellwire.signaling.identifiers import DeviceId, GroupNameField, Identity
from bellwire.signaling.tokens import Scope
from bellwire.signaling.wire.answers import (
    ApiKeyListAnswer,
    KeySetAnswer,
    NewApiKeyAnswer,
    RevokedTokensAnswer,
    TokenAnswer,
)
from bellwire.signaling.wire.requests import (
    ApiKeyRequest,
    RevokeTokensRequest,
    RotateKeyRequest,
    TokenRequest,
)

log = structlog.get_logger(__name__)

router = APIRouter(prefix="/v1/keys", tags=["keys"])
tokens = APIRouter(tags=["tokens"])

AdminDep = Annotated[Actor, Security(require_server, scopes=[Scope.ADMIN])]
NamePath = Annotated[GroupNameField, Path(description="1 to 64 of `A-Z a-z 0-9 . _ -`")]


@router.get("")
async def list_keys(relay: RelayDep, _: AdminDep) -> ApiKeyListAnswer:
    """All API keys, by name, without the keys themselves."""
    return ApiKeyListAnswer(keys=tuple(await relay.access.api_keys.all()))


@router.post("", status_code=201)
async def add(body: ApiKeyRequest, relay: RelayDep, _: AdminDep) -> NewApiKeyAnswer:
    """Makes an API key. It is shown in this answer only, and good at every relay within a second."""
    return await relay.access.api_keys.add(body.name, body.scopes, _life(body.expires_in))


@router.post("/{name}/rotate")
async def rotate(
    name: NamePath, relay: RelayDep, _: AdminDep, body: RotateKeyRequest | None = None
) -> NewApiKeyAnswer:
    """Makes a key in place of the one of this name and scopes, which is good no more within a second."""
    return await relay.access.api_keys.rotate(
        name, _life(None if body is None else body.expires_in)
    )


@router.delete("/{name}", status_code=204)
async def revoke(name: NamePath, relay: RelayDep, _: AdminDep) -> None:
    """Ends an API key, at every relay within a second, and closes its streams. The last one with the scope
    `admin` is kept."""
    await relay.access.api_keys.revoke(name)


def _life(expires_in_s: int | None) -> timedelta | None:
    return None if expires_in_s is None else timedelta(seconds=expires_in_s)


TokensDep = Annotated[Actor, Security(require_server, scopes=[Scope.TOKENS])]


@tokens.post("/v1/tokens", status_code=201)
async def issue(body: TokenRequest, relay: RelayDep, _: TokensDep) -> TokenAnswer:
    """An access token for one identity, to hand to its app. One for a device lives with it: it is good
    while the device is registered for the identity."""
    identity = Identity(body.identity)
    device = None if body.device_id is None else DeviceId(body.device_id)
    owner = None if device is None else await relay.devices.registered.identity_of(device)
    if owner not in (None, identity):
        raise Conflict(f"{device} is another identity's device: a token is for devices of its own")
    # What another relay has revoked by now was revoked before.
    await relay.access.ended.look()
    token, expires_at = relay.access.tokens.issue(identity, device, body.ttl)
    return TokenAnswer(token=token, expires_at=expires_at)


@tokens.post("/v1/tokens/revoke")
async def revoke_tokens(
    body: RevokeTokensRequest, relay: RelayDep, _: TokensDep
) -> RevokedTokensAnswer:
    """Ends access tokens before their time, at every relay within a second, and closes their streams.
    Nothing else is taken: a device keeps its access to the broker until it is removed."""
    revoked = RevokedTokensAnswer(
        identity=body.identity,
        device_id=body.device_id,
        jti=body.jti if body.token is None else await _jti(relay, body.token),
    )
    at_ms = to_ms(relay.calls.calls.now())
    await relay.ground.database.write(partial(_revoke, revoked=revoked, at_ms=at_ms))
    await relay.access.ended.look()
    log.info("access tokens revoked", **revoked.model_dump(exclude_none=True))
    return revoked


@tokens.get("/.well-known/jwks.json")
async def jwks(relay: RelayDep) -> KeySetAnswer:
    """The keys that sign access tokens and caller tokens, as a JSON Web Key Set (RFC 7517)."""
    return await relay.access.tokens.key_set()


async def _jti(relay: Relay, token: str) -> str:
    try:
        return (await relay.access.tokens.read(token)).jti
    except Unauthenticated as error:
        raise InvalidInput(f"token: {error.detail}, so there is nothing to revoke") from error


def _revoke(connection: Connection, revoked: RevokedTokensAnswer, at_ms: int) -> None:
    if revoked.device_id is not None:
        revoke_device(connection, DeviceId(revoked.device_id), at_ms)
    elif revoked.identity is not None:
        end_tokens(connection, Ended.IDENTITY, [revoked.identity], at_ms)
    elif revoked.jti is not None:
        end_tokens(connection, Ended.TOKEN, [revoked.jti], at_ms)
