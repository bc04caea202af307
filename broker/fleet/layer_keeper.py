"""A relay keeps the fleet's layers and their history, and puts back what the broker has lost.

A broker says that it has a message before its disk has it: mosquitto saves every 30 s. So a relay stores
each revision that it hears, whoever wrote it, and says so once it is durable (`STORED`, retained);
`bellwire fleet` waits for that word before it says "Written". At each connection, and whenever a layer is
overwritten by less, it puts the highest revision back: what the broker has not, or has as an empty
message, or at a lower revision. A removal is a revision without settings, so nothing is ever put back that
somebody has taken away.

Nothing goes round in a circle, however many relays run: of two revisions the higher one stands, on all
sides. Of two contents under one revision that which was stored first is put back, once for each other
content, so that relays with different databases on one broker end too. What is no layer is left alone: a
later version may have written it, and devices keep the one before.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Annotated, Protocol, TypeVar

import structlog
from pydantic import BaseModel, ConfigDict, Field

from bellwire.broker.session.messages import Incoming
from bellwire.broker.session.receiving import ReceivingSession
from bellwire.broker.session.session import NotConnected, PublishRefused
from bellwire.config.fleet.layer import Revision
from bellwire.config.fleet.writing import Held, Mark, held, slot_of
from bellwire.signaling.errors import InvalidInput, Unavailable
from bellwire.signaling.topics import (
    HISTORIES,
    KEEPER_ANSWERS,
    KEEPERS,
    LAYERS,
    STORED,
    LayerName,
    history_of,
    history_topic,
    layer_of,
    layer_topic,
    stored_topic,
)

log = structlog.get_logger(__name__)

_AGAIN_S = 0.25
_REFUSED_AGAIN_S = 5.0
"""After the database, or a broker whose memory is used up, has refused: each look reads all layers anew."""
_TOPICS_AT_ONCE = 50
_PUBLISHED_AT_ONCE = 16
_STORED_AT_ONCE = 100
"""Revisions in one transaction: calls wait no longer for it, also where a fleet's layers all are new."""
_ASKS_AT_MOST = 1000
_ASK_LIMIT_BYTES = 64

T = TypeVar("T")


class StoredRevision(BaseModel):
    """What a relay's database has of a layer: its highest revision, and the hash of that document."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    revision: Revision
    hash: Annotated[str, Field(max_length=64)]


Revisions = Sequence[tuple[LayerName, Held]]
"""Layers, each with a revision that it had."""


class LayerStore(Protocol):
    """Where the revisions of layers are kept, of each layer's the newest 20. All raise Unavailable where
    that is not to be reached."""

    async def newest(self) -> Mapping[LayerName, Mark]:
        """The highest revision of each layer."""
        ...

    async def history(self, name: LayerName) -> Sequence[Held]:
        """All that is kept of a layer, the oldest first."""
        ...

    async def keep(self, revisions: Revisions) -> Sequence[Held]:
        """Stores those whose number is not taken, durably; what stands under each of them now."""
        ...


class LayerKeeper:
    """Keeps the layers of one broker, while it runs beside the session.

    Args:
        session: A session of its own, with an echo topic; build the keeper before it runs.
        store: Where they are kept.
        sleep: Waits; a test injects its own.
    """

    def __init__(
        self,
        session: ReceivingSession,
        store: LayerStore,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._session = session
        self._store = store
        self._sleep = sleep
        # Not what they say: some fleets have thousands, and it stands in the store.
        self._newest: dict[LayerName, Mark] = {}
        self._here: dict[LayerName, Mark] = {}
        self._said: dict[LayerName, bytes] = {}
        self._heard: list[tuple[LayerName, Held]] = []
        self._ring: list[tuple[LayerName, Held]] = []
        self._ring_news: list[tuple[LayerName, Held]] = []
        self._ring_own: dict[str, bytes] = {}
        self._touched: set[LayerName] = set()
        self._written_unheard: set[LayerName] = set()
        self._asks: list[bytes] = []
        self._contested: set[tuple[LayerName, str]] = set()
        self._mended: set[tuple[LayerName, str]] = set()
        self._connection = 0
        self._is_gathered = False
        self._news = asyncio.Event()
        session.receive(LAYERS, self._take_layer)
        session.receive(STORED, self._take_stored)
        session.receive(KEEPERS, self._take_ask, retained=False)
        session.receive(HISTORIES, self._take_history, retained=False)
        session.on_connected(self._begin)
        session.on_disconnected(self._lose)

    async def run(self) -> None:
        """Keeps them until cancelled."""
        while True:
            await self._news.wait()
            self._news.clear()
            try:
                await self._look()
            except PublishRefused as error:
                log.warning("the broker takes no layer from the relay", error=str(error))
                await self._look_again_in(_REFUSED_AGAIN_S)
            except NotConnected as error:
                log.info("layers not looked at", error=str(error))
                if self._session.connected:
                    await self._look_again_in(_AGAIN_S)
            except Unavailable as error:
                log.warning("layers not stored yet", error=str(error))
                await self._look_again_in(_REFUSED_AGAIN_S)

    async def _look_again_in(self, wait_s: float) -> None:
        self._is_gathered = False
        await self._sleep(wait_s)
        self._news.set()

    # What is heard

    async def _begin(self) -> None:
        self._news.set()

    def _lose(self) -> None:
        self._connection += 1
        self._is_gathered = False
        self._here.clear()
        self._said.clear()
        self._asks.clear()
        self._ring_own.clear()

    def _take_layer(self, message: Incoming) -> None:
        try:
            name = layer_of(message.topic)
        except InvalidInput:
            return
        here = held(message.payload)
        self._here[name] = here.mark
        if here.layer is not None:
            self._heard.append((name, here))
        self._touched.add(name)
        self._news.set()

    def _take_stored(self, message: Incoming) -> None:
        try:
            self._said[layer_of(message.topic)] = message.payload
        except InvalidInput:
            return

    def _take_history(self, message: Incoming) -> None:
        try:
            name = layer_of(message.topic)
        except InvalidInput:
            return
        revision = held(message.payload)
        if message.retained:
            self._ring.append((name, revision))
        elif self._ring_own.get(message.topic) == message.payload:
            del self._ring_own[message.topic]
        else:
            self._ring_news.append((name, revision))
            self._news.set()

    def _take_ask(self, message: Incoming) -> None:
        if len(message.payload) <= _ASK_LIMIT_BYTES and len(self._asks) < _ASKS_AT_MOST:
            self._asks.append(message.payload)
            self._news.set()

    # What is done with it

    async def _look(self) -> None:
        if not self._session.connected:
            return
        if not self._is_gathered:
            await self._gather()
        asks, self._asks = self._asks, []
        touched, self._touched = self._touched, set()
        await self._store_heard()
        await _each(sorted(self._written_unheard), self._put_back_history)
        self._written_unheard.clear()
        await _each(sorted(touched), self._settle)
        await self._mend_history()
        for ask in asks:
            await self._session.publish(KEEPER_ANSWERS, ask)

    async def _gather(self) -> None:
        """Learns what the database has, which another relay may have written, and all that the broker
        has. Of very many layers it may have dropped some: those that seem lost are read again."""
        connection = self._connection
        self._newest = dict(await self._store.newest())
        await self._session.catch_up()
        missing = self._newest.keys() - self._here.keys()
        for names in _batches(sorted(missing), _TOPICS_AT_ONCE):
            await self._session.read_retained(*map(layer_topic, names))
        if connection != self._connection:
            raise NotConnected("the connection was lost meanwhile")
        self._is_gathered = True
        self._touched |= self._newest.keys() | self._here.keys()
        self._written_unheard |= {
            name
            for name, newest in self._newest.items()
            if self._here.get(name, Mark()).revision > newest.revision
        }

    async def _store_heard(self) -> None:
        heard = [*self._heard]
        fresh = [(name, one) for name, one in heard if _number(one) > self._known(name)]
        # What was written while no relay heard it is in the broker's history.
        gaps = {name for name, one in fresh if _number(one) > self._known(name) + 1}
        for some in _batches([*await self._unheard(gaps), *fresh], _STORED_AT_ONCE):
            stored = await self._store.keep(some)
            for (name, _), one in zip(some, stored, strict=True):
                if _number(one) > self._known(name):
                    self._newest[name] = one.mark
                # Whoever has written it with another client has not.
                await self._keep_in_history(name, one)
                await self._say_stored(name, one.mark)
        del self._heard[: len(heard)]

    async def _unheard(self, names: Collection[LayerName]) -> Revisions:
        """The revisions above what is stored that only the broker's history has, the oldest first."""
        self._ring.clear()
        for some in _batches(sorted(names), _TOPICS_AT_ONCE):
            await self._session.read_retained(*map(history_of, some))
        found = [(name, one) for name, one in self._ring if _number(one) > self._known(name)]
        self._ring.clear()
        return sorted(found, key=lambda pair: (pair[0], _number(pair[1])))

    async def _say_stored(self, name: LayerName, stored: Mark) -> None:
        """Says that a revision is durable."""
        payload = _said(stored)
        self._said[name] = payload
        await self._session.publish(stored_topic(name), payload, retain=True)

    async def _settle(self, name: LayerName) -> None:
        """Has the broker hold what is stored, and its readers know that it is."""
        newest = self._newest.get(name)
        here = self._here.get(name, Mark())
        if newest is None:
            return
        if here.hash and not here.revision:
            log.warning("what is retained is no layer, and stays", layer=name)
        elif here.revision < newest.revision or self._is_contested(name, newest, here):
            await self._put_back(name, here)
        if self._said.get(name) != _said(newest):
            await self._say_stored(name, newest)

    def _is_contested(self, name: LayerName, newest: Mark, here: Mark) -> bool:
        """Whether another content stands under the stored revision, for the first time."""
        if here.revision != newest.revision or here.hash == newest.hash:
            return False
        is_first = (name, here.hash) not in self._contested
        self._contested.add((name, here.hash))
        return is_first

    async def _put_back(self, name: LayerName, here: Mark) -> None:
        history = await self._store.history(name)
        if not history:
            return  # The rows were taken away meanwhile.
        newest = history[-1]
        log.warning(
            "layer put back",
            layer=name,
            revision=_number(newest),
            instead_of=here.revision or "nothing",
        )
        await self._session.publish(layer_topic(name), newest.payload, retain=True)
        for revision in history:
            await self._keep_in_history(name, revision)

    async def _put_back_history(self, name: LayerName) -> None:
        """Has the broker's history hold what is stored: while this relay was away, more may have been
        written on what the broker had lost than it lost, under numbers that stand."""
        for revision in await self._store.history(name):
            await self._keep_in_history(name, revision)

    async def _mend_history(self) -> None:
        """Has the broker's history hold what is stored, where somebody who knew of no relay has written on
        what the broker had lost, and put that in its place."""
        news, self._ring_news = self._ring_news, []
        for name, revision in news:
            key = (name, revision.fingerprint)
            if key in self._mended or not 0 < _number(revision) <= self._known(name):
                continue
            for stored in await self._store.history(name):
                is_another = stored.fingerprint != revision.fingerprint
                if _number(stored) == _number(revision) and is_another:
                    self._mended.add(key)
                    await self._keep_in_history(name, stored)

    async def _keep_in_history(self, name: LayerName, revision: Held) -> None:
        topic = history_topic(name, slot_of(_number(revision)))
        self._ring_own[topic] = revision.payload
        await self._session.publish(topic, revision.payload, retain=True)

    def _known(self, name: LayerName) -> int:
        return self._newest.get(name, Mark()).revision


async def keep_layers(session: ReceivingSession, store: LayerStore) -> None:
    """Keeps the layers over a session of its own, which has an echo topic, until cancelled."""
    keeper = LayerKeeper(session, store)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(session.run())
        tasks.create_task(keeper.run())


def _number(revision: Held) -> int:
    return 0 if revision.layer is None else revision.layer.revision


def _said(stored: Mark) -> bytes:
    said = StoredRevision(revision=stored.revision, hash=stored.hash)
    return said.model_dump_json().encode()


async def _each(names: Iterable[LayerName], do: Callable[[LayerName], Awaitable[None]]) -> None:
    """Does something with each, some at once: a broker that has lost all has thousands to get back."""
    for some in _batches(names, _PUBLISHED_AT_ONCE):
        done = await asyncio.gather(*map(do, some), return_exceptions=True)
        for outcome in done:
            if isinstance(outcome, BaseException):
                raise outcome


def _batches(all_of_them: Iterable[T], size: int) -> Iterator[tuple[T, ...]]:
    left = iter(all_of_them)
    while some := tuple(islice(left, size)):
        yield some
