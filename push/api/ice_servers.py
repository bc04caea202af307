"""`/v1/ice-servers`: what calls are connected by."""

from fastapi import APIRouter

from bellwire.push.api.services import AnyActorDep, ServicesDep
from bellwire.signaling.wire.answers import IceServersAnswer

router = APIRouter(tags=["media"])


@router.get("/v1/ice-servers")
async def ice_servers(services: ServicesDep, actor: AnyActorDep) -> IceServersAnswer:
    """The STUN and TURN servers to connect calls by, ready for `new RTCPeerConnection`. A TURN server
    asks for the credentials when it is first used: ask again for each call, and before ICE restarts."""
    return services.ice_servers.of(actor)
