"""One media session between this device and another: who offers, who answers, and the candidates of
both (JSEP, RFC 8829).

Candidates found within a moment travel inside the description, the rest trickle (RFC 8838): each
message is a transaction of the relay.
"""

import asyncio
import contextlib
import secrets
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from bellwire.agent.media.engine.interface import IceCandidate, PeerConnection
from bellwire.signaling.errors import CallError
from bellwire.signaling.identifiers import DeviceId
from bellwire.signaling.wire.media import (
    MEDIA_SDP_MAX_LENGTH,
    MediaAnswer,
    MediaCandidate,
    MediaDocument,
    MediaOffer,
)

log = structlog.get_logger(__name__)


def new_session() -> str:
    """The name of a new session."""
    return secrets.token_hex(8)


@dataclass(frozen=True, slots=True)
class Says:
    """Who speaks in a session, and how."""

    device: DeviceId
    say: Callable[[MediaDocument], None]


class Negotiation:
    """One session.

    Args:
        session: Its name.
        says: This device, and its way to the other.
        gathering_s: How long a description waits for candidates.
        early: Whether it is a session from before the call is accepted.
    """

    def __init__(
        self, session: str, says: Says, *, gathering_s: float, early: bool = False
    ) -> None:
        self.session = session
        self.early = early
        self.other_device: str | None = None
        self.awaits_answer = False
        self._says = says
        self._gathering_s = gathering_s
        self._gathered: list[IceCandidate] | None = None
        self._all_gathered = asyncio.Event()
        self._turn = asyncio.Lock()

    async def offer(self, connection: PeerConnection, *, ice_restart: bool = False) -> None:
        """Offers, or offers anew to restart ICE.

        Raises:
            CallError: 53400.
        """
        async with self._turn:
            self._gather()
            sdp = await connection.create_offer(ice_restart=ice_restart)
            self.awaits_answer = True
            document = MediaOffer(**self._names(), sdp=sdp, early=self.early)
            await self._say_with_candidates(document)

    async def take_offer(self, connection: PeerConnection, offer: MediaOffer) -> None:
        """Answers an offer.

        Raises:
            CallError: 53400, 53402 or 53404.
        """
        async with self._turn:
            self.other_device = offer.device_id
            self.awaits_answer = False
            self._gather()
            sdp = await connection.accept_offer(offer.sdp)
            await self._say_with_candidates(MediaAnswer(**self._names(), sdp=sdp))

    async def take_answer(self, connection: PeerConnection, answer: MediaAnswer) -> None:
        """Takes the answer to this side's offer; one that nobody waits for is ignored.

        Raises:
            CallError: 53402 or 53404.
        """
        async with self._turn:
            if not self.awaits_answer:
                log.info("media answer ignored: no offer awaits it", session=self.session)
                return
            self.awaits_answer = False
            self.other_device = answer.device_id
            await connection.accept_answer(answer.sdp)

    async def take_candidate(self, connection: PeerConnection, found: MediaCandidate) -> None:
        """Takes one of the other side's candidates; one that makes no sense is no loss."""
        try:
            await connection.add_candidate(
                IceCandidate(found.candidate, found.sdp_mid, found.sdp_m_line_index)
            )
        except CallError as error:
            log.warning("media candidate not understood", session=self.session, error=str(error))

    def found(self, candidate: IceCandidate) -> None:
        """Takes one of this side's candidates, to be told to the other."""
        if self._gathered is None:
            self._trickle(candidate)
            return
        self._gathered.append(candidate)
        if not candidate.candidate:
            self._all_gathered.set()

    def _gather(self) -> None:
        self._gathered = []
        self._all_gathered.clear()

    async def _say_with_candidates(self, document: MediaOffer | MediaAnswer) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._gathering_s):
                await self._all_gathered.wait()
        gathered, self._gathered = self._gathered or [], None
        sdp, left = with_candidates(document.sdp, gathered)
        self._says.say(document.model_copy(update={"sdp": sdp}))
        for candidate in left:
            self._trickle(candidate)

    def _trickle(self, candidate: IceCandidate) -> None:
        self._says.say(
            MediaCandidate(
                **self._names(),
                candidate=candidate.candidate,
                sdp_mid=candidate.sdp_mid,
                sdp_m_line_index=candidate.sdp_m_line_index,
            )
        )

    def _names(self) -> dict[str, str | None]:
        return {
            "session": self.session,
            "device_id": self._says.device,
            "to_device": self.other_device,
        }


def with_candidates(
    sdp: str, candidates: list[IceCandidate]
) -> tuple[str, tuple[IceCandidate, ...]]:
    """A description of one medium with these candidates in it, as far as there is room, and those
    that are left (RFC 8839, section 5.1)."""
    left: list[IceCandidate] = []
    for candidate in candidates:
        value = candidate.candidate.removeprefix("a=")
        line = f"a={value}\r\n" if value else "a=end-of-candidates\r\n"
        if line in sdp:
            continue
        if left or len(sdp) + len(line) > MEDIA_SDP_MAX_LENGTH:
            left.append(candidate)
        else:
            sdp += line
    return sdp, tuple(left)
