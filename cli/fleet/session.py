"""What the `bellwire fleet` commands have in common: the operator's file, a session with the broker,
and the fleet as the broker retains it. No relay is needed."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from pydantic import BaseModel, ValidationError

from bellwire.broker.fleet.keepers import Keepers
from bellwire.broker.fleet.layer_register import LayerRegister
from bellwire.broker.fleet.reading import read_devices, read_fleet
from bellwire.broker.session.address import parse_broker_url
from bellwire.broker.session.messages import Incoming
from bellwire.broker.session.receiving import ReceivingSession
from bellwire.broker.session.session import NotConnected, Session
from bellwire.cli.process.logs import configure_logs
from bellwire.config.agent.telemetry import Telemetry
from bellwire.config.fleet.layer import Reported
from bellwire.config.fleet.operator import (
    OperatorSettings,
    default_operator_file,
    load_operator_settings,
)
from bellwire.signaling.errors import InvalidInput, Unavailable
from bellwire.signaling.identifiers import DeviceId
from bellwire.signaling.topics import (
    OPERATORS_ECHO,
    PRESENCE_OF_ALL,
    REPORTED_OF_ALL,
    RESULTS_OF_ALL,
    TELEMETRY_OF_ALL,
    LayerName,
    device_of,
    known_as,
    reported_topic,
    telemetry_topic,
)
from bellwire.signaling.wire.station import (
    CommandResult,
    Presence,
    expires_at_s,
    is_online,
    parse_presence,
)

_CONNECT_TIMEOUT_S = 10.0
_READ_TIMEOUT_S = 60.0
_CLAIM_AT_MOST = 2**52
"""Up to here a device's word on a revision counts: above it as many are left, which none can use up."""

OperatorOption = Annotated[
    Path | None,
    typer.Option(
        "--operator",
        metavar="FILE",
        envvar="BELLWIRE_OPERATOR",
        help="The operator's file. [~/.config/bellwire/operator.toml]",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print it as JSON.")]


class FleetDevice:
    """What is known of one device: what it has last said on its topics. `presence_until_s` is until when its
    presence holds, by `clock`; None of an older version's, which it does not confirm."""

    def __init__(self, device_id: DeviceId, clock: Callable[[], float] = time.monotonic) -> None:
        self.device_id = device_id
        self._clock = clock
        self.presence: Presence | None = None
        self.presence_until_s: float | None = None
        self.reported: Reported | None = None
        self.telemetry: Telemetry | None = None

    @property
    def online(self) -> bool:
        """Whether the broker says that it is there, as relays see it."""
        return is_online(self.presence, self.presence_until_s, self._clock())

    @property
    def is_confirmed(self) -> bool:
        """Whether it would be noticed that it is not there any more, even if the broker were killed."""
        return not self.online or self.presence_until_s is not None

    @property
    def never_seen(self) -> bool:
        """Whether it has not come since it was registered."""
        return self.presence is not None and self.presence.never_seen


class RetainedFleet:
    """The devices and their layers, kept up to date while the session runs."""

    def __init__(
        self, session: ReceivingSession, register: LayerRegister, keepers: Keepers
    ) -> None:
        self.session = session
        self.register = register
        self.keepers = keepers
        self.devices: dict[DeviceId, FleetDevice] = {}
        self._heard: dict[DeviceId, FleetDevice] = {}
        self.results: asyncio.Queue[tuple[DeviceId, CommandResult]] = asyncio.Queue()
        self.changed = asyncio.Event()
        self._listeners: list[Callable[[FleetDevice], None]] = []
        self._is_read = asyncio.Event()
        session.receive(PRESENCE_OF_ALL, self._take_presence)
        session.receive(REPORTED_OF_ALL, self._take(Reported, "reported"), retained=False)
        session.receive(TELEMETRY_OF_ALL, self._take(Telemetry, "telemetry"), retained=False)
        session.receive(RESULTS_OF_ALL, self._take_result)
        session.on_connected(self._read)
        session.on_disconnected(self.changed.set)
        register.listen(lambda _: self.changed.set())
        register.go_above(self.highest)
        keepers.listen(self.changed.set)

    def listen(self, listener: Callable[[FleetDevice], None]) -> None:
        """Has `listener` called on the loop with each device that has said something."""
        self._listeners.append(listener)

    async def settle(self) -> None:
        """Waits until the broker has back whatever a relay had stored and it had lost. To be called before
        a write.

        Raises:
            Unavailable: the broker is not there.
        """
        has_lost = any(self.highest(n) > _revision(self.register, n) for n in self.keepers.names)
        self.register.keeps_own_history = not await self.keepers.sync(has_lost=has_lost)
        await self.register.read()

    def highest(self, name: LayerName) -> int:
        """The highest revision of a layer that the broker, a relay or a device has."""
        known = max(
            self.keepers.newest(name), *(layer.revision for layer in self.register.history(name)), 0
        )
        claimed = (
            said.get(known_as(name, device_id), 0)
            for device_id, device in self.devices.items()
            if device.reported is not None
            for said in (device.reported.revisions, device.reported.obeyed)
        )
        return max([known, *(one for one in claimed if one <= _CLAIM_AT_MOST)])

    async def wait_read(self) -> None:
        """Waits until all that the broker retains of the devices is here.

        Raises:
            Unavailable: it takes too long.
        """
        try:
            async with asyncio.timeout(_READ_TIMEOUT_S):
                await self._is_read.wait()
        except TimeoutError as error:
            raise Unavailable(
                f"the broker {self.session.address.url} does not send what it retains of the devices"
            ) from error

    async def read_again(self, devices: Collection[DeviceId]) -> None:
        """Reads again what devices report: of very much at once the broker may have dropped some."""
        try:
            await read_devices(self.session, devices, reported_topic)
        except NotConnected:
            return  # All is read with the next connection.

    async def _read(self) -> None:
        await self.session.catch_up()
        known = [device.device_id for device in self._heard.values() if device.presence]
        topics = {REPORTED_OF_ALL: reported_topic, TELEMETRY_OF_ALL: telemetry_topic}
        await read_fleet(self.session, known, topics)
        self._is_read.set()

    async def next_change(self) -> None:
        """Waits until something is new, be it that a presence is too old."""
        now_s = time.monotonic()
        holding = [d.presence_until_s for d in self.devices.values() if d.online]
        until_s = min((at_s for at_s in holding if at_s is not None), default=None)
        with suppress(TimeoutError):
            async with asyncio.timeout(None if until_s is None else max(0.1, until_s - now_s)):
                await self.changed.wait()
        self.changed.clear()

    def _take_presence(self, message: Incoming) -> None:
        try:
            device_id = device_of(message.topic)
            presence = parse_presence(message.payload) if message.payload else None
        except (InvalidInput, ValidationError):
            return
        device = self._heard.setdefault(device_id, FleetDevice(device_id))
        was_online, before = device.online, device.presence
        device.presence = presence
        device.presence_until_s = expires_at_s(message.expires_in_s, time.monotonic())
        if presence != before or device.online != was_online or device_id not in self.devices:
            self._tell(device)  # else it confirms what is known

    def _take(self, model: type[BaseModel], what: str) -> Callable[[Incoming], None]:
        def take(message: Incoming) -> None:
            try:
                device_id = device_of(message.topic)
                said = model.model_validate_json(message.payload) if message.payload else None
            except (InvalidInput, ValidationError):
                return
            device = self._heard.setdefault(device_id, FleetDevice(device_id))
            setattr(device, what, said)
            self._tell(device)

        return take

    def _tell(self, device: FleetDevice) -> None:
        if device.presence is None and device.reported is None:
            self.devices.pop(device.device_id, None)  # It was removed, or the rest is to come.
        else:
            self.devices[device.device_id] = device
        self.changed.set()
        for listener in self._listeners:
            listener(device)

    def _take_result(self, message: Incoming) -> None:
        try:
            result = CommandResult.model_validate_json(message.payload)
            self.results.put_nowait((device_of(message.topic), result))
        except (InvalidInput, ValidationError):
            return


def _revision(register: LayerRegister, name: LayerName) -> int:
    layer = register.held(name).layer
    return 0 if layer is None else layer.revision


@asynccontextmanager
async def open_fleet(
    operator: Path | None, *, histories: Collection[LayerName] = (), to_write: bool = False
) -> AsyncIterator[RetainedFleet]:
    """The fleet, with all that the broker retains of it read.

    Args:
        operator: The operator's file; None for the default one.
        histories: The layers to be written, or whose history is wanted.
        to_write: Whether they are to be written: then relays are asked to put back first what the
            broker has lost.

    Raises:
        InvalidInput: the operator's file is wrong.
        Unavailable: the broker is not reached.
        NotAuthorized: it refuses the operator's credentials.
    """
    settings = load_operator_settings(operator or default_operator_file())
    configure_logs("error")
    session = session_of(settings)
    register = LayerRegister(
        session, settings.name, histories=histories, now=lambda: datetime.now(UTC)
    )
    keepers = Keepers(session, histories if to_write else ())
    fleet = RetainedFleet(session, register, keepers)
    async with running(session):
        await register.read()
        await fleet.wait_read()
        if to_write:
            await fleet.settle()
        yield fleet


@asynccontextmanager
async def running(session: Session) -> AsyncIterator[None]:
    """Runs a session, connected, for as long as the context is.

    Raises:
        Unavailable: the broker is not reached in time.
    """
    async with asyncio.TaskGroup() as tasks:
        holding = tasks.create_task(session.run())
        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                await session.wait_connected()
        except TimeoutError as error:
            raise Unavailable(
                f"the broker {session.address.url} is not reached: check its address and the network"
            ) from error
        yield
        holding.cancel()


def session_of(settings: OperatorSettings) -> ReceivingSession:
    """A session of an operator; each command has one of its own."""
    address = parse_broker_url(
        settings.url,
        username=settings.username,
        password=settings.password.get_secret_value(),
        ca_file=settings.ca_file,
    )
    return ReceivingSession(
        address, f"{settings.username}-{secrets.token_hex(8)}", echo_topic=OPERATORS_ECHO
    )
