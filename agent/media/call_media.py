"""The sound of one call: a connection with each other party, all of them mixed by the sound card.

Who offers: the caller to everybody else; of two invitees, the one whose identity sorts first. So there
is one offer between any two. With more than four others it goes through a room of the relay's: each
device tells the others once it is there; with who is there too, it ends the connection between the two.
On a device without sound (`NoMedia`) the call is opened all the same, and whoever waits for sound is
told not to.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog

from bellwire.agent.link import RequestRefused
from bellwire.agent.media.dtmf import DtmfDetector, QuietTones, dial_steps
from bellwire.agent.media.early_media import EarlyMedia
from bellwire.agent.media.engine.interface import (
    Block,
    IceServer,
    MediaStats,
    PeerConnection,
    PeerListeners,
)
from bellwire.agent.media.negotiation import new_session
from bellwire.agent.media.peer import (
    MediaTiming,
    Peer,
    PeerNews,
    Say,
    is_known_there,
)
from bellwire.agent.media.playback import Playback
from bellwire.agent.media.room import EnterRoom, Room, Unmixed
from bellwire.agent.media.sound import AudioStream, CallCard, DeviceSound, MediaOptions
from bellwire.agent.quality.meter import VolumeMeter
from bellwire.agent.tasks import CallTasks
from bellwire.config.waiting import Sleep
from bellwire.hardware.audio.block import SILENCE, Samples
from bellwire.signaling.errors import CallError
from bellwire.signaling.identifiers import DeviceId, Identity
from bellwire.signaling.wire.media import (
    MESH_USERS,
    MediaDocument,
    MediaFailed,
    MediaOffer,
    MediaRoom,
)

log = structlog.get_logger(__name__)


MAX_PEERS = MESH_USERS - 1
"""Other parties whose sound one device mixes."""

_EARLY_DOCUMENTS = 64


def _ignore() -> None:
    """Of early sound nobody is told."""


@dataclass(frozen=True, slots=True)
class MediaNews:
    """Who is told how the sound of a call stands; called on the event loop.

    Args:
        connected: Sound goes both ways with somebody, or nobody else has any.
        lost: It went, and does not with anybody now; it is tried to get it back.
        failed: It cannot be with one party, or, for None, with the room of the call; the flag says that
            nobody is left.
        digit: A party has pressed a digit; None: it came out of the call's room, whoever pressed it.
    """

    connected: Callable[[], None]
    lost: Callable[[], None]
    failed: Callable[[Identity | None, CallError, bool], None]
    digit: Callable[[Identity | None, str], None]


class CallSound:
    """The sound of one call: how it was accepted, whether it is muted, what is said and heard."""

    def __init__(self) -> None:
        self.options = MediaOptions()
        self.muted = False
        self.local_stream = AudioStream()
        self.remote_stream = AudioStream()
        self.input_meter = VolumeMeter()
        self.output_meter = VolumeMeter()


class CallMedia(CallSound):
    """See `CallSound`: what goes over connections with the other parties.

    Args:
        say: Tells a party something, and returns once the relay has it.
        enter_room: Gives the call's room an offer, and returns its answer.
        news: Who is told how it stands.
    """

    def __init__(
        self,
        sound: DeviceSound,
        *,
        me: Identity,
        device: DeviceId,
        say: Say,
        enter_room: EnterRoom,
        tasks: CallTasks,
        news: MediaNews,
        timing: MediaTiming,
        sleep: Sleep,
    ) -> None:
        super().__init__()
        self._sound = sound
        self._me = me
        self._device = device
        self._say = say
        self._enter_room = enter_room
        self._tasks = tasks
        self._news = news
        self._timing = timing
        self._sleep = sleep
        self._peers: dict[Identity, Peer] = {}
        self._working: dict[Identity, asyncio.Task[None] | None] = {}
        self._room: Room | None = None
        self._in_room: set[Identity] = set()
        self._unmixed = Unmixed(device, say, tasks)
        self._sending: tuple[Peer | Room, ...] = ()
        self._was_up: set[Identity] = set()
        self._early: deque[tuple[Identity, MediaDocument]] = deque(maxlen=_EARLY_DOCUMENTS)
        self.early_media = EarlyMedia(self._make_early_peer, tasks)
        self._begun = False
        self._card = CallCard(sound, self._captured, self._card_is_gone, tasks, timing.give_up_s)
        self._dialling = asyncio.Lock()
        self._playing = asyncio.Lock()
        self._playback: Playback | None = None
        self._is_audible = asyncio.Event()

    # Who is in the call

    def begin(self, others: Sequence[Identity], caller: Identity | None) -> None:
        """The call is on, with these others in it so far."""
        self._begun = True
        for who in others:
            self.add(who, caller)
        waiting = tuple(self._early)
        self._early.clear()
        for who, document in waiting:
            self.take(who, document)
        if not self._peers:
            self._news.connected()

    def add(self, who: Identity, caller: Identity | None) -> None:
        """One more party is in the call; it may be known already."""
        if not self._begun or who in self._peers or who in self._unmixed:
            return
        if who in self._in_room and self._is_in_room:
            self._say_in_room(who)  # it may have said so before it was known to be in the call
            return
        offers = _offers(self._me, who, caller)
        if len(self._peers) >= MAX_PEERS:
            self._unmixed.add(who, waits=offers)
            self._go_to_room()
            return
        source = f"{who} {new_session()}"
        heard = self._hearing(who, source)
        peer = Peer(
            who,
            offers=offers,
            connect=self._connect,
            say=self._say,
            device=self._device,
            news=PeerNews(lambda: self._is_up(who), self._settle, self._settle, heard),
            timing=self._timing,
        )
        self._peers[who] = peer
        self._sending = self._all_peers()
        self._working[who] = self._tasks.start(self._keep(peer, source))
        if self._is_in_room:
            self._say_in_room(who)

    def remove(self, who: Identity) -> None:
        """A party is not in the call any more; it may be unknown."""
        self._in_room.discard(who)
        self._drop(who)

    def _drop(self, who: Identity) -> None:
        self._unmixed.remove(who)
        working = self._working.get(who)
        if working is not None:
            self._forget(who)
            working.cancel()
            self._settle()

    def take(self, who: Identity, document: MediaDocument) -> None:
        """Takes what a party says of its sound."""
        if self.early_media.take(who, document):
            self._sending = self._all_peers()
            return
        peer = self._peers.get(who)
        if not self._begun:
            self._early.append((who, document))
        elif isinstance(document, MediaRoom):
            self._take_in_room(who)
        elif peer is not None:
            peer.take(document)
        elif who in self._unmixed:
            self._unmixed.take(who, document)
        else:
            log.info("media document ignored: not in the call", from_=who, kind=document.kind)

    def hear_early(self, caller: Identity) -> None:
        """Has the caller heard before the call is accepted."""
        voice, source = self._sound.voice, f"{caller} early {new_session()}"
        self.early_media.hear(caller, QuietTones(voice, source).play, lambda: voice.forget(source))

    def _make_early_peer(self, who: Identity, offers: bool, heard: Callable[[Block], None]) -> Peer:
        return Peer(
            who,
            offers=offers,
            connect=self._connect,
            say=self._say,
            device=self._device,
            news=PeerNews(_ignore, _ignore, _ignore, heard),
            timing=self._timing,
            early=True,
        )

    # What goes over it

    @property
    def is_heard(self) -> bool:
        """Whether there is, or was, sound from anybody."""
        return bool(self._was_up) or self._is_in_room

    @property
    def codec(self) -> str | None:
        """What is spoken: `opus` or `pcmu`; None before an answer."""
        codecs = (way.connection.codec for way in self._ways() if way.connection)
        return next((codec for codec in codecs if codec is not None), None)

    async def send_digits(self, digits: str) -> None:
        """Sends digits and pauses (`0-9*#w`) to every party, after those sent before.

        Raises:
            CallError: 53405, where they cannot be sent.
        """
        async with self._dialling:
            for step in dial_steps(digits):
                ways = self._up() if step.tones else ()
                await asyncio.gather(*(way.dial(step.tones) for way in ways))
                if step.then_wait_s:
                    await self._sleep(step.then_wait_s)

    async def play(self, samples: Samples) -> None:
        """Plays a sound to every party, muted or not, after those played before, and returns once it was
        heard. As long as there is nobody who could hear it, it waits."""
        async with self._playing:
            await self._is_audible.wait()
            self._playback = playback = Playback(samples)
            try:
                await playback.ended()
            finally:
                self._playback = None

    async def stats(self) -> tuple[MediaStats, ...]:
        """What the connections of the parties count."""
        found = []
        for peer in self._up():
            if peer.connection is not None:
                try:
                    found.append(await peer.connection.stats())
                except CallError as error:  # it was closed meanwhile
                    log.info("no figures of a connection", other=peer.who, error=str(error))
        return tuple(found)

    def _captured(self, block: Block) -> None:
        spoken = SILENCE if self.muted else block
        playback = self._playback
        if playback is not None:
            spoken = playback.over(spoken)
        self.input_meter.take(spoken)
        self.local_stream.publish(spoken)
        for peer in self._sending:
            peer.send(spoken)

    def _hearing(self, who: Identity | None, source: str) -> Callable[[Block], None]:
        """What is done with each block heard of a party, or, for None, of the room."""
        loop, detector = asyncio.get_running_loop(), DtmfDetector()
        speaker = QuietTones(self._sound.voice, source)

        def heard(block: Block) -> None:
            speaker.play(block)
            self.output_meter.take(block)
            self.remote_stream.publish(block)
            digit = detector.hear(block)
            if digit is not None:
                loop.call_soon_threadsafe(self._news.digit, who, digit)

        return heard

    # The work

    async def _keep(self, peer: Peer, source: str) -> None:
        try:
            await peer.run()
        except CallError as error:
            await self._give_up(peer, error)
        except Exception as error:  # whatever a media library does, the station must ring on
            log.exception("the sound with a party broke", other=peer.who)
            await self._give_up(peer, CallError(53400, "the media engine failed", repr(error)))
        finally:
            self._sound.voice.forget(source)

    async def _give_up(self, peer: Peer, error: CallError) -> None:
        log.warning("no sound with a party", other=peer.who, error=str(error))
        if not is_known_there(error):
            await peer.say_failed(error)
        self._forget(peer.who)
        self._news.failed(peer.who, error, not self._ways())
        self._settle()

    # The room

    @property
    def _is_in_room(self) -> bool:
        return self._room is not None and self._room.was_up

    def _go_to_room(self) -> None:
        """What goes directly goes on meanwhile."""
        if self._room is not None:
            return

        heard = self._hearing(None, "room")
        self._room = Room(
            self._enter_room,
            connect=self._connect,
            device=self._device,
            news=PeerNews(self._room_is_up, self._settle, self._settle, heard),
            timing=self._timing,
            sleep=self._sleep,
        )
        self._sending = self._all_peers()
        self._tasks.start(self._keep_room(self._room))

    async def _keep_room(self, room: Room) -> None:
        try:
            await room.run()
        except CallError as error:
            self._leave_room(error)
        except Exception as error:  # as of a party
            log.exception("the sound with the call's room broke")
            self._leave_room(CallError(53400, "the media engine failed", repr(error)))
        finally:
            self._sound.voice.forget("room")

    def _leave_room(self, error: CallError) -> None:
        log.warning("no room for the call", error=str(error), parties=self._unmixed.parties)
        was_up, self._room = self._is_in_room, None
        self._sending = self._all_peers()
        self._unmixed.refuse(error)
        if was_up or not self._peers:
            self._news.failed(None, error, not self._peers)
        else:
            for who in self._unmixed.parties:
                self._news.failed(who, error, False)
        self._settle()

    def _room_is_up(self) -> None:
        self._is_audible.set()
        self.early_media.end()
        self._sending = self._all_peers()
        self._settle()
        for who in (*self._peers, *self._unmixed.parties):
            self._say_in_room(who)
        for who in tuple(self._in_room):
            self._drop(who)

    def _say_in_room(self, who: Identity) -> None:
        document = MediaRoom(session=new_session(), device_id=self._device)
        self._tasks.start(self._say(who, document))

    def _take_in_room(self, who: Identity) -> None:
        self._in_room.add(who)
        if self._is_in_room:
            self._drop(who)
        else:
            self._go_to_room()

    async def _connect(self, listeners: PeerListeners) -> PeerConnection:
        await self._card.attach(self.options.audio_devices)
        return self._sound.engine.connect(await self._servers(), listeners)

    async def _card_is_gone(self, fault: str) -> None:
        for who, peer in tuple(self._peers.items()):
            working = self._working.get(who)
            if working is not None:
                working.cancel()
            await self._give_up(peer, CallError(53400, fault))

    async def _servers(self) -> Sequence[IceServer]:
        if self.options.ice_servers is not None:
            return self.options.ice_servers
        try:
            return await self._sound.ice_servers()
        except (CallError, RequestRefused) as error:
            log.warning("no ICE servers: tried without", error=str(error))
            return ()

    def _forget(self, who: Identity) -> None:
        self._peers.pop(who, None)
        self._working.pop(who, None)
        self._was_up.discard(who)
        self._sending = self._all_peers()

    def _all_peers(self) -> tuple[Peer | Room, ...]:
        early = self.early_media.listeners if self.early_media.allowed else ()
        return (*self._ways(), *early)

    def _ways(self) -> tuple[Peer | Room, ...]:
        return (*self._peers.values(), *(() if self._room is None else (self._room,)))

    def _up(self) -> tuple[Peer | Room, ...]:
        return tuple(way for way in self._ways() if way.is_up)

    def _is_up(self, who: Identity) -> None:
        self._was_up.add(who)
        self._is_audible.set()
        log.info("sound goes both ways", other=who, codec=self.codec)
        self.early_media.end()
        self._sending = self._all_peers()
        self._settle()

    def _settle(self) -> None:
        """Says how the sound of the whole call stands, from how it stands with each."""
        peers = self._peers.values()
        if any(way.is_connected for way in self._ways()):
            self._news.connected()
        elif self._is_in_room or any(peer.who in self._was_up for peer in peers):
            self._news.lost()
        elif peers and not any(peer.has_sound for peer in peers):
            self._news.connected()


def _offers(me: Identity, who: Identity, caller: Identity | None) -> bool:
    """Whether it is this side that offers, of the two, or would if it had sound."""
    return me == caller or (who != caller and me < who)


class NoMedia(CallSound):
    """Stands where `CallMedia` does.

    Args:
        me: This device's identity.
        device: This device.
        say: Tells a party something, and returns once the relay has it.
        tasks: Who does the call's work.
        news: Who is told that the call is open.
    """

    def __init__(
        self, *, me: Identity, device: DeviceId, say: Say, tasks: CallTasks, news: MediaNews
    ) -> None:
        super().__init__()
        self._me = me
        self._device = device
        self._say = say
        self._tasks = tasks
        self._news = news
        self._told: set[Identity] = set()

    @property
    def is_heard(self) -> bool:
        """False: nobody is heard."""
        return False

    @property
    def codec(self) -> str | None:
        """None: nothing is spoken."""
        return None

    def begin(self, others: Sequence[Identity], caller: Identity | None) -> None:
        """The call is on, with these others in it so far."""
        for who in others:
            self.add(who, caller)
        log.info("call is open, without sound: this device has none")
        self._news.connected()

    def add(self, who: Identity, caller: Identity | None) -> None:
        """One more party is in the call; it is told if it waits for an offer from here."""
        if _offers(self._me, who, caller) and who not in self._told:
            self._told.add(who)
            self._tell(who, new_session(), None)

    def hear_early(self, caller: Identity) -> None:
        """Does nothing: there is no speaker."""

    def remove(self, who: Identity) -> None:
        """A party is not in the call any more."""
        self._told.discard(who)

    def take(self, who: Identity, document: MediaDocument) -> None:
        """Answers an offer with the truth."""
        if isinstance(document, MediaOffer) and document.to_device in (None, self._device):
            self._tell(who, document.session, document.device_id)

    async def send_digits(self, digits: str) -> None:
        """Cannot be.

        Raises:
            CallError: 53400.
        """
        raise CallError(53400, f"{len(digits)} digits not sent: this device has no sound")

    async def stats(self) -> tuple[MediaStats, ...]:
        """Empty: there are no connections."""
        return ()

    def _tell(self, who: Identity, session: str, to_device: str | None) -> None:
        self._tasks.start(
            self._say(
                who,
                MediaFailed(
                    session=session,
                    device_id=self._device,
                    to_device=to_device,
                    code=53400,
                    without_sound=True,
                    detail="this device has no sound",
                ),
            )
        )
