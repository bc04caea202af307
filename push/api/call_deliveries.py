"""`/v1/calls/{sid}/deliveries`: what became of a call on its way to the devices."""

from functools import partial

from fastapi import APIRouter

from push.api.calls import SidPath
from push.api.services import ActorDep, ServicesDep
from push.delivery_report import report_deliveries
from signaling.answers import CallDeliveriesAnswer
from signaling.identifiers import CallSid

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
