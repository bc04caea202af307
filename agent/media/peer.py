"""The sound between this device and one other party of a call, from the first offer to the end, over
every loss of the way between them."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import structlog

from bellwire.agent.media.dtmf import TONE_GAP_MS, TONE_MS
from bellwire.agent.media.engine.interface import (
    Block,
    IceCandidate,
    PeerConnection,
    PeerListeners,
    PeerState,
)
from bellwire.agent.media.negotiation import Negotiation, Says, new_session
from bellwire.signaling.errors import ERROR_TABLE, CallError
from bellwire.signaling.identifiers import DeviceId, Identity
from bellwire.signaling.wire.media import (
    MediaAnswer,
    MediaCandidate,
    MediaDocument,
    MediaFailed,
    MediaOffer,
)

log = structlog.get_logger(__name__)

_KEPT = 64
"""Documents of one party that wait to be taken."""


@dataclass(frozen=True, slots=True)
class MediaTiming:
    """How long the parts of a call's sound may take, in seconds."""

    gathering_s: float = 0.1
    """A description waits so long for candidates to take along."""
    connect_within_s: float = 20.0
    """From the answer to the call until sound goes both ways."""
    unsettled_s: float = 2.0
    """A connection that breaks and comes back by itself within this was not lost."""
    restart_first_s: float = 1.0
    restart_longest_s: float = 8.0
    """Between two restarts of ICE: the first, doubled up to the longest."""
    give_up_s: float = 30.0
    """From the loss of the sound, or of a sound device, until the call is given up."""
    signalling_give_up_s: float = 600.0
    """From the loss of the relay until a call whose sound goes on is given up."""
    last_word_s: float = 3.0
    """How long it is tried to tell the other side why there is no sound."""


@dataclass(frozen=True, slots=True)
class PeerNews:
    """Who is told how the sound with one party stands. All but `heard`, which is called with each
    block on the engine's thread, are called on the event loop."""

    connected: Callable[[], None]
    lost: Callable[[], None]
    without_sound: Callable[[], None]
    heard: Callable[[Block], None]


Connect = Callable[[PeerListeners], Awaitable[PeerConnection]]
Say = Callable[[Identity, MediaDocument], Coroutine[Any, Any, None]]


class Peer:
    """One other party.

    Args:
        who: The party.
        offers: Whether this device offers, rather than wait for an offer.
        connect: Makes a connection.
        say: Tells the party something, and returns once the relay has it.
        device: This device.
        news: Who is told how it stands.
        timing: How long things may take.
        early: Whether the call has not been accepted yet.
    """

    def __init__(
        self,
        who: Identity,
        *,
        offers: bool,
        connect: Connect,
        say: Say,
        device: DeviceId,
        news: PeerNews,
        timing: MediaTiming,
        early: bool = False,
    ) -> None:
        self.who = who
        self.has_sound = True
        self.connection: PeerConnection | None = None
        self.session: Negotiation | None = None
        self._offers = offers
        self._connect = connect
        self._say = say
        self._device = device
        self._news = news
        self._timing = timing
        self._early = early
        self._first_session: str | None = None
        self._inbox: asyncio.Queue[MediaDocument] = asyncio.Queue(_KEPT)
        self._outbox: asyncio.Queue[MediaDocument] = asyncio.Queue()
        self._watch = _ConnectionWatch(
            who,
            lambda: PeerState.NEW if self.connection is None else self.connection.state,
            lambda: self.has_sound,
            self._restart,
            news,
            timing,
        )

    @property
    def is_up(self) -> bool:
        """Whether the sound went both ways once; it may be lost just now."""
        return self._watch.is_up

    @property
    def is_connected(self) -> bool:
        """Whether the sound goes both ways now."""
        return self._watch.is_connected

    def take(self, document: MediaDocument) -> None:
        """Takes what the party says."""
        try:
            self._inbox.put_nowait(document)
        except asyncio.QueueFull:
            log.warning("media document dropped: too many wait", from_=self.who)

    def send(self, block: Block) -> None:
        """Sends one block of this device's voice. Any one thread may call it."""
        connection = self.connection
        if connection is not None:
            connection.send(block)

    async def dial(self, tones: str) -> None:
        """Sends tones (`0-9*#`), and returns when they are sent. 53405 where it cannot."""
        if self.connection is not None:
            await self.connection.insert_dtmf(tones, TONE_MS, TONE_GAP_MS)

    async def run(self) -> None:
        """Keeps the sound going both ways until cancelled.

        Raises:
            CallError: 53400, 53402, 53404 or 53405: it cannot be.
        """
        failed: CallError | None = None
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._speak())
                tasks.create_task(self._watch.run())
                if self._offers:
                    await self._begin()
                await self._listen()
        except* CallError as errors:
            failed = _first(errors)
        finally:
            connection, self.connection = self.connection, None
            if connection is not None:
                await connection.close()
        if failed is not None:
            raise failed

    async def say_failed(self, error: CallError) -> None:
        """Tells the party, if it can be told soon, that there is no sound."""
        failed = MediaFailed(
            session=new_session() if self.session is None else self.session.session,
            device_id=self._device,
            to_device=None if self.session is None else self.session.other_device,
            code=error.code,
            detail=error.message[:512],
        )
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._timing.last_word_s):
                await self._say(self.who, failed)

    # What is said

    def name_session(self) -> str:
        """The name of the session that this side is going to offer."""
        if self._first_session is None:
            self._first_session = new_session()
        return self._first_session

    async def _begin(self) -> None:
        connection, session = await self._new_session(self.name_session())
        await session.offer(connection)

    async def _new_session(
        self, name: str, *, early: bool | None = None
    ) -> tuple[PeerConnection, Negotiation]:
        """A session in place of the one before, if there was one."""
        before, self.connection = self.connection, None
        if before is not None:
            await before.close()
        session = Negotiation(
            name,
            Says(self._device, self._outbox.put_nowait),
            gathering_s=self._timing.gathering_s,
            early=self._early if early is None else early,
        )

        def found(candidate: IceCandidate) -> None:
            if self.session is session:
                session.found(candidate)

        def moved(_: PeerState) -> None:
            if self.session is session:
                self._watch.look()

        self.session = session
        self.has_sound = True
        connection = await self._connect(PeerListeners(found, moved, self._news.heard))
        self.connection = connection
        self._watch.look()
        return connection, session

    async def _speak(self) -> None:
        """Says one thing after the other, so that nothing overtakes its offer."""
        while True:
            document = await self._outbox.get()
            if self.session is not None and document.session == self.session.session:
                await self._say(self.who, document)

    async def _listen(self) -> None:
        while True:
            document = await self._inbox.get()
            if document.to_device not in (None, self._device):
                continue
            if isinstance(document, MediaOffer):
                await self._take_offer(document)
            elif isinstance(document, MediaFailed):
                self._take_failure(document)
            elif isinstance(document, MediaAnswer | MediaCandidate):
                await self._take_of_session(document)

    async def _take_offer(self, offer: MediaOffer) -> None:
        session, connection = self.session, self.connection
        if session is None or connection is None or session.session != offer.session:
            if self._offers and session is not None and session.awaits_answer and not self.is_up:
                log.info("media offer ignored: this side offers", from_=self.who)
                return
            connection, session = await self._new_session(offer.session, early=offer.early)
            self._offers = False
        await session.take_offer(connection, offer)

    def _take_failure(self, failed: MediaFailed) -> None:
        session = self.session
        if session is not None and session.session != failed.session:
            log.info("media failure ignored: of an unknown session", from_=self.who)
            return
        error = CallError(
            failed.code if failed.code in ERROR_TABLE else 53405,
            f"{self.who}: {failed.detail}" if failed.detail else "",
        )
        if not failed.without_sound or self.is_up:
            raise _FromThere(error)
        self.has_sound = False
        self._watch.look()

    async def _take_of_session(self, document: MediaAnswer | MediaCandidate) -> None:
        session, connection = self.session, self.connection
        if session is None or connection is None or session.session != document.session:
            log.info(
                "media document ignored: of an unknown session",
                kind=document.kind,
                from_=self.who,
            )
        elif isinstance(document, MediaAnswer):
            await session.take_answer(connection, document)
        else:
            await session.take_candidate(connection, document)

    async def _restart(self) -> None:
        """Offers anew, unless the other side does, or the last offer could not even be said yet."""
        connection, session = self.connection, self.session
        if self._offers and connection and session and self._outbox.empty():
            await session.offer(connection, ice_restart=True)


class _FromThere(CallError):
    """What the other side says has failed; it need not be told."""

    def __init__(self, error: CallError) -> None:
        super().__init__(error.code, error.message)


def is_known_there(error: CallError) -> bool:
    """Whether the other side itself said so."""
    return isinstance(error, _FromThere)


def _first(errors: BaseExceptionGroup[CallError]) -> CallError:
    error = errors.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error


class _ConnectionWatch:
    """Watches the connection with one party: whether it comes about, whether it is lost, and has it
    brought back.

    Args:
        who: The party.
        state: Where the connection stands.
        has_sound: Whether the other side has sound at all.
        restart: Restarts ICE, if that is this side's to do.
        news: Who is told how it stands.
        timing: How long things may take.
    """

    def __init__(
        self,
        who: Identity,
        state: Callable[[], PeerState],
        has_sound: Callable[[], bool],
        restart: Callable[[], Awaitable[None]],
        news: PeerNews,
        timing: MediaTiming,
    ) -> None:
        self.is_up = False
        self.is_connected = False
        self._who = who
        self._state = state
        self._has_sound = has_sound
        self._restart = restart
        self._news = news
        self._timing = timing
        self._changed = asyncio.Event()

    def look(self) -> None:
        """Has it look again: the connection, or whether the other side has sound, has changed."""
        self._changed.set()

    async def run(self) -> None:
        """Watches until cancelled.

        Raises:
            CallError: 53405, there is no sound, or it did not come back.
        """
        try:
            while True:
                await self._connected()
                while self.is_up:
                    await self._lost()
                    await self._bring_back()
        finally:
            self.is_up = self.is_connected = False

    async def _connected(self) -> None:
        """Waits until the sound goes both ways, or the other side is known to have none."""
        within_s = self._timing.connect_within_s
        try:
            async with asyncio.timeout(within_s):
                while self._has_sound() and self._state() is not PeerState.CONNECTED:
                    if self._state() is PeerState.FAILED:
                        raise CallError(53405, f"no network path to {self._who} was found")
                    await self._change()
        except TimeoutError:
            raise CallError(53405, f"no sound from {self._who} within {within_s:g} s") from None
        if self._has_sound():
            self._say_connected()
            return
        self._news.without_sound()
        while not self._has_sound():
            await self._change()

    async def _lost(self) -> None:
        """Waits until the connection is lost, and does not come back by itself."""
        while True:
            while self._state() is PeerState.CONNECTED:
                await self._change()
            try:
                async with asyncio.timeout(self._timing.unsettled_s):
                    while self._state() not in (PeerState.CONNECTED, PeerState.FAILED):
                        await self._change()
            except TimeoutError:
                return
            if self._state() is PeerState.FAILED:
                return

    async def _bring_back(self) -> None:
        """Restarts ICE until it works again."""
        self.is_connected = False
        self._news.lost()
        log.warning("sound lost, reconnecting", other=self._who)
        wait_s = self._timing.restart_first_s
        try:
            async with asyncio.timeout(self._timing.give_up_s):
                while self._state() is not PeerState.CONNECTED:
                    await self._restart()
                    await self._connected_within(wait_s)
                    wait_s = min(2 * wait_s, self._timing.restart_longest_s)
        except TimeoutError:
            raise CallError(
                53405, f"the sound was lost, and not back within {self._timing.give_up_s:g} s"
            ) from None
        log.info("sound is back", other=self._who)
        self._say_connected()

    def _say_connected(self) -> None:
        self.is_up = self.is_connected = True
        self._news.connected()

    async def _connected_within(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._state() is not PeerState.CONNECTED:
                    await self._change()

    async def _change(self) -> None:
        await self._changed.wait()
        self._changed.clear()
