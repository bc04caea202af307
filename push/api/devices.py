"""`/v1/devices`: what can be rung. Servers only."""

from typing import Annotated

from fastapi import APIRouter, Path, Response, Security

from bellwire.push.access.tokens import Actor
from bellwire.push.api.who_asks import ServicesDep, require_server
from bellwire.signaling.identifiers import DeviceId, DeviceIdField
from bellwire.signaling.tokens import Scope
from bellwire.signaling.wire.answers import DeviceAnswer, DeviceListAnswer
from bellwire.signaling.wire.requests import DeviceRequest

router = APIRouter(prefix="/v1/devices", tags=["devices"])

ServerDep = Annotated[Actor, Security(require_server, scopes=[Scope.DEVICES])]

DevicePath = Annotated[DeviceIdField, Path(description="1 to 64 of `A-Z a-z 0-9 . _ -`")]


@router.get("")
async def list_devices(services: ServicesDep, _: ServerDep) -> DeviceListAnswer:
    """All devices, by id."""
    devices = services.devices
    return DeviceListAnswer(devices=tuple(await devices.all()), broker_url=devices.broker_url)


@router.put("/{device_id}", responses={201: {"model": DeviceAnswer, "description": "It is new"}})
async def put(
    device_id: DevicePath,
    body: DeviceRequest,
    response: Response,
    services: ServicesDep,
    _: ServerDep,
) -> DeviceAnswer:
    """Registers a device in place of what had its id. With the `mqtt` channel the answer carries
    the broker's URL and the device's credentials, once."""
    answer, is_new = await services.devices.put(DeviceId(device_id), body)
    response.status_code = 201 if is_new else 200
    return answer


@router.get("/{device_id}")
async def get(device_id: DevicePath, services: ServicesDep, _: ServerDep) -> DeviceAnswer:
    """A device, without its secrets."""
    return await services.devices.get(DeviceId(device_id))


@router.delete("/{device_id}", status_code=204)
async def delete(device_id: DevicePath, services: ServicesDep, _: ServerDep) -> None:
    """Removes a device, and its access to the broker."""
    await services.devices.delete(DeviceId(device_id))
