"""The APNs channel with an app on a server that plays APNs, as its tests share it."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from bellwire.config.relay import ApnsApp
from bellwire.push.channels.apns.channel import ApnsChannel
from bellwire.push.channels.apns.connection import KeepAlive
from bellwire.push.channels.payload import PushPayload
from bellwire.push.metrics import Metrics
from bellwire.push.store.rows.outbox import Delivery
from bellwire.signaling.identifiers import DeviceId
from tests.push.apns_server import ApnsServer, Authority, write_team_key

BUNDLE = "com.example.door"
KEY_ID, TEAM_ID = "KEY4567890", "TEAM567890"
TOKEN = "0a" * 32
CALL = "CA" + "0123456789abcdef" * 2
KEYS = {"twi_message_type": "twilio.voice.call", "twi_call_sid": CALL, "twi_from": "client:Zoë"}
BODY = json.dumps({"aps": {}, **KEYS}, ensure_ascii=False)


def utc_now() -> datetime:
    return datetime.now(UTC)


class Apns:
    """A server, and the files of an app that may push to it."""

    def __init__(self, server: ApnsServer, authority: Authority, folder: Path) -> None:
        self.server = server
        self.authority = authority
        self.key_file = folder / "AuthKey.p8"
        self.public_key = write_team_key(self.key_file)
        self.metrics = Metrics()

    def app(self, **settings: Any) -> ApnsApp:  # noqa: ANN401 - settings
        """An app with a key, unless it is given a certificate."""
        key = {"key_file": self.key_file, "key_id": KEY_ID, "team_id": TEAM_ID}
        own = {} if "certificate_file" in settings else key
        where = {"server": f"127.0.0.1:{self.server.port}", "ca_file": self.authority.file}
        return ApnsApp(**{"connections": 1, **where, **own, **settings})

    def channel(
        self,
        apps: dict[str, ApnsApp] | None = None,
        *,
        now: Callable[[], datetime] = utc_now,
        keep: KeepAlive | None = None,
    ) -> ApnsChannel:
        payload = PushPayload("AC" + "0" * 32, lambda *_: "connect-token")
        known = {BUNDLE: self.app()} if apps is None else apps
        return ApnsChannel(known, payload, self.metrics, now=now, keep=keep)

    @asynccontextmanager
    async def running(
        self,
        apps: dict[str, ApnsApp] | None = None,
        *,
        now: Callable[[], datetime] = utc_now,
        keep: KeepAlive | None = None,
        warm: int = 1,
    ) -> AsyncIterator[ApnsChannel]:
        """A channel at work, once it has this many connections."""
        channel = self.channel(apps, now=now, keep=keep)
        async with at_work(channel):
            await self.server.until(lambda: self.server.opened >= warm)
            yield channel

    def fault(self, app: str = BUNDLE) -> float | None:
        labels = {"channel": "apns", "app": app}
        return self.metrics.registry.get_sample_value("bellwire_push_app_fault", labels)


@asynccontextmanager
async def at_work(channel: ApnsChannel) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(channel.run())
        yield
        running.cancel()


def delivery(event: str = "event-1", life_s: float = 60, **fields: Any) -> Delivery:  # noqa: ANN401
    """A delivery of the app above."""
    expires_at = utc_now() + timedelta(seconds=life_s)
    made = Delivery(
        event,
        DeviceId("phone"),
        "apns",
        BODY,
        int(expires_at.timestamp() * 1000),
        CALL,
        BUNDLE,
        "production",
        TOKEN,
    )
    return replace(made, **fields)


async def send_all(channel: ApnsChannel, count: int, left_s: float = 60) -> list[str]:
    """Sends many at once, and returns their apns-ids."""
    async with asyncio.TaskGroup() as tasks:
        sending = [
            tasks.create_task(channel.send(delivery(f"event-{number}"), left_s))
            for number in range(count)
        ]
    return [task.result() for task in sending]
