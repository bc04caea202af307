"""`/v1/calls/{sid}/room`: the place where calls of more than five are mixed."""

from fastapi import APIRouter

from bellwire.push.api.calls import SidPath
from bellwire.push.api.services import ActorDep, ServicesDep, settle_device
from bellwire.signaling.identifiers import CallSid
from bellwire.signaling.wire.answers import RoomAnswer
from bellwire.signaling.wire.requests import RoomRequest

router = APIRouter(tags=["media"])


@router.post("/v1/calls/{call_sid}/room")
async def room(
    call_sid: SidPath, body: RoomRequest, services: ServicesDep, actor: ActorDep
) -> RoomAnswer:
    """Brings a user's sound to the room of a call of more than five, in place of what it brought
    before. Offer audio alone, with its candidates: none are taken later."""
    await settle_device(services, actor, body.device_id)
    identity, device = actor.acting_as(body.identity, body.device_id)
    sid = CallSid(call_sid)
    sdp = await services.rooms.enter(sid, identity, device, body.sdp, actor.attestation)
    return RoomAnswer(sdp=sdp)
