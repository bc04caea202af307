"""`/v1/groups`: named groups that a call may be for. Servers only."""

from typing import Annotated

from fastapi import APIRouter, Path, Response, Security

from bellwire.push.access.tokens import Actor
from bellwire.push.api.who_asks import ServicesDep, require_server
from bellwire.signaling.identifiers import GroupNameField
from bellwire.signaling.tokens import Scope
from bellwire.signaling.wire.answers import GroupAnswer, GroupListAnswer
from bellwire.signaling.wire.requests import GroupRequest

router = APIRouter(prefix="/v1/groups", tags=["groups"])

ServerDep = Annotated[Actor, Security(require_server, scopes=[Scope.GROUPS])]

NamePath = Annotated[GroupNameField, Path(description="1 to 64 of `A-Z a-z 0-9 . _ -`")]


@router.get("")
async def list_groups(services: ServicesDep, _: ServerDep) -> GroupListAnswer:
    """All groups, by name."""
    return GroupListAnswer(groups=tuple(await services.groups.all()))


@router.put("/{name}", responses={201: {"model": GroupAnswer, "description": "It is new"}})
async def put(
    name: NamePath, body: GroupRequest, response: Response, services: ServicesDep, _: ServerDep
) -> GroupAnswer:
    """Gives a group its members, in place of those it had. A call to it is for all but the caller."""
    answer, is_new = await services.groups.put(name, body)
    response.status_code = 201 if is_new else 200
    return answer


@router.get("/{name}")
async def get(name: NamePath, services: ServicesDep, _: ServerDep) -> GroupAnswer:
    """A group and its members."""
    return await services.groups.get(name)


@router.delete("/{name}", status_code=204)
async def delete(name: NamePath, services: ServicesDep, _: ServerDep) -> None:
    """Removes a group. Calls made to it go on."""
    await services.groups.delete(name)
