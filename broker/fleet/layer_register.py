"""Writing the fleet's layers with compare-and-set, over MQTT alone.

A broker keeps the last message of a topic and sends all messages of one topic to all subscribers in
one order; it compares nothing. A write therefore takes two rounds:

1. *Claim*: publish "I am about to write on top of PARENT" (its hash) on the layer's claim topic, and
   wait for the own echo. The first claim on a parent holds it; everybody who was subscribed agrees on
   which that is. Who comes second writes nothing: the layer's topic never carries a loser's document.
   A claim is retained for 10 s, so that who subscribes later knows of it, and a crash is forgotten.
2. *Write*: the holder publishes revision + 1, retained, within 5 s, and waits for its echo. What came
   just before the echo must be the parent; it can be another only where somebody wrote without a
   claim (any MQTT client may), or where the network kept a message back for longer than the claim
   lived. Then that document is put back, and the write is refused.

Guaranteed, for any number of writers: of those that wrote on one parent at most one is told that it
has written, each other one is told whose revision came first; a writer that dies at any point leaves
the old layer or its own whole one, and blocks the others for at most 10 s. Not guaranteed: where
a message is kept back for more than 5 s *and* its author dies before it can put back what that
overwrote, or where somebody overwrites layers with another client, the other revision is only in the
history. A connection lost between write and echo leaves open whether it stands: the error says so.
An author's name is what they say; the broker proves only that they are an operator.

The history is a ring of 20 retained documents. A writer first keeps its parent there, then its own; where
a relay keeps the layers (:mod:`broker.fleet.layer_keeper`) that keeps the own, once it has stored it, since
a write on what the broker had lost must not push out the revision that stands.
"""

import asyncio
import secrets
from collections.abc import Callable, Collection
from datetime import datetime

import structlog
from pydantic import ValidationError

from bellwire.broker.session.messages import Incoming
from bellwire.broker.session.session import NotConnected, Session
from bellwire.config.fleet.layer import Layer
from bellwire.config.fleet.writing import (
    CLAIM_LIFE_S,
    CLAIM_USE_S,
    NOTHING,
    Claim,
    Claims,
    Draft,
    Held,
    document_of,
    held,
    in_order,
    layer_after,
    slot_of,
)
from bellwire.signaling.errors import InvalidInput, Refusal, Unavailable
from bellwire.signaling.topics import (
    CLAIMS,
    HISTORIES,
    LAYERS,
    OPERATORS_ECHO,
    LayerName,
    claim_topic,
    history_of,
    history_topic,
    layer_of,
    layer_topic,
)

log = structlog.get_logger(__name__)

_ECHO_TIMEOUT_S = 10.0
_HISTORIES_ONE_BY_ONE = 16
_CLAIM_LIMIT_BYTES = 1024


class LayerConflict(Refusal):
    """Another operator's revision came first; `winner` is what the layer is now, if that is a layer."""

    slug = "layer-conflict"
    title = "Another revision came first"

    def __init__(self, name: LayerName, now: Held, more: str = "") -> None:
        self.winner = now.layer
        what = (
            f"revision {now.layer.revision} by {now.layer.author} ({now.layer.at:%Y-%m-%d %H:%M:%S} UTC)"
            if now.layer
            else "a document that is no layer"
            if now.payload
            else "somebody's removal of the layer"
        )
        super().__init__(
            f"layer {name}: {what} came first, and nothing was written{more}."
            " See it with `bellwire fleet log`, then write again"
        )


class LayerRegister:
    """The layers as the broker retains them, and the one way to write them.

    Args:
        session: An operator's session; build the register before it runs.
        author: The operator's name.
        histories: The layers whose history is wanted: those that are to be written, too.
        now: The wall clock, for the `at` of a layer.
    """

    def __init__(
        self,
        session: Session,
        author: str,
        *,
        histories: Collection[LayerName] = (),
        now: Callable[[], datetime],
    ) -> None:
        self._session = session
        self._author = author
        self._now = now
        self._clock = asyncio.get_running_loop().time
        self._held: dict[LayerName, Held] = {}
        self._claims: dict[LayerName, Claims] = {}
        self._histories: dict[LayerName, dict[int, Layer]] = {}
        self._echoes: dict[tuple[str, bytes], asyncio.Future[Held]] = {}
        self._news = asyncio.Event()
        self._listeners: list[Callable[[LayerName], None]] = []
        self._above: Callable[[LayerName], int] = lambda _: 0
        self.connections_lost = 0
        """How often the connection was lost: what was held before is open then."""
        self.keeps_own_history = True
        """Whether a write keeps itself in the history."""
        session.subscribe(OPERATORS_ECHO, self._take_echo)
        session.subscribe(CLAIMS, self._take_claim)
        session.subscribe(LAYERS, self._take_layer)
        # Last: of more histories than the broker keeps for one session it throws some away, and layers
        # it must not.
        few = len(histories) <= _HISTORIES_ONE_BY_ONE
        for topic in sorted(set(map(history_of, histories))) if few else [HISTORIES]:
            session.subscribe(topic, self._take_history)
        session.on_disconnected(self._forget)

    def listen(self, listener: Callable[[LayerName], None]) -> None:
        """Has `listener` called on the loop with the name of each layer that changes."""
        self._listeners.append(listener)

    def go_above(self, highest: Callable[[LayerName], int]) -> None:
        """Has writes go above what this says of a layer, too: what a relay has stored, or a device obeyed."""
        self._above = highest

    async def read(self) -> None:
        """Waits until all that the broker retains is here.

        Raises:
            Unavailable: the broker is not there, or does not answer.
        """
        await self._publish(OPERATORS_ECHO, secrets.token_bytes(12))

    def layers(self) -> dict[LayerName, Held]:
        """All layers, by name, as last heard."""
        return dict(sorted(self._held.items()))

    def held(self, name: LayerName) -> Held:
        """A layer as last heard."""
        return self._held.get(name, NOTHING)

    def history(self, name: LayerName) -> list[Layer]:
        """The last revisions of a layer, newest first, the one in force included."""
        kept = dict(self._histories.get(name, {}))
        if (now := self.held(name).layer) is not None:
            kept[slot_of(now.revision)] = now
        return in_order(kept.values())

    async def write(self, name: LayerName, draft: Draft, *, on: Held) -> Layer:
        """Writes a layer on top of `on`, which the author has seen.

        Raises:
            LayerConflict: another revision came first; nothing of this one is in force.
            InvalidInput: the layer is too large.
            Unavailable: the broker was lost, or another writer does not finish.
        """
        known = max((layer.revision for layer in self.history(name)), default=0)
        known = max(known, self._above(name))
        layer = layer_after(on, draft, author=self._author, at=self._now(), known=known)
        await self._replace(name, document_of(layer), on=on, layer=layer)
        return layer

    async def _replace(
        self, name: LayerName, payload: bytes, *, on: Held, layer: Layer | None
    ) -> None:
        claimed_at = self._clock()
        await self._claim(name, on)
        if on.layer is not None:
            await self._keep(name, on.layer)
        if self.held(name).fingerprint != on.fingerprint:
            raise LayerConflict(name, self.held(name))
        if self._clock() - claimed_at > CLAIM_USE_S:
            raise Unavailable(f"layer {name}: the broker is too slow to write safely; try again")
        before = await self._publish(layer_topic(name), payload, retain=True)
        if before.fingerprint != on.fingerprint:
            await self._put_back(name, before, over=held(payload))
        if layer is not None and self.keeps_own_history:
            await self._keep(name, layer)

    async def _claim(self, name: LayerName, on: Held) -> None:
        """Returns once nobody else writes on this parent for a while."""
        claim = Claim(nonce=secrets.token_hex(8), author=self._author, parent=on.fingerprint)
        payload = claim.model_dump_json().encode()
        await self._publish(claim_topic(name), payload, retain=True, expires_in_s=CLAIM_LIFE_S)
        claims = self._claims.setdefault(name, Claims())
        holder = claims.holder(on.fingerprint, self._clock())
        if holder == claim:
            return
        try:
            async with asyncio.timeout(CLAIM_LIFE_S):
                while self.held(name).fingerprint == on.fingerprint:
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError as error:
            who = holder.author if holder else "somebody"
            raise Unavailable(
                f"layer {name}: {who} began to write it and did not finish; try again"
            ) from error
        raise LayerConflict(name, self.held(name))

    async def _put_back(self, name: LayerName, other: Held, *, over: Held) -> None:
        """Puts back what an own write has overwritten by mistake, and refuses the write."""
        log.warning("layer overwritten without a claim, putting it back", layer=name)
        try:
            await self._replace(name, other.payload, on=over, layer=other.layer)
        except LayerConflict as conflict:
            more = f"; it stands on this write, though: {other.payload[:200]!r} is lost"
            raise LayerConflict(name, self.held(name), more) from conflict
        raise LayerConflict(name, other)

    async def _keep(self, name: LayerName, layer: Layer) -> None:
        slot = slot_of(layer.revision)
        if self._histories.get(name, {}).get(slot) == layer:
            return
        try:
            await self._session.publish(history_topic(name, slot), document_of(layer), retain=True)
        except NotConnected as error:
            raise Unavailable(f"layer {name}: its history was not written: {error}") from error

    async def _publish(
        self, topic: str, payload: bytes, *, retain: bool = False, expires_in_s: int | None = None
    ) -> Held:
        """Publishes and waits for the echo; what the topic's layer was just before."""
        echo: asyncio.Future[Held] = asyncio.get_running_loop().create_future()
        self._echoes[topic, payload] = echo
        try:
            async with asyncio.timeout(_ECHO_TIMEOUT_S):
                await self._session.publish(
                    topic, payload, retain=retain, expires_in_s=expires_in_s
                )
                return await echo
        except (NotConnected, TimeoutError) as error:
            more = (
                "; whether the last write stands is open: see `bellwire fleet log`"
                if topic.removeprefix(LAYERS[:-1]) != topic
                else ""
            )
            raise Unavailable(f"the broker {self._session.address.url}: {error!s}{more}") from error
        finally:
            del self._echoes[topic, payload]

    def _echo(self, message: Incoming, before: Held = NOTHING) -> None:
        echo = self._echoes.get((message.topic, message.payload))
        if echo is not None and not echo.done():
            echo.set_result(before)

    def _take_echo(self, message: Incoming) -> None:
        self._echo(message)

    def _take_layer(self, message: Incoming) -> None:
        try:
            name = layer_of(message.topic)
        except InvalidInput:
            return
        before = self.held(name)
        if message.payload:
            self._held[name] = held(message.payload)
        else:
            self._held.pop(name, None)
        self._echo(message, before)
        self._news.set()
        for listener in self._listeners:
            listener(name)

    def _take_claim(self, message: Incoming) -> None:
        try:
            name = layer_of(message.topic)
            claim = Claim.model_validate_json(message.payload[:_CLAIM_LIMIT_BYTES])
        except (InvalidInput, ValidationError):
            return
        life_s = min(CLAIM_LIFE_S, message.expires_in_s or CLAIM_LIFE_S)
        self._claims.setdefault(name, Claims()).take(claim, self._clock(), life_s)
        self._echo(message)

    def _take_history(self, message: Incoming) -> None:
        try:
            name = layer_of(message.topic)
        except InvalidInput:
            return
        if (layer := held(message.payload).layer) is not None:
            self._histories.setdefault(name, {})[slot_of(layer.revision)] = layer

    def _forget(self) -> None:
        """The connection is lost: what was in between is not known, and comes again with the next."""
        self.connections_lost += 1
        self._held.clear()
        self._claims.clear()
        for echo in self._echoes.values():
            if not echo.done():
                echo.set_exception(NotConnected("the connection was lost"))
                echo.exception()
