"""The wire of a device's MQTT session, at its roughest: live messages come late, in any order, twice,
or after a reconnection; a connection or the whole session is lost; only what MQTT 5 promises holds.
"""

from collections.abc import Callable

from bellwire.broker.session.messages import Incoming
from bellwire.broker.session.session import Handler, Hook, NotConnected, Topics
from bellwire.signaling.identifiers import DeviceId
from bellwire.signaling.topics import gathered_topic, reported_topic


class RoughBroker:
    """What is retained, and one device's way to it."""

    def __init__(self, device: DeviceId) -> None:
        self.retained: dict[str, bytes] = {}
        self.reports: list[bytes] = []
        self.late: list[tuple[str, bytes]] = []
        self.session: RoughSession | None = None
        self._device = device

    def publish(self, topic: str, payload: bytes) -> None:
        """An operator publishes, retained. The device will hear of it, some time."""
        if payload:
            self.retained[topic] = payload
        else:
            self.retained.pop(topic, None)
        self.late.append((topic, payload))

    def deliver(self, number: int, *, twice: bool = False) -> None:
        """One of the live messages arrives, not necessarily the first one."""
        if self.late and self.session is not None and self.session.is_up:
            number %= len(self.late)
            topic, payload = self.late[number] if twice else self.late.pop(number)
            self.session.hear(topic, payload, retained=False)

    def take(self, topic: str, payload: bytes) -> None:
        """The device publishes."""
        if topic == reported_topic(self._device):
            self.reports.append(payload)
        elif topic == gathered_topic(self._device) and self.session is not None:
            self.session.hear(topic, payload, retained=False)
        else:
            raise AssertionError(f"no device may publish to {topic}")


class RoughSession:
    """The session, as a fleet's device uses it."""

    def __init__(self, broker: RoughBroker) -> None:
        self.is_up = False
        self._broker = broker
        self._handlers: dict[str, Handler] = {}
        self._narrowed: dict[str, Topics] = {}
        self._held: dict[str, frozenset[str]] = {}
        self._hooks: list[Hook] = []
        self._lost: list[Callable[[], None]] = []
        broker.session = self

    def subscribe(
        self, topic_filter: str, handler: Handler, *, narrowed_to: Topics | None = None
    ) -> None:
        self._handlers[topic_filter] = handler
        if narrowed_to is not None:
            self._narrowed[topic_filter] = narrowed_to

    def on_connected(self, hook: Hook) -> None:
        self._hooks.append(hook)

    def on_disconnected(self, hook: Callable[[], None]) -> None:
        self._lost.append(hook)

    async def ask_retained_again(self, topic_filter: str) -> None:
        if not self.is_up:
            raise NotConnected("down")
        narrowed_to = self._narrowed.get(topic_filter, lambda: (topic_filter,))
        self._held[topic_filter] = frozenset(narrowed_to())
        for topic, payload in list(self._broker.retained.items()):
            if topic in self._held[topic_filter]:
                self.hear(topic, payload, retained=True)

    async def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        assert retain == topic.endswith("/reported")
        if not self.is_up:
            raise NotConnected("down")
        self._broker.take(topic, payload)

    async def connect(self) -> None:
        if self.is_up:
            return
        self.is_up = True
        for topic_filter in self._handlers:
            await self.ask_retained_again(topic_filter)
        for hook in self._hooks:
            await hook()

    def lose(self) -> None:
        if self.is_up:
            self.is_up = False
            for hook in self._lost:
                hook()

    def hear(self, topic: str, payload: bytes, *, retained: bool) -> None:
        message = Incoming(topic, payload, retained, None, None, None)
        for topic_filter, handler in self._handlers.items():
            if topic in self._held.get(topic_filter, ()):
                handler(message)
