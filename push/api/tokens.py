"""`/v1/tokens` and the public keys to check tokens with."""

from fastapi import APIRouter

from push.api.services import ServerDep, ServicesDep
from signaling.answers import KeySetAnswer, TokenAnswer
from signaling.identifiers import DeviceId, Identity
from signaling.requests import TokenRequest

router = APIRouter(tags=["tokens"])


@router.post("/v1/tokens", status_code=201)
async def issue(body: TokenRequest, services: ServicesDep, _: ServerDep) -> TokenAnswer:
    """An access token for one identity, to hand to its app."""
    device = None if body.device_id is None else DeviceId(body.device_id)
    token, expires_at = services.tokens.issue(Identity(body.identity), device, body.ttl)
    return TokenAnswer(token=token, expires_at=expires_at)


@router.get("/.well-known/jwks.json")
async def jwks(services: ServicesDep) -> KeySetAnswer:
    """The keys that sign access tokens and caller tokens, as a JSON Web Key Set (RFC 7517)."""
    return await services.tokens.key_set()
