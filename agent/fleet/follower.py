"""This device in its fleet: hears the layers, runs their sum, keeps it, and reports what it runs."""

import asyncio
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime

import structlog

from bellwire.agent.fleet.layers import Event, Gathering, Heard, HeardLayers, Missed
from bellwire.agent.fleet.live_settings import LiveSettings
from bellwire.agent.link import SOFTWARE
from bellwire.broker.session.messages import Incoming
from bellwire.broker.session.session import NotConnected, PublishRefused, Session
from bellwire.config.agent.settings import AgentSettings, with_secrets_of
from bellwire.config.agent.telemetry import Fault
from bellwire.config.fleet.last_good import LastGood
from bellwire.config.fleet.layer import LAYER_LIMIT_BYTES, Layer, LayerProblem, Reported
from bellwire.config.fleet.merge import LayerVerdict, groups_said, judge, local_file
from bellwire.config.fleet.obeyed import ObeyedLayers
from bellwire.config.waiting import Sleep
from bellwire.signaling.identifiers import DeviceId
from bellwire.signaling.topics import (
    CONFIG_DEFAULT,
    CONFIG_GROUPS,
    config_topic,
    gathered_topic,
    reported_topic,
)

log = structlog.get_logger(__name__)

_GATHERING_S = 10.0
_LATE_S = 0.5
"""How much longer a layer that is gone is waited for: not every broker sends what it retains before
what is published later."""
_TRY_AGAIN_S = 5.0
_UNHEARD_AT_MOST = 256
"""Messages about layers that wait to be looked at: of more, the newest of each layer."""
_GATHERINGS_AT_ONCE = 3
_BREATH_S = 1.0
"""Between gatherings, where layers come faster than they can be gathered."""
_COSTLY_S = 0.1
_REST = 4
"""How long judging rests, by what it cost, where that was much: it takes turns with the sound."""
_REPORT_LIMIT_BYTES = 76 * 1024
"""The relay's broker cuts off who sends more than 80 KiB at once, topic and all."""
_ERRORS_IN_SHORT = 8
_VANISHED = (
    "the broker has lost this layer: it stays in force; a relay puts it back, else write it again, or one"
    " without settings to be rid of it"
)


class FleetFollower:
    """One device of a fleet. Build it before the session runs, then `run` it beside.

    Args:
        settings: The device's own file.
        session: Its MQTT session.
        live: Where the settings take effect.
        last_good: Where the layers are kept; None keeps them nowhere.
        now: Tells the time, with its zone.
        sleep: Waits.
    """

    def __init__(
        self,
        settings: AgentSettings,
        session: Session,
        live: LiveSettings,
        *,
        last_good: LastGood | None = None,
        now: Callable[[], datetime],
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._settings = settings
        self._local = local_file(settings)
        self._session = session
        self._live = live
        self._store = last_good
        self._now = now
        self._sleep = sleep
        device = DeviceId(settings.device_id)
        self._reported_topic = reported_topic(device)
        self._gathered_topic = gathered_topic(device)
        self._filters = (CONFIG_DEFAULT, CONFIG_GROUPS, config_topic(device))
        self._good: dict[str, Layer] = {} if last_good is None else last_good.layers
        self._obeyed = ObeyedLayers({} if last_good is None else last_good.obeyed)
        self._outdated: tuple[LayerProblem, ...] = ()
        self._layers = HeardLayers(device, self._good, groups_said(self._local.settings))
        self._unheard: list[Event] = []
        self._is_judged = True
        self._cost_s = 0.0
        self._gatherings = 0
        self._verdict = judge(self._local, self._good)
        live.take(with_secrets_of(settings, self._verdict.settings))
        self._faults: dict[str, LayerProblem] = {}
        self._not_kept: str | None = None
        self._said: Reported | None = None
        self._mark = b""
        self._marked = asyncio.Event()
        self._connection = 0
        self._connected = False
        self._is_asked = True
        self._is_resting = False
        self._work = asyncio.Event()
        for topic_filter in self._filters:
            narrowed_to = self._group_topics if topic_filter == CONFIG_GROUPS else None
            session.subscribe(topic_filter, self._take_layer, narrowed_to=narrowed_to)
        session.subscribe(self._gathered_topic, self._take_mark)
        session.on_connected(self._begin)
        session.on_disconnected(self._lose)
        live.watch(lambda _, __: self._work.set())

    @property
    def verdict(self) -> LayerVerdict:
        """What the device is to run."""
        return self._verdict

    @property
    def vanished(self) -> Mapping[str, Layer]:
        """The layers that are in force though the broker has lost them; see `HeardLayers`."""
        return self._layers.vanished

    def report_fault(self, path: str, reason: str | None) -> None:
        """Reports that settings which are in order could not be put into effect here (a pin that
        another program has); None takes that back."""
        if reason is None:
            self._faults.pop(path, None)
        else:
            self._faults[path] = self._problem(path, reason)
        self._work.set()

    @property
    def at_rest(self) -> bool:
        """Whether all that was heard is in force, kept and, while the broker is there, reported."""
        return self._is_resting and not self._work.is_set()

    def faults(self) -> list[Fault]:
        """What was reported and not taken back, and that nothing can be kept."""
        kept = [] if self._not_kept is None else [Fault(part="disk", reason=self._not_kept[:512])]
        return [
            *kept,
            *(
                Fault(part=path.partition(".")[0], reason=why.reason)
                for path, why in self._faults.items()
            ),
        ]

    async def run(self) -> None:
        """Follows the layers until cancelled."""
        while True:
            self._is_resting = True
            await self._work.wait()
            self._is_resting = False
            self._work.clear()
            try:
                await self._follow()
            except NotConnected as error:
                log.info("layers not gathered or reported", error=str(error))
                if self._connected:
                    await self._sleep(_TRY_AGAIN_S)
                    self._work.set()

    async def _follow(self) -> None:
        await self._apply()
        if self._connected and self._layers.in_doubt:
            await self._gather()
            await self._apply()
        if not self._layers.in_doubt:
            self._gatherings = 0
            await self._keep()
            if self._connected:
                await self._report()
        elif self._connected:
            self._work.set()
        if self._cost_s > _COSTLY_S:
            await self._sleep(_REST * self._cost_s)

    # What is heard

    async def _begin(self) -> None:
        self._connected = True
        self._said = None
        self._work.set()

    def _lose(self) -> None:
        self._connected = False
        self._connection += 1
        self._is_asked = True
        self._unheard.append(Gathering(self._layers.wanted))
        self._marked.set()

    def _group_topics(self) -> Iterator[str]:
        prefix = "group/"
        for name in self._layers.wanted:
            if name.startswith(prefix):
                yield CONFIG_GROUPS.replace("+", name.removeprefix(prefix))

    def _take_layer(self, message: Incoming) -> None:
        if self._layers.name_of(message.topic) is None:
            return
        payload = message.payload[: LAYER_LIMIT_BYTES + 1]  # enough to see that it is too long
        self._unheard.append(Heard(message.topic, payload, message.retained))
        if len(self._unheard) > _UNHEARD_AT_MOST:
            self._unheard = [*_newest(self._unheard), Missed()]
        self._work.set()

    def _take_mark(self, message: Incoming) -> None:
        if message.payload == self._mark:
            self._marked.set()

    async def _gather(self) -> None:
        """Hears from the broker which layers there are. A subscription, new or repeated, has it send
        them (MQTT 5, section 3.8.4), and what is published after that comes after them."""
        connection = self._connection
        self._gatherings += 1
        if self._gatherings > _GATHERINGS_AT_ONCE:
            await self._sleep(_BREATH_S)
        if self._is_asked:
            self._is_asked = False
        else:
            self._unheard.append(Gathering(self._layers.wanted))
            for topic_filter in self._filters:
                await self._session.ask_retained_again(topic_filter)
        self._mark = secrets.token_hex(8).encode()
        self._marked.clear()
        try:
            await self._session.publish(self._gathered_topic, self._mark)
            async with asyncio.timeout(_GATHERING_S):
                await self._marked.wait()
        except PublishRefused:
            log.warning("the broker knows this device from an older version: add it again")
            await self._sleep(_LATE_S)
        except TimeoutError as error:
            raise NotConnected(f"the broker echoes nothing on {self._gathered_topic}") from error
        await self._hear()
        if self._layers.missing:
            await self._sleep(_LATE_S)
            await self._hear()
        if connection == self._connection:
            self._layers.end_gathering()
            self._is_judged = False

    # What is done with it

    async def _hear(self) -> None:
        """Looks at what has come. Like judging, in a thread: whoever writes layers can make either last,
        and nothing else waits for it then."""
        if self._unheard:
            unheard, self._unheard = self._unheard, []
            self._is_judged = False
            await asyncio.to_thread(self._layers.take_all, unheard)

    async def _apply(self) -> None:
        """Has the sum of what has come in force. Where it lacks the layer of a group that the device has
        come into, all stays as it is until that is gathered."""
        await self._hear()
        self._cost_s = 0.0
        if self._is_judged or not self._layers.is_whole:
            return
        self._is_judged = True
        standing, self._outdated = self._obeyed.sift(self._layers.standing, self._good)
        self._verdict = await asyncio.to_thread(self._judge, standing, dict(self._good))
        self._good = self._verdict.layers
        self._obeyed.note(self._good)
        self._layers.follow(self._good)
        self._live.take(with_secrets_of(self._settings, self._verdict.settings))

    def _judge(
        self, standing: Mapping[str, Layer | LayerProblem], good: dict[str, Layer]
    ) -> LayerVerdict:
        began = time.thread_time()
        verdict = judge(self._local, standing, good)
        self._cost_s = time.thread_time() - began
        return verdict

    async def _keep(self) -> None:
        layers = self._verdict.layers
        if self._store is None or layers == self._store.layers:
            return
        try:
            await asyncio.to_thread(self._store.save, layers)
        except OSError as error:
            self._not_kept = (
                f"the fleet's configuration is not kept, and lost at the next start: {error};"
                " free some of the disk"
            )
            log.error("configuration not kept on disk", error=str(error))
        else:
            self._not_kept = None

    async def _report(self) -> None:
        document = self.reported()
        if self._said is not None and document == self._said.model_copy(update={"at": document.at}):
            return
        await self._session.publish(self._reported_topic, _that_fits(document), retain=True)
        self._said = document

    def reported(self) -> Reported:
        """What this device runs, as it reports it."""
        verdict, waiting = self._verdict, self._live.waiting
        errors = (*verdict.errors, *self._vanished(), *self._faults.values())
        return Reported(
            device_id=self._local.device_id,
            software=SOFTWARE,
            at=self._now(),
            hash=verdict.hash,
            effective=verdict.effective,
            sources=verdict.sources,
            revisions=verdict.revisions,
            local=self._local.settings,
            locked=self._local.locked,
            remote=self._local.remote,
            errors=errors,
            skipped=verdict.skipped,
            outdated=self._outdated,
            obeyed=self._obeyed.beyond(verdict.revisions.items()),
            on_disk=self._store is not None and self._not_kept is None,
            waiting=waiting,
            state="refused" if errors or self._outdated else "waiting" if waiting else "applied",
        )

    def _vanished(self) -> Iterator[LayerProblem]:
        for name in self._layers.vanished:
            if (layer := self._verdict.layers.get(name)) is not None:
                yield LayerProblem(layer=name, revision=layer.revision, path="", reason=_VANISHED)

    def _problem(self, path: str, reason: str) -> LayerProblem:
        """A fault under the last layer that says something about what is faulty."""
        verdict = self._verdict
        sources = {
            source
            for place, source in verdict.sources.items()
            if place == path or place.startswith(f"{path}.")
        }
        layer = next((name for name in reversed(verdict.layers) if name in sources), "file")
        revision = verdict.revisions.get(layer)
        return LayerProblem(layer=layer, revision=revision, path=path, reason=reason[:512])


def _newest(events: list[Event]) -> list[Event]:
    """The last message of each topic, and the last beginning of a gathering, in their order."""
    last: dict[str, Event] = {}
    for event in events:
        topic = event.topic if isinstance(event, Heard) else type(event).__name__
        last.pop(topic, None)
        last[topic] = event
    return list(last.values())


def _that_fits(document: Reported) -> bytes:
    """The report as it is published: of one that is too long, what is wrong and no settings; of that, if
    it must be, the first."""
    without_settings: dict[str, object] = {"effective": {}, "sources": {}, "local": {}}
    in_short = {"errors": document.errors[:_ERRORS_IN_SHORT], "skipped": (), "locked": ()}
    payload = document.model_dump_json().encode()
    for left_out in (without_settings, without_settings | in_short):
        if len(payload) <= _REPORT_LIMIT_BYTES:
            break
        log.warning("report is too long and goes without a part of it", bytes=len(payload))
        payload = document.model_copy(update=left_out).model_dump_json().encode()
    return payload
