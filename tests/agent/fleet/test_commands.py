"""A ring test beside a call: it neither disturbs one nor silences one."""

import asyncio
from collections.abc import Callable

from bellwire.agent.fleet.commands import Commands
from bellwire.broker.session.messages import Incoming
from bellwire.broker.session.session import Handler, Hook, Topics
from bellwire.signaling.identifiers import DeviceId
from bellwire.signaling.topics import command_topic
from bellwire.signaling.wire.station import CommandResult, RingTest
from tests.conftest import PATIENCE_S


class Wire:
    """The transport of one device without a broker: what it is told, and what it answers."""

    def __init__(self) -> None:
        self.handlers: dict[str, Handler] = {}
        self.answers: asyncio.Queue[CommandResult] = asyncio.Queue()

    def subscribe(
        self, topic_filter: str, handler: Handler, *, narrowed_to: Topics | None = None
    ) -> None:
        assert narrowed_to is None
        self.handlers[topic_filter] = handler

    def on_connected(self, hook: Hook) -> None:
        raise NotImplementedError

    def on_disconnected(self, hook: Callable[[], None]) -> None:
        raise NotImplementedError

    async def ask_retained_again(self, topic_filter: str) -> None:
        raise NotImplementedError

    async def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        assert topic == f"{command_topic(DeviceId('desk'))}/result"
        assert not retain
        self.answers.put_nowait(CommandResult.model_validate_json(payload))

    def tell(self, command_id: str, *, retained: bool = False) -> None:
        topic = command_topic(DeviceId("desk"))
        payload = RingTest(id=command_id, duration_s=5).model_dump_json().encode()
        self.handlers[topic](Incoming(topic, payload, retained, None, None, None))


class Desk:
    """A device whose calls and time the test decides."""

    def __init__(self) -> None:
        self.wire = Wire()
        self.is_idle = True
        self.rang: list[bool] = []
        self.ringing = asyncio.Event()
        self.go_on = asyncio.Event()
        self.commands = Commands(
            DeviceId("desk"),
            self.wire,
            is_idle=lambda: self.is_idle,
            ring=self._ring,
            sleep=self._sleep,
        )

    def _ring(self, on: bool) -> bool:
        self.rang.append(on)
        return True

    async def _sleep(self, seconds: float) -> None:
        assert seconds == 5
        self.ringing.set()
        await self.go_on.wait()

    async def answer(self) -> CommandResult:
        async with asyncio.timeout(PATIENCE_S):
            return await self.wire.answers.get()


async def test_ring_test_is_refused_while_there_is_a_call() -> None:
    desk = Desk()
    desk.is_idle = False
    working = asyncio.create_task(desk.commands.run())
    desk.wire.tell("retained", retained=True)
    desk.wire.tell("one")
    answer = await desk.answer()
    working.cancel()
    assert (answer.id, answer.result, desk.rang) == ("one", "refused", [])
    assert "in a call" in answer.reason


async def test_call_that_comes_during_a_ring_test_rings_on() -> None:
    desk = Desk()
    working = asyncio.create_task(desk.commands.run())
    desk.wire.tell("one")
    await desk.ringing.wait()
    desk.is_idle = False
    desk.go_on.set()
    assert (await desk.answer()).result == "done"
    working.cancel()
    assert desk.rang == [True]


async def test_agent_that_stops_during_a_ring_test_leaves_its_ringer_silent() -> None:
    desk = Desk()
    working = asyncio.create_task(desk.commands.run())
    desk.wire.tell("one")
    await desk.ringing.wait()
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)
    assert desk.rang == [True, False]
