"""What relays say of the layers that they keep (:mod:`broker.fleet.layer_keeper`), as an operator hears it.

Before a write an operator asks for a relay (`sync`): after the answer the broker holds whatever a relay had
stored, so that nobody writes on what was lost. After it, the relay's word is waited for that the revision
is durable. An older relay says neither, and an account of before has no right to ask: then no relay keeps
layers here, as far as anybody can tell.
"""

import asyncio
import secrets
from collections.abc import Callable, Collection

from pydantic import ValidationError

from bellwire.broker.fleet.layer_keeper import StoredRevision
from bellwire.broker.session.messages import Incoming
from bellwire.broker.session.session import NobodyListens, NotConnected, PublishRefused, Session
from bellwire.config.fleet.layer import Layer
from bellwire.config.fleet.writing import document_of, held
from bellwire.config.waiting import Sleep
from bellwire.signaling.errors import InvalidInput
from bellwire.signaling.topics import (
    KEEPER_ANSWERS,
    KEEPERS,
    STORED,
    LayerName,
    layer_of,
    stored_topic,
)

_ANSWER_S = 20.0
"""How long a relay that listens has to answer: it may be putting much back."""
_ABSENT_S = 5.0
"""How long one is waited for where one has kept these layers, or the broker has lost one, and none is
there: the broker may have just come back, and the relay looks for it with backoff."""
_LOOK_S = 0.2
_ONE_BY_ONE = 16
_REMEMBERED_AT_MOST = 10_000


class Keepers:
    """Build it before the session runs.

    Args:
        session: An operator's.
        names: The layers that are to be written.
        sleep: Waits; a test injects its own.
    """

    def __init__(
        self, session: Session, names: Collection[LayerName], *, sleep: Sleep = asyncio.sleep
    ) -> None:
        self.names = tuple(names)
        self._session = session
        self._sleep = sleep
        self._newest: dict[LayerName, StoredRevision] = {}
        self._stored: dict[tuple[LayerName, int, str], None] = {}
        self._asked: dict[bytes, asyncio.Future[bool]] = {}
        self._listeners: list[Callable[[], None]] = []
        self.present = False
        """Whether a relay has answered since the connection stands."""
        self.silent = False
        """Whether one was there and has not: its database may be away."""
        few = len(names) <= _ONE_BY_ONE
        topics = [KEEPER_ANSWERS, *sorted(map(stored_topic, names))] if few else [STORED]
        for topic in topics:
            session.subscribe(topic, self._take, may_be_refused=True)
        session.on_disconnected(self._forget)

    def listen(self, listener: Callable[[], None]) -> None:
        """Has `listener` called on the loop whenever a relay has stored something."""
        self._listeners.append(listener)

    def newest(self, name: LayerName) -> int:
        """The highest revision of a layer that a relay has; 0 where none has said."""
        stored = self._newest.get(name)
        return 0 if stored is None else stored.revision

    def has_stored(self, name: LayerName, layer: Layer) -> bool:
        """Whether a relay has said that it has stored this very revision."""
        hashed = held(document_of(layer)).fingerprint
        return (name, layer.revision, hashed) in self._stored

    async def sync(self, *, has_lost: bool = False) -> bool:
        """Returns once the broker holds whatever a relay had stored and the broker had lost, or no relay is
        found; whether one was. `has_lost` says that the broker has lost a layer, by what devices say."""
        began = asyncio.get_running_loop().time()
        while True:
            try:
                self.present = await self._ask()
            except NobodyListens:
                self.present = False
            except PublishRefused:
                self.present = False
                return False
            except NotConnected:
                return False
            waited_s = asyncio.get_running_loop().time() - began
            if self.present or not (self._newest or has_lost) or waited_s > _ABSENT_S:
                return self.present
            await self._sleep(_LOOK_S)

    async def _ask(self) -> bool:
        word = secrets.token_hex(12).encode()
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._asked[word] = answer
        try:
            await self._session.publish(KEEPERS, word, to_somebody=True)
            async with asyncio.timeout(_ANSWER_S):
                answered = await answer
        except TimeoutError:
            self.silent = True
            return False
        finally:
            del self._asked[word]
        self.silent = False
        return answered

    def _take(self, message: Incoming) -> None:
        if message.topic == KEEPER_ANSWERS:
            self._answer(message.payload, True)
            return
        try:
            name = layer_of(message.topic)
            stored = StoredRevision.model_validate_json(message.payload)
        except (InvalidInput, ValidationError):
            return
        self._newest[name] = stored
        self._stored[name, stored.revision, stored.hash] = None
        if len(self._stored) > _REMEMBERED_AT_MOST:
            del self._stored[next(iter(self._stored))]
        for listener in self._listeners:
            listener()

    def _forget(self) -> None:
        """The connection is lost. What was stored is; whether a relay is there is open."""
        self.present = False
        for word in self._asked:
            self._answer(word, False)

    def _answer(self, word: bytes, is_there: bool) -> None:
        answer = self._asked.get(word)
        if answer is not None and not answer.done():
            answer.set_result(is_there)
