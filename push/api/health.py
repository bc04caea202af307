"""Health and metrics, for supervisors; without credentials, and without anything secret."""

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel
from sqlalchemy import text

from push.api.services import ServicesDep
from signaling.errors import Unavailable

router = APIRouter(tags=["health"])


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
