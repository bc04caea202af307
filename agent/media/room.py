"""The room of a call of more than five, as this device uses it: one connection in place of one with each
other party, brought about through the relay.

A connection that is lost is not repaired but made anew: a room forgets who has gone.
"""

import asyncio
from collections.abc import Awaitable, Callable

import structlog
from pydantic import ValidationError

from bellwire.agent.media.dtmf import InbandTones
from bellwire.agent.media.engine.interface import Block, PeerConnection
from bellwire.agent.media.negotiation import new_session
from bellwire.agent.media.peer import Connect, MediaTiming, Peer, PeerNews, Say
from bellwire.agent.tasks import CallTasks
from bellwire.config.waiting import Sleep
from bellwire.signaling.errors import CallError
from bellwire.signaling.identifiers import DeviceId, Identity
from bellwire.signaling.wire.media import MediaAnswer, MediaDocument, MediaFailed, MediaOffer

log = structlog.get_logger(__name__)

EnterRoom = Callable[[str], Awaitable[str]]
"""Gives the call's room an offer (SDP), and returns its answer. CallError where there is no room."""

_THE_ROOM = Identity("the room")


class Room:
    """This device's place in the room.

    Args:
        enter: Gives the room an offer, through the relay.
        connect: Makes a connection.
        device: This device.
        news: Who is told how it stands.
        timing: How long things may take.
        sleep: Waits before it is tried again.
    """

    def __init__(
        self,
        enter: EnterRoom,
        *,
        connect: Connect,
        device: DeviceId,
        news: PeerNews,
        timing: MediaTiming,
        sleep: Sleep,
    ) -> None:
        self.was_up = False
        self._enter = enter
        self._connect = connect
        self._device = device
        self._news = news
        self._timing = timing
        self._sleep = sleep
        self._peer: Peer | None = None
        self._came = False
        self._tones = InbandTones()

    @property
    def connection(self) -> PeerConnection | None:
        """The connection; None where there is none just now."""
        return None if self._peer is None else self._peer.connection

    @property
    def who(self) -> Identity:
        """What it is called in logs."""
        return _THE_ROOM

    @property
    def is_up(self) -> bool:
        """Whether the sound went both ways once; it may be lost just now."""
        return self._peer is not None and self._peer.is_up

    @property
    def is_connected(self) -> bool:
        """Whether the sound goes both ways now."""
        return self._peer is not None and self._peer.is_connected

    def send(self, block: Block) -> None:
        """Sends one block of this device's voice. Any one thread may call it."""
        peer = self._peer
        if peer is not None:
            peer.send(self._tones.replace(block))

    async def dial(self, tones: str) -> None:
        """Says tones (`0-9*#`) in place of the voice, and returns when they are said.

        Raises:
            CallError: 53405, the way to the room is lost just now.
        """
        if not self.is_connected:
            raise CallError(53405, "the digits were not sent: the way to the call's room is lost")
        await self._tones.say(tones)

    async def run(self) -> None:
        """Stays in the room until cancelled.

        Raises:
            CallError: there is no room, or it was lost and could not be entered again in time.
        """
        clock = asyncio.get_running_loop().time
        lost_at = clock()
        while True:
            self._came = False
            try:
                await self._stay()
            except CallError as error:
                if self._came:
                    lost_at = clock()
                if not self.was_up or clock() - lost_at >= self._timing.give_up_s:
                    raise
                log.warning("the call's room was lost, entering again", error=str(error))
            await self._sleep(self._timing.restart_first_s)

    async def _stay(self) -> None:
        offered: set[str] = set()

        async def say(_: Identity, document: MediaDocument) -> None:
            # Candidates that trickle are not told: the room learns them from this side's checks (RFC
            # 8445, section 7.3.1.3).
            if not isinstance(document, MediaOffer):
                return
            if document.session in offered:
                raise CallError(53405, "the way to the call's room was lost")
            offered.add(document.session)
            peer.take(_answer(document, await self._enter(document.sdp)))

        news = PeerNews(self._is_up, self._news.lost, self._news.without_sound, self._news.heard)
        self._peer = peer = Peer(
            _THE_ROOM,
            offers=True,
            connect=self._connect,
            say=say,
            device=self._device,
            news=news,
            timing=self._timing,
        )
        await peer.run()

    def _is_up(self) -> None:
        self._came = self.was_up = True
        self._news.connected()


def _answer(offer: MediaOffer, sdp: str) -> MediaAnswer:
    try:
        return MediaAnswer(session=offer.session, sdp=sdp)
    except ValidationError as error:
        raise CallError(53403, "the room's answer is empty or too long") from error


class Unmixed:
    """The parties beyond those whose sound this device mixes itself. In the room it hears them; where
    there is none they are told that they are not heard.

    Args:
        device: This device.
        say: Tells a party something, and returns once the relay has it.
        tasks: Who does the call's work.
    """

    def __init__(self, device: DeviceId, say: Say, tasks: CallTasks) -> None:
        self._device = device
        self._say = say
        self._tasks = tasks
        self._refused_for: CallError | None = None
        self._offers: dict[Identity, MediaOffer | None] = {}
        self._wait: set[Identity] = set()

    def __contains__(self, who: object) -> bool:
        """Whether a party is one of them."""
        return who in self._offers

    @property
    def parties(self) -> tuple[Identity, ...]:
        """Those parties, in the order they came."""
        return tuple(self._offers)

    def add(self, who: Identity, *, waits: bool) -> None:
        """One more; `waits` says that it waits for an offer of this device."""
        self._offers[who] = None
        self._refused_for = None
        if waits:
            self._wait.add(who)

    def remove(self, who: Identity) -> None:
        """It is none of them any more; it may not have been."""
        self._offers.pop(who, None)
        self._wait.discard(who)

    def take(self, who: Identity, document: MediaDocument) -> None:
        """Takes what one of them says: an offer is answered where it is known that there is no room."""
        if isinstance(document, MediaOffer) and document.to_device in (None, self._device):
            self._offers[who] = document
            if self._refused_for is not None:
                self._tell(who, self._refused_for)

    def refuse(self, error: CallError) -> None:
        """There is no room, for this reason."""
        self._refused_for = error
        for who in self._offers:
            self._tell(who, error)

    def _tell(self, who: Identity, error: CallError) -> None:
        offer = self._offers[who]
        if offer is None and who not in self._wait:
            return  # its offer is still to come
        failed = MediaFailed(
            session=new_session() if offer is None else offer.session,
            device_id=self._device,
            to_device=None if offer is None else offer.device_id,
            code=53405,
            detail=f"no sound with one party more: {error.message}"[:512],
        )
        self._tasks.start(self._say(who, failed))
