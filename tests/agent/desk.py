"""A desk station on simulated pins, its scripted relay, and the wire between it and the broker."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from pydantic import SecretStr

from bellwire.agent.calls.call import CallRecord, CallStatus
from bellwire.broker.accounts.credentials import DynamicSecurity
from bellwire.broker.session.address import BrokerAddress
from bellwire.broker.session.session import Session
from bellwire.config.agent.panel import PanelSettings
from bellwire.config.agent.settings import AgentSettings, BrokerSettings
from bellwire.signaling.calls.events import CallTimeout
from bellwire.signaling.identifiers import DeviceId
from tests.agent.scripted_relay import ScriptedRelay, about, fresh_sid, invite, scripted_relay
from tests.broker.running import RunningBroker, Wire
from tests.conftest import Station, running_station
from tests.system.scene import Diary, Record

PANEL = PanelSettings.model_validate(
    {
        "call_buttons": {
            "lobby": {"pin": 17, "to": "lobby", "custom_parameters": {"door": "back & front"}}
        },
        "answer": {"pin": 23},
        "hang_up": {"pin": 22},
        # One long ring, so that every edge of the pin is a start or a stop.
        "ringer": {"pin": 18, "cadence_s": [60, 0.01]},
        "status_light": {"pin": 24},
    }
)


@dataclass
class Exchange:
    """A broker, and the right to let devices in."""

    broker: RunningBroker
    session: Session
    provisioner: DynamicSecurity
    devices: int = 0

    async def admit(self) -> BrokerAddress:
        """The address and credentials of a device that no other test of this broker is."""
        await self.session.wait_connected()  # a test before may have killed the broker
        self.devices += 1
        name = f"desk-{self.devices}"
        password = await self.provisioner.grant(DeviceId(name))
        here = self.broker.address
        return BrokerAddress(here.host, here.port, username=name, password=password)


@dataclass
class Desk:
    """The station and everything around it."""

    station: Station
    relay: ScriptedRelay
    wire: Wire
    diary: Diary
    losses: Record = field(default_factory=Record)
    _heard: asyncio.Queue[str] = field(default_factory=asyncio.Queue)

    def __post_init__(self) -> None:
        self.station.agent.link.on_disconnected(lambda: self.losses.note("lost"))
        self.station.agent.link.listen(lambda event, _: self._heard.put_nowait(event.id))

    @property
    def call(self) -> CallRecord | None:
        return self.station.agent.phone.call

    @property
    def rings(self) -> int:
        """How often the ringer's pin went up."""
        return sum(high for high, _ in self.diary.edges)

    async def press(self, key: str) -> None:
        await self.station.fingers.press(key)

    async def ring(self, **more: Any) -> str:  # noqa: ANN401
        """Has it ring; returns the call's SID."""
        sid = fresh_sid()
        await self.relay.say(invite(sid, **more))
        await self.until(sid, CallStatus.PENDING)
        await self.relay.asked("received", sid)
        return sid

    async def ring_and_answer(self) -> str:
        sid = await self.ring()
        await self.press("a")
        await self.until(sid, CallStatus.OPEN)
        return sid

    async def until(self, sid: str, status: CallStatus) -> CallRecord:
        call, _ = await self.diary.until(sid, status)
        return call

    async def lost(self) -> None:
        """Waits until it has lost its connection."""
        await self.losses.until(lambda _: True, "the loss of the connection")

    async def has_taken_all(self) -> None:
        """Waits until the agent is through with everything that was said to it so far."""
        marker = CallTimeout(**about(fresh_sid()))
        await self.relay.say(marker)
        while await self._heard.get() != marker.id:
            pass


def settings_of(address: BrokerAddress) -> AgentSettings:
    assert address.username is not None
    assert address.password is not None
    return AgentSettings(
        device_id=address.username,
        identity="desk",
        broker=BrokerSettings(
            url=address.url, username=address.username, password=SecretStr(address.password)
        ),
        panel=PANEL,
        call_timeout_s=20,
    )


@asynccontextmanager
async def desk_at(exchange: Exchange, *, over_wire: bool = False) -> AsyncIterator[Desk]:
    address = await exchange.admit()
    device = DeviceId(str(address.username))
    async with (
        scripted_relay(exchange.broker.address, device) as relay,
        Wire(address) as wire,
        running_station(settings_of(wire.address if over_wire else address)) as station,
    ):
        yield Desk(station, relay, wire, Diary(station))
