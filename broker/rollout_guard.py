"""Counts the errors of rollouts that are under way, and takes back those that have too many (spec §6).

It keeps nothing of its own: layers and reports are retained, and a pause is written by compare-and-set.
So any number of guards may run, each may die, and the next one goes on.
"""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime

import structlog
from pydantic import ValidationError

from broker.fleet_reading import read_fleet
from broker.layer_register import LayerConflict, LayerRegister
from broker.messages import Incoming
from broker.receiving import ReceivingSession
from config.fleet_layer import LayerProblem, Reported
from config.rollout_pause import due_pause
from signaling.errors import InvalidInput, Unavailable
from signaling.fleet_topics import REPORTED_OF_ALL, LayerName
from signaling.identifiers import DeviceId
from signaling.topics import PRESENCE_OF_ALL, device_of, reported_topic

log = structlog.get_logger(__name__)

_COALESCE_S = 0.05
"""Between two counts, so that a thousand reports in a second cost twenty of them."""
_AGAIN_S = 5.0
_REPORTS_EVERY_S = 0.25
"""Between two looks at what one device reports: however often it does, it costs no more."""
_NO_ERRORS = b'"errors":[]'
"""In what an agent reports: nearly all of a fleet, which then need not be parsed."""


class RolloutGuard:
    """Counts what it is told of, while it runs beside the register's session.

    Args:
        register: The layers; their changes are heard here.
        sleep: Waits; a test injects its own.
    """

    def __init__(
        self, register: LayerRegister, *, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    ) -> None:
        self._register = register
        self._sleep = sleep
        self._errors: dict[DeviceId, tuple[LayerProblem, ...]] = {}
        self._news = asyncio.Event()
        self._hopeless: set[str] = set()
        register.listen(lambda _: self._news.set())

    def take(self, device_id: DeviceId, reported: Reported | None) -> None:
        """A device has said what it runs; None where nothing is wrong."""
        had = self._errors.pop(device_id, ())
        if reported is not None and reported.errors:
            self._errors[device_id] = reported.errors
        if self._errors.get(device_id, ()) != had:
            self._news.set()

    def forget(self) -> None:
        """The connection is lost: what devices report comes again with the next."""
        self._errors.clear()

    async def run(self) -> None:
        """Counts until cancelled."""
        while True:
            await self._news.wait()
            self._news.clear()
            for name, held in self._register.layers().items():
                if held.layer is not None:
                    await self._look_at(name)
            await self._sleep(_COALESCE_S)

    async def _look_at(self, name: LayerName) -> None:
        on = self._register.held(name)
        draft = None if on.layer is None else due_pause(name, on.layer, self._errors)
        if draft is None or on.fingerprint in self._hopeless:
            return
        try:
            layer = await self._register.write(name, draft, on=on)
        except LayerConflict:
            return  # Its winner is news.
        except (InvalidInput, ValidationError) as error:  # too large, or no revision is left
            self._hopeless.add(on.fingerprint)
            log.error("rollout cannot be paused", layer=name, error=str(error))
        except Unavailable as error:
            log.warning("rollout not paused yet", layer=name, error=str(error))
            self._news.set()
            await self._sleep(_AGAIN_S)
        else:
            log.warning(
                "rollout paused",
                layer=name,
                revision=layer.revision,
                percent=layer.rollout.percent,
                reason=draft.comment,
            )


async def guard_rollouts(
    session: ReceivingSession, *, author: str, now: Callable[[], datetime]
) -> None:
    """Guards all rollouts over a session of its own, which has an echo topic, until cancelled."""
    register = LayerRegister(session, author, now=now)
    guard = RolloutGuard(register)
    reports = _Reports(guard)
    known: set[DeviceId] = set()

    def note(message: Incoming) -> None:
        try:
            known.add(device_of(message.topic))
        except InvalidInput:
            return

    async def read_reports() -> None:
        known.clear()
        await session.read_retained(PRESENCE_OF_ALL)
        await read_fleet(session, known, {REPORTED_OF_ALL: reported_topic})

    session.hear(PRESENCE_OF_ALL, note)
    session.receive(REPORTED_OF_ALL, reports.take, retained=False)
    session.on_connected(read_reports)
    session.on_disconnected(guard.forget)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(session.run())
        tasks.create_task(reports.run())
        tasks.create_task(guard.run())


class _Reports:
    """What devices report, on its way to the guard: of each the last, however often it comes."""

    def __init__(self, guard: RolloutGuard) -> None:
        self._guard = guard
        self._last: dict[str, bytes] = {}
        self._news = asyncio.Event()

    def take(self, message: Incoming) -> None:
        self._last[message.topic] = b"" if _NO_ERRORS in message.payload else message.payload
        self._news.set()

    async def run(self) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            last, self._last = self._last, {}
            for topic, payload in last.items():
                try:
                    self._guard.take(device_of(topic), _reported(payload))
                except InvalidInput:
                    continue
            await asyncio.sleep(_REPORTS_EVERY_S)


def _reported(payload: bytes) -> Reported | None:
    try:
        return Reported.model_validate_json(payload) if payload else None
    except ValidationError:
        return None
