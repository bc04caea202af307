"""Counts the errors of rollouts that are under way, and takes back those that have too many (spec §6).

It keeps nothing of its own: layers and reports are retained, and a pause is written by compare-and-set.
So any number of guards may run, each may die, and the next one goes on.

What a device reports only itself can say (the broker sees to that), and it may lie. So only devices
that are registered count, each once, and for layers that are for it. Whether it is in a group that no
layer says it is in remains its word. A layer that takes rights away is not taken back.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping
from datetime import datetime

import structlog
from pydantic import ValidationError

from bellwire.broker.fleet.layer_register import LayerConflict, LayerRegister
from bellwire.broker.fleet.reading import read_fleet
from bellwire.broker.session.messages import Incoming
from bellwire.broker.session.receiving import ReceivingSession
from bellwire.config.fleet.layer import Layer, Reported
from bellwire.config.fleet.rollout_pause import (
    Said,
    can_pause,
    pause,
    said_in,
    takes_rights_away,
    too_many_refuse,
)
from bellwire.config.fleet.writing import Held
from bellwire.signaling.errors import InvalidInput, Unavailable
from bellwire.signaling.identifiers import DeviceId
from bellwire.signaling.topics import (
    PRESENCE_OF_ALL,
    REPORTED_OF_ALL,
    LayerName,
    device_of,
    reported_topic,
)

log = structlog.get_logger(__name__)

_COALESCE_S = 0.05
"""Between two counts, so that a thousand reports in a second cost twenty of them."""
_AGAIN_S = 5.0
_REPORTS_EVERY_S = 0.25
"""Between two looks at what one device reports: however often it does, it costs no more."""
_NO_ERRORS = b'"errors":[]'
"""In what an agent reports: nearly all of a fleet, which then need not be parsed."""
_REPORT_LIMIT_BYTES = 256 * 1024

_UNREAD = "device-reports-unread"
"""Why a report is not looked at: its device has sent another since."""

Registered = Callable[[Collection[DeviceId]], Awaitable[Collection[DeviceId]]]
"""Which of these devices are registered; raises Unavailable where that is not known now."""


class RolloutGuard:
    """Counts what it is told of, while it runs beside the register's session.

    Args:
        register: The layers; their changes are heard here.
        registered: Which devices are registered.
        count_ignored: Told why a rollout stays that many refuse: `rollout-of-others`,
            `rollout-takes-rights`.
        sleep: Waits; a test injects its own.
    """

    def __init__(
        self,
        register: LayerRegister,
        registered: Registered,
        *,
        count_ignored: Callable[[str], None] = lambda _: None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._register = register
        self._count_ignored = count_ignored
        self._registered = registered
        self._sleep = sleep
        self._errors: dict[DeviceId, Said] = {}
        self._news = asyncio.Event()
        self._left_alone: set[str] = set()
        self._ignored: set[tuple[str, str]] = set()
        register.listen(lambda _: self._news.set())

    def take(self, device_id: DeviceId, reported: Reported | None) -> None:
        """A device has said what it runs; None where nothing is wrong."""
        had = self._errors.pop(device_id, None)
        if reported is not None and reported.errors:
            self._errors[device_id] = said_in(reported)
        if self._errors.get(device_id) != had:
            self._news.set()

    def forget(self) -> None:
        """The connection is lost: what devices report comes again with the next."""
        self._errors.clear()

    async def run(self) -> None:
        """Counts until cancelled."""
        while True:
            await self._news.wait()
            self._news.clear()
            held = self._register.layers()
            layers = {name: now.layer for name, now in held.items() if now.layer is not None}
            for name, layer in layers.items():
                if can_pause(layer):
                    await self._look_at(name, layers)
            await self._sleep(_COALESCE_S)

    async def _look_at(self, name: LayerName, layers: Mapping[LayerName, Layer]) -> None:
        on = self._register.held(name)
        if on.layer is None:
            return
        who = too_many_refuse(name, on.layer, self._errors, None)
        if not who or on.fingerprint in self._left_alone:
            return
        try:
            known = set(await self._registered([*who]))
            errors = {device: self._errors[device] for device in who if device in self._errors}
            errors = {device: said for device, said in errors.items() if device in known}
            refused = too_many_refuse(name, on.layer, errors, layers)
            if not refused:
                self._ignore(name, on, "rollout-of-others", "it is not for who refuses it", who)
                return
            if takes_rights_away(on.layer):
                self._left_alone.add(on.fingerprint)
                self._ignore(name, on, "rollout-takes-rights", "it takes rights away", refused)
                return
            draft = pause(on.layer, refused)
            layer = await self._register.write(name, draft, on=on)
        except LayerConflict:
            return  # Its winner is news.
        except (InvalidInput, ValidationError) as error:  # too large, or no revision is left
            self._left_alone.add(on.fingerprint)
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

    def _ignore(
        self, name: LayerName, on: Held, reason: str, why: str, who: Collection[DeviceId]
    ) -> None:
        """Says, once of a revision, that it stays although many refuse it."""
        if (on.fingerprint, reason) in self._ignored:
            return
        self._ignored.add((on.fingerprint, reason))
        self._count_ignored(reason)
        log.warning(
            "rollout not paused",
            because=why,
            layer=name,
            revision=on.layer.revision if on.layer else None,
            devices=len(who),
            first=min(who),
        )


async def guard_rollouts(
    session: ReceivingSession,
    registered: Registered,
    *,
    author: str,
    now: Callable[[], datetime],
    count_refused: Callable[[str], None] = lambda _: None,
) -> None:
    """Guards all rollouts over a session of its own, which has an echo topic, until cancelled.

    Args:
        session: To the broker.
        registered: Which devices are registered.
        author: Who takes rollouts back, as layers name their authors.
        now: Tells the time.
        count_refused: Told the reason of each refusal: those of `RolloutGuard`, and
            `device-reports-unread` for each report that was passed over.
    """
    register = LayerRegister(session, author, now=now)
    guard = RolloutGuard(register, registered, count_ignored=count_refused)
    reports = _Reports(guard, count_refused)
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

    def __init__(self, guard: RolloutGuard, count_refused: Callable[[str], None]) -> None:
        self._guard = guard
        self._count_refused = count_refused
        self._last: dict[str, bytes] = {}
        self._news = asyncio.Event()

    def take(self, message: Incoming) -> None:
        if message.topic in self._last:
            self._count_refused(_UNREAD)
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
    if _NO_ERRORS in payload or len(payload) > _REPORT_LIMIT_BYTES:
        return None
    try:
        return Reported.model_validate_json(payload) if payload else None
    except ValidationError:
        return None
