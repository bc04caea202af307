"""What an operator has this device do at once: ring for a moment. The broker lets only operators
publish on the command topic, so what comes there needs no further proof."""

import asyncio
from collections.abc import Callable

import structlog
from pydantic import ValidationError

from bellwire.broker.session.messages import Incoming
from bellwire.broker.session.session import NotConnected, Session
from bellwire.config.waiting import Sleep
from bellwire.signaling.identifiers import DeviceId
from bellwire.signaling.topics import command_result_topic, command_topic
from bellwire.signaling.wire.station import CommandResult, RingTest

log = structlog.get_logger(__name__)

_LIMIT_BYTES = 1024
_WAITING = 4

Ring = Callable[[bool], bool]
"""Starts or stops the ringer; False where there is none."""


class Commands:
    """The commands of one device. Build it before the session runs, then `run` it beside.

    Args:
        device: This device.
        session: Its MQTT session.
        is_idle: Whether nobody is rung or called: a test neither disturbs a call nor silences one.
        ring: Starts and stops the ringer.
        sleep: Waits.
    """

    def __init__(
        self,
        device: DeviceId,
        session: Session,
        *,
        is_idle: Callable[[], bool],
        ring: Ring,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._session = session
        self._result_topic = command_result_topic(device)
        self._is_idle = is_idle
        self._ring = ring
        self._sleep = sleep
        self._waiting: asyncio.Queue[RingTest] = asyncio.Queue(_WAITING)
        session.subscribe(command_topic(device), self._take)

    async def run(self) -> None:
        """Does what it is told, one after the other, until cancelled; then the ringer is silent."""
        while True:
            command = await self._waiting.get()
            refusal = await self._test_ringer(command.duration_s)
            result = CommandResult(
                id=command.id, result="refused" if refusal else "done", reason=refusal
            )
            try:
                await self._session.publish(self._result_topic, result.model_dump_json().encode())
            except NotConnected as error:
                log.info("command's result not sent", error=str(error))

    async def _test_ringer(self, duration_s: float) -> str:
        """Rings; returns why not, if not."""
        if not self._is_idle():
            return "it is in a call, or rings for one"
        if not self._ring(True):
            return "it has no ringer: see panel.ringer in its configuration"
        try:
            await self._sleep(duration_s)
        finally:
            if self._is_idle():  # Else a call has come, and rings.
                self._ring(False)
        return ""

    def _take(self, message: Incoming) -> None:
        if message.retained or len(message.payload) > _LIMIT_BYTES:
            return
        try:
            self._waiting.put_nowait(RingTest.model_validate_json(message.payload))
        except ValidationError as error:
            log.error("command not understood", problems=error.error_count())
        except asyncio.QueueFull:
            log.warning("command dropped: too many at once")
