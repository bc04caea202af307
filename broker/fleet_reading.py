"""What a fleet retains, read by the literal topics of its devices, some at a time.

A broker keeps a few megabytes for one session, so that nobody fills it; by one wildcard it would have to
send what 20,000 devices report at once, and throw most of it away.
"""

from collections.abc import Callable, Collection, Sequence
from itertools import islice

from broker.receiving import ReceivingSession
from signaling.identifiers import DeviceId

_TOPICS_AT_ONCE = 100


async def read_of_each(
    session: ReceivingSession,
    devices: Collection[DeviceId],
    topics_of: Sequence[Callable[[DeviceId], str]],
) -> None:
    """Has the broker send what is retained on some topics of each device, to who hears them; returns
    once all has come. The session has an echo topic.

    Raises:
        NotConnected: the broker is not there.
    """
    topics = (topic_of(device) for device in sorted(devices) for topic_of in topics_of)
    while batch := tuple(islice(topics, _TOPICS_AT_ONCE)):
        await session.read_retained(*batch)
