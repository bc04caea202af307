"""Sound before the call is accepted: the called side may hear the caller, where the caller allows it.

The caller says so in the invite, by a member of `extended_data`. Each device that rings and wants to
hear it then offers a session of its own (`early` in the offer), which the caller answers; once the call
is accepted, its own session takes over.
"""

import asyncio
import json
from collections.abc import Callable

import structlog

from bellwire.agent.media.engine.interface import Block
from bellwire.agent.media.peer import Peer
from bellwire.agent.tasks import CallTasks
from bellwire.signaling.errors import CallError, InvalidInput
from bellwire.signaling.identifiers import Identity
from bellwire.signaling.wire.media import MediaDocument, MediaOffer

log = structlog.get_logger(__name__)

MAX_LISTENERS = 4
"""Ringing devices that may hear one caller early."""

_MEMBER = "early_media"


def with_early_media(extended_data: str) -> str:
    """The extended data of an invite, with the caller's leave in it.

    Raises:
        InvalidInput: there is data already, and it is no JSON object.
    """
    document = _document(extended_data or "{}")
    if document is None:
        raise InvalidInput(
            "early media is allowed by a member of extended_data: give a JSON object, or none"
        )
    return json.dumps({**document, _MEMBER: True}, ensure_ascii=False)


def allows_early_media(extended_data: str) -> bool:
    """Whether the invite's caller may be heard before it is accepted."""
    document = _document(extended_data)
    return document is not None and document.get(_MEMBER) is True


def _document(extended_data: str) -> dict[str, object] | None:
    try:
        document = json.loads(extended_data)
    except ValueError:
        return None
    return document if isinstance(document, dict) else None


class EarlyMedia:
    """The early sessions of one call: on the caller's side those that ringing devices asked for, on the
    called side its own one.

    Args:
        make_peer: Makes a peer of an early session: who, whether this device offers, and what is done
            with each block heard.
        tasks: Who does the call's work.
    """

    def __init__(
        self,
        make_peer: Callable[[Identity, bool, Callable[[Block], None]], Peer],
        tasks: CallTasks,
    ) -> None:
        self.allowed = False
        """Whether others may hear this device before they answer."""
        self._make_peer = make_peer
        self._tasks = tasks
        self._sessions: dict[str, Peer] = {}
        self._working: set[asyncio.Task[None]] = set()

    @property
    def listeners(self) -> tuple[Peer, ...]:
        """Who hears this device early."""
        return tuple(self._sessions.values())

    def hear(
        self, caller: Identity, play: Callable[[Block], None], over: Callable[[], None]
    ) -> None:
        """Asks the caller for its voice, once; `over` is called when nothing of it comes any more."""
        if not self._working:
            peer = self._make_peer(caller, True, play)
            self._start(peer, peer.name_session(), over)

    def take(self, who: Identity, document: MediaDocument) -> bool:
        """Takes a document, if it is of an early session."""
        peer = self._sessions.get(document.session)
        if peer is None and isinstance(document, MediaOffer) and document.early:
            if not self.allowed or len(self._sessions) >= MAX_LISTENERS:
                log.info("early media refused", to=who)
                return True
            # Nobody is heard before they have answered.
            peer = self._make_peer(who, False, lambda _: None)
            self._start(peer, document.session, lambda: None)
        if peer is None or peer.who != who:
            return False
        peer.take(document)
        return True

    def end(self) -> None:
        """The call is on, or over: its own sessions have taken over."""
        for task in self._working:
            task.cancel()
        self._working.clear()
        self._sessions.clear()

    def _start(self, peer: Peer, session: str, over: Callable[[], None]) -> None:
        self._sessions[session] = peer
        task = self._tasks.start(self._keep(peer, session, over))
        if task is not None:
            self._working.add(task)

    async def _keep(self, peer: Peer, session: str, over: Callable[[], None]) -> None:
        try:
            await peer.run()
        except CallError as error:
            log.info("no early media", other=peer.who, error=str(error))
        finally:
            self._sessions.pop(session, None)
            over()
