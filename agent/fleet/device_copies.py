"""Whether another machine uses this device's file: a copied SD card, or a second agent on this one.

Both come to the broker under one client id, so that each ends the other's connection, and not every
broker says why. So an agent leaves its mark, retained, where only this device can: each next mark has
a higher turn. Who has left one and finds another's with a higher turn has a rival, and gives way to
it. A mark of an earlier run, or one that a broker brings back from an older copy of its disk, has a
lower one.
"""

import asyncio
import secrets
import time
from collections.abc import Callable, Iterable

import structlog
from pydantic import BaseModel, ConfigDict, ValidationError

from bellwire.broker.session.messages import Incoming
from bellwire.broker.session.session import BACKOFF_LONGEST_S, NotConnected, Session
from bellwire.config.agent.telemetry import Fault
from bellwire.signaling.identifiers import DeviceId
from bellwire.signaling.topics import gathered_topic

log = structlog.get_logger(__name__)

_ECHO_WITHIN_S = 10.0
_QUIET_AFTER_S = 120.0
"""So long after it met its rival last a device is one again: two that wait as long as they may meet
once a minute."""
COPIED = (
    "another machine uses this device's file (a copied SD card, or a second agent here), and only one of"
    " them can be reached at a time: stop the other, or give this device credentials of its own with"
    " `bellwire devices add ID --identity NAME --rotate --out FILE`"
)


class _Mark(BaseModel):
    """An agent's mark. `agent` is made anew at each start; turn 0 is left by nobody."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    agent: str
    turn: int


def yielding_s(times: int) -> float:
    """How long an agent leaves the device to its rival, the `times`th time in a row. Seconds."""
    return min(BACKOFF_LONGEST_S, 4.0 ** min(times - 1, 8))


class DeviceCopies:
    """Looks after each connection who else has used the device meanwhile.

    Args:
        device: This device.
        session: Its MQTT session.
        on_met: Called on the loop each time that it has met a rival.
        clock: Tells seconds that only grow.
    """

    def __init__(
        self,
        device: DeviceId,
        session: Session,
        *,
        on_met: Callable[[], object] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._device = device
        self._topic = gathered_topic(device)
        self._session = session
        self._on_met = on_met
        self._clock = clock
        self._agent = secrets.token_hex(8)
        self._turn = 0
        self._found: _Mark | None = None
        self._echoed = asyncio.Event()
        self._times = 0
        self._met_at: float | None = None
        session.subscribe(self._topic, self._take)
        session.on_connected(self._look)
        session.on_disconnected(self._forget)

    @property
    def is_contested(self) -> bool:
        """Whether it has met a rival, and that is not long ago."""
        return self._met_at is not None and self._clock() - self._met_at < _QUIET_AFTER_S

    def faults(self) -> Iterable[Fault]:
        """That another machine uses the file, where it does."""
        return (Fault(part="device", reason=COPIED),) if self.is_contested else ()

    async def _look(self) -> None:
        """Finds the mark that stands, and leaves its own. The echo comes after what is retained."""
        try:
            await self._leave(0, retain=False)
            async with asyncio.timeout(_ECHO_WITHIN_S):
                await self._echoed.wait()
            await self._judge(self._found)
        except (NotConnected, TimeoutError) as error:
            # An account of an older version may not do this; it is told so elsewhere.
            log.info("not seen who else uses this device's file", error=str(error))

    def _forget(self) -> None:
        self._found = None
        self._echoed.clear()

    async def _judge(self, found: _Mark | None) -> None:
        turn = 0 if found is None else found.turn
        if found is not None and found.agent == self._agent:
            self._turn = turn
            return
        if 0 < self._turn < turn:
            self._meet_rival()
        turn = max(turn, self._turn) + 1
        await self._leave(turn, retain=True)
        self._turn = turn

    async def _leave(self, turn: int, *, retain: bool) -> None:
        mark = _Mark(agent=self._agent, turn=turn).model_dump_json().encode()
        await self._session.publish(self._topic, mark, retain=retain)

    def _meet_rival(self) -> None:
        self._times = self._times + 1 if self.is_contested else 1
        self._met_at = self._clock()
        self._session.give_way(yielding_s(self._times))
        if self._times == 1:
            log.error(COPIED, device_id=self._device)
        self._on_met()

    def _take(self, message: Incoming) -> None:
        try:
            mark = _Mark.model_validate_json(message.payload)
        except ValidationError:
            return  # A mark of another kind is on this topic too.
        if message.retained:
            self._found = mark
        elif mark.agent == self._agent and not mark.turn:
            self._echoed.set()
