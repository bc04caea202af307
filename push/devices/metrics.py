"""Each device's metrics, for alerts: is it there, when was it last, how many faults does it report.

Who is there stands in the database. Faults are what devices say in their telemetry, which is heard over a
session of its own, so that a fleet's reports never queue before calls; and only once somebody has asked.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from pydantic import ValidationError
from sqlalchemy import Boolean, Connection, Integer, cast, func, select

from bellwire.broker.session.messages import Incoming
from bellwire.broker.session.session import Session
from bellwire.config.agent.telemetry import Telemetry
from bellwire.push.store.engine.database import Database
from bellwire.push.store.tables import connections, devices, to_ms
from bellwire.signaling.errors import InvalidInput
from bellwire.signaling.identifiers import DeviceId
from bellwire.signaling.topics import TELEMETRY_OF_ALL, device_of

KNOWN_FOR_S = 5.0
_NO_FAULTS = b'"faults":[]'
"""In what an agent reports: nearly all of a fleet, which then need not be parsed."""

DEVICE_LABELS = ("device_id", "identity")


@dataclass(frozen=True, slots=True)
class _Seen:
    device_id: DeviceId
    identity: str
    online: bool
    seen_at_ms: int | None


class DeviceMetrics:
    """Tells them in Prometheus' text format. `run` must be running for faults to be heard.

    Args:
        database: Knows the devices.
        session: A connection to the broker, for this alone.
        now: Tells the time.
        clock: Tells seconds that pass: who asks again within `KNOWN_FOR_S` gets the same answer.
    """

    def __init__(
        self,
        database: Database,
        session: Session,
        *,
        now: Callable[[], datetime],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._session = session
        self._now = now
        self._clock = clock
        self._asked = asyncio.Event()
        self._answering = asyncio.Lock()
        self._answered: tuple[float, bytes] | None = None
        self._faults: dict[DeviceId, int] = {}
        session.subscribe(TELEMETRY_OF_ALL, self._take)

    async def run(self) -> None:
        """Hears what devices report, from the first time that somebody asks, until cancelled."""
        await self._asked.wait()
        await self._session.run()

    async def exposition(self) -> bytes:
        """All registered devices.

        Raises:
            Unavailable: the database is away.
        """
        self._asked.set()
        async with self._answering:
            if self._answered is None or self._clock() - self._answered[0] >= KNOWN_FOR_S:
                seen = await self._database.read(_seen)
                text = await asyncio.to_thread(self._text, seen, dict(self._faults))
                self._answered = (self._clock(), text)
            return self._answered[1]

    def _take(self, message: Incoming) -> None:
        try:
            device = device_of(message.topic)
        except InvalidInput:
            return
        faults = _faults(message.payload)
        if faults is None:
            self._faults.pop(device, None)
        else:
            self._faults[device] = faults

    def _text(self, seen: list[_Seen], faults: dict[DeviceId, int]) -> bytes:
        now_ms = to_ms(self._now())
        values: dict[str, list[str]] = {name: [] for name in DEVICE_METRICS}
        online, last_seen, faulty = values.values()
        for device in seen:
            labels = f'{{device_id="{device.device_id}",identity="{_escaped(device.identity)}"}}'
            online.append(f"{labels} {int(device.online)}")
            if device.seen_at_ms is not None:
                at_ms = now_ms if device.online else device.seen_at_ms
                last_seen.append(f"{labels} {at_ms / 1000}")
            if device.device_id in faults:
                faulty.append(f"{labels} {faults[device.device_id]}")
        lines = []
        for name, meaning in DEVICE_METRICS.items():
            lines += [f"# HELP {name} {meaning}", f"# TYPE {name} gauge"]
            lines += [f"{name}{value}" for value in values[name]]
        return ("\n".join(lines) + "\n").encode()


DEVICE_METRICS = {
    "bellwire_device_online": "1 while the device is there, over MQTT or a stream; 0 also where it has never"
    " been",
    "bellwire_device_last_seen_seconds": "When the device was last there, in Unix time; absent where it has"
    " never been",
    "bellwire_device_faults": "Faults in the device's newest telemetry; absent where it has sent none",
}
"""What each says. All are gauges; their text is written here, since prometheus-client took 1.3 s for
20,000 devices, and kept calls waiting for 0.2 s of them."""


def _escaped(identity: str) -> str:
    """An identity as a label's value: it may hold what a quoted string may not, but no line's end."""
    return identity.replace("\\", r"\\").replace('"', r"\"")


def _seen(connection: Connection) -> list[_Seen]:
    online = func.max(cast(connections.c.online, Integer))
    rows = connection.execute(
        select(
            devices.c.device_id,
            devices.c.identity,
            cast(func.coalesce(online, 0), Boolean),
            func.max(connections.c.seen_at_ms),
        )
        .select_from(devices.outerjoin(connections))
        .group_by(devices.c.device_id, devices.c.identity)
        .order_by(devices.c.device_id)
    )
    return [_Seen(DeviceId(device), identity, there, at) for device, identity, there, at in rows]


def _faults(payload: bytes) -> int | None:
    """How many faults a report tells; None where it is none: an empty one takes it back."""
    if _NO_FAULTS in payload:
        return 0
    try:
        return len(Telemetry.model_validate_json(payload).faults) if payload else None
    except ValidationError:
        return None
