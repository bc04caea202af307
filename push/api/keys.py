"""`/v1/keys`: the API keys of servers. Each route says which scope opens it, here and elsewhere."""

from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, Path, Security

from bellwire.push.access.tokens import Actor
from bellwire.push.api.who_asks import ServicesDep, require_server
from bellwire.signaling.identifiers import GroupNameField
from bellwire.signaling.tokens import Scope
from bellwire.signaling.wire.answers import ApiKeyListAnswer, NewApiKeyAnswer
from bellwire.signaling.wire.requests import ApiKeyRequest, RotateKeyRequest

router = APIRouter(prefix="/v1/keys", tags=["keys"])

AdminDep = Annotated[Actor, Security(require_server, scopes=[Scope.ADMIN])]
NamePath = Annotated[GroupNameField, Path(description="1 to 64 of `A-Z a-z 0-9 . _ -`")]


@router.get("")
async def list_keys(services: ServicesDep, _: AdminDep) -> ApiKeyListAnswer:
    """All API keys, by name, without the keys themselves."""
    return ApiKeyListAnswer(keys=tuple(await services.api_keys.all()))


@router.post("", status_code=201)
async def add(body: ApiKeyRequest, services: ServicesDep, _: AdminDep) -> NewApiKeyAnswer:
    """Makes an API key. It is shown in this answer only, and good at every relay within a second."""
    return await services.api_keys.add(body.name, body.scopes, _life(body.expires_in))


@router.post("/{name}/rotate")
async def rotate(
    name: NamePath, services: ServicesDep, _: AdminDep, body: RotateKeyRequest | None = None
) -> NewApiKeyAnswer:
    """Makes a key in place of the one of this name and scopes, which is good no more within a second."""
    return await services.api_keys.rotate(name, _life(None if body is None else body.expires_in))


@router.delete("/{name}", status_code=204)
async def revoke(name: NamePath, services: ServicesDep, _: AdminDep) -> None:
    """Ends an API key, at every relay within a second, and closes its streams. The last one with the scope
    `admin` is kept."""
    await services.api_keys.revoke(name)


def _life(expires_in_s: int | None) -> timedelta | None:
    return None if expires_in_s is None else timedelta(seconds=expires_in_s)
