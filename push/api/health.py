"""Health and metrics, for supervisors; without credentials, and without anything secret: what tells of
each device is for keys of the scope `metrics`."""

from typing import Annotated

from fastapi import APIRouter, Response, Security
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel
from sqlalchemy import text

from bellwire.push.access.tokens import Actor
from bellwire.push.api.who_asks import ServicesDep, require_server
from bellwire.signaling.errors import Unavailable
from bellwire.signaling.tokens import Scope

router = APIRouter(tags=["health"])
for_keys = APIRouter(tags=["health"])
"""What asks for credentials, and refuses as all other routes do."""


class Health(BaseModel):
    """The process answers."""

    status: str = "ok"


class Readiness(BaseModel):
    """What the relay needs, and that it is there."""

    database: bool
    broker: bool
    disk: bool
    """Whether the data folder takes what is written; where nothing is written there, always."""


@router.get("/healthz")
async def healthz() -> Health:
    """Whether the process lives: restart it if this does not answer."""
    return Health()


@router.get("/readyz")
async def readyz(services: ServicesDep) -> Readiness:
    """Whether it can carry calls: send it no traffic while this is 503."""
    await services.database.read(lambda c: c.execute(text("SELECT 1")).scalar())
    if not services.session.connected:
        raise Unavailable("the broker is not connected", database=True, broker=False)
    problem = (await services.disk.state()).problem if services.writes_to_disk else None
    if problem is not None:
        raise Unavailable(problem, database=True, broker=True, disk=False)
    return Readiness(database=True, broker=True, disk=True)


@router.get("/metrics", response_class=Response)
async def metrics(services: ServicesDep) -> Response:
    """Counters in Prometheus' text format."""
    services.metrics.broker_connected.set(services.session.connected)
    services.metrics.disk_free.set((await services.disk.state()).free_bytes)
    return Response(services.metrics.exposition(), media_type=CONTENT_TYPE_LATEST)


@for_keys.get("/metrics/devices", response_class=Response)
async def device_metrics(
    services: ServicesDep,
    _: Annotated[Actor, Security(require_server, scopes=[Scope.METRICS])],
) -> Response:
    """Each registered device in Prometheus' text format: is it there, when was it last, its faults."""
    exposition = await services.device_metrics.exposition()
    return Response(exposition, media_type=CONTENT_TYPE_LATEST)
