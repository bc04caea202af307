"""An FCM channel at work against a server that plays Google, and a delivery to send on it."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

from bellwire.config.relay import FcmApp
from bellwire.config.waiting import Sleep
from bellwire.push.channels.fcm.channel import FcmChannel
from bellwire.push.channels.payload import PushPayload
from bellwire.push.metrics import Metrics
from bellwire.push.store.rows.outbox import Delivery
from bellwire.signaling.identifiers import DeviceId
from tests.push.fcm_server import FcmServer

APP = "org.example.intercom"
CALL_SID = "CA" + "1" * 32
ACCOUNT_SID = "AC" + "2" * 32
DATA = {"twi_message_type": "twilio.voice.call", "twi_to": "client:zoë", "twi_params": "a=1%2B2"}


def utc_now() -> datetime:
    return datetime.now(UTC)


def payload() -> PushPayload:
    return PushPayload(ACCOUNT_SID, lambda *_: "a-connect-token")


def to(phone: str = "phone", app: str = APP, call_sid: str = CALL_SID) -> Delivery:
    """A delivery to the phone with this token."""
    return Delivery(
        "event", DeviceId("phone"), "fcm", json.dumps(DATA), 0, call_sid, app, None, phone
    )


def app_at(google: FcmServer, **settings: object) -> FcmApp:
    """An app whose Google is this server."""
    given = {
        "credentials_file": google.account_file(),
        "server": google.url,
        "ca_file": google.ca_file,
        **settings,
    }
    return FcmApp.model_validate(given)


@asynccontextmanager
async def running_channel(
    *googles: FcmServer,
    apps: dict[str, FcmApp] | None = None,
    metrics: Metrics | None = None,
    now: Callable[[], datetime] = utc_now,
    sleep: Sleep = asyncio.sleep,
) -> AsyncIterator[FcmChannel]:
    """A channel with one app at the server, or with these."""
    apps = apps or {APP: app_at(googles[0])}
    channel = FcmChannel(apps, payload(), metrics or Metrics(), now=now, sleep=sleep)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(channel.run())
        try:
            yield channel
        finally:
            running.cancel()


@asynccontextmanager
async def google_in(folder: Path) -> AsyncIterator[FcmServer]:
    """A server that plays Google, with its files in this folder."""
    async with FcmServer(folder).serving() as google:
        yield google


def gauge(metrics: Metrics, app: str = APP) -> float | None:
    """Whether an app is at fault, as Prometheus is told."""
    return metrics.registry.get_sample_value(
        "bellwire_push_app_fault", {"channel": "fcm", "app": app}
    )
