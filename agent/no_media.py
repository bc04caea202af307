"""The sound of a call on a device that has none: the call is opened all the same, and whoever waits
for sound is told not to."""

from collections.abc import Sequence

import structlog

from agent.call_sound import CallSound
from agent.call_tasks import CallTasks
from agent.media.engine import MediaStats
from agent.media_news import MediaNews, Say
from agent.negotiation import new_session
from signaling.errors import CallError
from signaling.identifiers import DeviceId, Identity
from signaling.media import MediaDocument, MediaFailed, MediaOffer

log = structlog.get_logger(__name__)


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
        """Never."""
        return False

    @property
    def codec(self) -> str | None:
        """None."""
        return None

    def begin(self, others: Sequence[Identity], caller: Identity | None) -> None:
        """The call is on, with these others in it so far."""
        for who in others:
            self.add(who, caller)
        log.info("call is open, without sound: this device has none")
        self._news.connected()

    def add(self, who: Identity, caller: Identity | None) -> None:
        """One more party is in the call; it is told if it waits for an offer from here."""
        waits = self._me == caller or (who != caller and self._me < who)
        if waits and who not in self._told:
            self._told.add(who)
            self._tell(who, new_session(), None)

    def hear_early(self, caller: Identity) -> None:
        """Nobody is heard."""

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
        """None."""
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
