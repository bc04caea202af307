"""What Twilio posts, signed by its own library, and the rule that takes it, on a database."""

import hashlib
import json
from typing import Any

from sqlalchemy import Connection, select
from twilio.request_validator import RequestValidator

from bellwire.push.calls.rate_limits import RateLimits
from bellwire.push.calls.twilio_notifications import Forwarded, TwilioNotifications
from bellwire.push.delivery.outbox import Outbox
from bellwire.push.metrics import Metrics
from bellwire.push.store.engine.database import Database
from bellwire.push.store.rows.devices import ChannelRow, DeviceRow, put_device
from bellwire.push.store.tables import outbox
from bellwire.signaling.identifiers import DeviceId, Identity
from tests.push.clock import Clock
from tests.push.fcm_parts import APP
from tests.push.support import fresh

AUTH_TOKEN = "0123456789abcdef0123456789abcdef"
PUBLIC_URL = "https://relay.example.org/bellwire"
PATH = "/v1/twilio/notifications"
TWILIO = RequestValidator(AUTH_TOKEN)


def keys(to: str, **more: str) -> dict[str, str]:
    """What Twilio posts."""
    sid = hashlib.md5(fresh("call").encode(), usedforsecurity=False).hexdigest()
    return {
        "twi_account_sid": "AC" + "3" * 32,
        "twi_answer_timeout": "30",
        "twi_bridge_token": "e30.e30.sig",
        "twi_call_sid": f"CA{sid}",
        "twi_from": "client:alice",
        "twi_to": f"client:{to}",
        "twi_message_id": f"RU{sid}",
        "twi_message_type": "twilio.voice.call",
        "twi_stir_status": "A",
        "twi_params": "name=Zo%C3%AB&a=1%2B2",
        **more,
    }


def signed(body: bytes, base: str = PUBLIC_URL, query: str = "") -> tuple[str, dict[str, str]]:
    """The path to post to and the headers, as Twilio's library signs a JSON body."""
    path = f"{PATH}?{query}bodySHA256={TWILIO.compute_hash(body.decode())}"
    signature = TWILIO.compute_signature(base + path, {})
    assert TWILIO.validate(base + path, body.decode(), signature)
    return path, {"X-Twilio-Signature": signature, "Content-Type": "application/json"}


class Scene:
    """The rule alone, on a database, with an outbox that does not run: what is owed stays to be seen."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        token: str | None = AUTH_TOKEN,
        device_per_s: float = 1000,
    ) -> None:
        self.database = database
        self.clock = clock
        box = Outbox(database, {}, Metrics(), now=clock.now, sleep=clock.sleep)
        rate_limits = RateLimits(1000, device_per_s, clock=lambda: clock.now().timestamp())
        self.rule = TwilioNotifications(
            database, box, ("mqtt", "apns", "fcm"), token, rate_limits, now=clock.now
        )

    async def register(self, identity: str, *channels: ChannelRow) -> None:
        device = DeviceRow(DeviceId(fresh("device")), Identity(identity), channels)
        await self.database.write(lambda c: put_device(c, device, 0))

    async def post(self, document: dict[str, str], base: str = PUBLIC_URL) -> Forwarded:
        body = json.dumps(document).encode()
        path, headers = signed(body, base)
        return await self.rule.forward(base + path, headers["X-Twilio-Signature"], body)

    async def owed(self) -> list[Any]:
        def work(connection: Connection) -> list[Any]:
            return list(connection.execute(select(outbox).order_by(outbox.c.kind)).all())

        return await self.database.read(work)


IPHONE = ChannelRow("apns", "org.example.ios", "production", "a" * 64)
ANDROID = ChannelRow("fcm", APP, None, "token")
