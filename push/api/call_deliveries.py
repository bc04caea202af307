"""`/v1/calls/{sid}/deliveries`: what became of a call on its way to the devices."""

from functools import partial

from fastapi import APIRouter

from bellwire.push.api.calls import SidPath
from bellwire.push.api.services import ActorDep, ServicesDep
from bellwire.push.delivery.owed import report_deliveries
from bellwire.signaling.identifiers import CallSid
from bellwire.signaling.wire.answers import CallDeliveriesAnswer

router = APIRouter(prefix="/v1/calls", tags=["calls"])


@router.get("/{call_sid}/deliveries")
async def deliveries(
    call_sid: SidPath, services: ServicesDep, actor: ActorDep
) -> CallDeliveriesAnswer:
    """What became of a call's events, by device and channel. A token sees its identity's devices."""
    call = await services.calls.show(CallSid(call_sid), actor)
    return await services.database.read(
        partial(report_deliveries, call=call, whose=actor.identity, now=services.calls.now())
    )
