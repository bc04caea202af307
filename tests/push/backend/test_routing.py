"""A caller who goes while the backend thinks: the call that this would have cancelled is not made."""

from collections.abc import AsyncIterator
from functools import partial

import pytest

from bellwire.push.access.tokens import Actor
from bellwire.push.backend.requests import BackendRequests, OwnHost
from bellwire.push.backend.voice_url import VoiceUrl
from bellwire.push.calls.invites import Invite
from bellwire.push.calls.routing import Routing
from bellwire.push.store.engine.database import Database
from bellwire.push.store.rows.devices import ChannelRow, DeviceRow, put_device
from bellwire.signaling.calls.commands import NewCall
from bellwire.signaling.calls.dials import Callback
from bellwire.signaling.errors import HungUp
from bellwire.signaling.identifiers import DeviceId, Identity
from tests.push.clock import Clock
from tests.push.parts import Parts, parts_on
from tests.push.twiml_backend import AUTH_TOKEN
from tests.push.webhook_receiver import Answer, Backend, backend, status

ALICE, BOB = Identity("alice"), Identity("bob")
PHONE, TABLET = DeviceId("alice-phone"), DeviceId("alice-tablet")
DIAL = status(200, body=b"<Response><Dial><Client>bob</Client></Dial></Response>")


@pytest.fixture
async def there() -> AsyncIterator[Backend]:
    async with backend() as here:
        yield here


class Scene:
    """A relay's parts, where alice's two devices are online, and bob has one."""

    def __init__(self, database: Database, clock: Clock, there: Backend) -> None:
        self.parts: Parts = parts_on(database, clock)
        self.clock = clock
        self.requests = BackendRequests(AUTH_TOKEN, OwnHost(there.url, True))
        asked = VoiceUrl(
            self.requests, Callback(there.url), timeout_s=20, account_sid="AC" + "0" * 32
        )
        self.routing = Routing(self.parts.calls, database, voice_url=asked)

    async def prepare(self) -> None:
        for device, whose in ((PHONE, ALICE), (TABLET, ALICE), (DeviceId("bob-1"), BOB)):
            row = DeviceRow(device, whose, (ChannelRow("mqtt"),))
            await self.parts.database.write(partial(put_device, device=row, at_ms=0))
            await self.parts.connections.session_came(device)

    def goes(self, *devices: DeviceId) -> Answer:
        """Answers once these devices have gone."""

        async def answer(*request: object) -> None:
            for device in devices:
                await self.parts.connections.session_went(device)
            await DIAL(*request)  # type: ignore[arg-type] # what an Answer is given

        return answer

    async def call_from(self, device: DeviceId | None) -> str:
        new = NewCall(self.parts.calls.new_sid(), ALICE, (), self.clock.now(), 60, device=device)
        invite = Invite(new, (BOB,), {}, Actor(ALICE, device))
        return (await self.routing.create(invite)).call.call_sid


@pytest.mark.parametrize(
    ("calls_on", "gone", "rings"),
    [
        (PHONE, (), True),
        (PHONE, (TABLET,), True),
        (PHONE, (PHONE,), False),
        (None, (PHONE,), True),
        (None, (PHONE, TABLET), False),
    ],
)
async def test_caller_who_goes_while_the_backend_thinks_rings_nobody(
    database: Database,
    clock: Clock,
    there: Backend,
    calls_on: DeviceId | None,
    gone: tuple[DeviceId, ...],
    rings: bool,
) -> None:
    scene = Scene(database, clock, there)
    await scene.prepare()
    there.answer = scene.goes(*gone)
    try:
        if rings:
            await scene.call_from(calls_on)
        else:
            with pytest.raises(HungUp, match="gone offline"):
                await scene.call_from(calls_on)
    finally:
        await scene.requests.aclose()
    made, _ = await scene.parts.calls.list_of(BOB, count=5, before=0)
    assert len(made) == rings
