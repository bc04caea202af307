"""What a fleet retains, read by the literal topics of its devices, some at a time, unless they are few.

A broker keeps a few megabytes for one session, so that nobody fills it; by one wildcard it would have to
send what 20,000 devices report at once, and throw most of it away.
"""

from collections.abc import Callable, Collection, Mapping
from itertools import islice

from bellwire.broker.session.receiving import ReceivingSession
from bellwire.signaling.identifiers import DeviceId

_TOPICS_AT_ONCE = 100
_FEW = 1000
"""Devices whose reports together are not too much: some 2 KB each."""

TopicOf = Callable[[DeviceId], str]


async def read_fleet(
    session: ReceivingSession, known: Collection[DeviceId], topics: Mapping[str, TopicOf]
) -> None:
    """Has the broker send what is retained of a fleet, to who hears it; returns once all has come.

    Args:
        session: One with an echo topic.
        known: The devices that have a presence. In a small fleet others are read, too.
        topics: What to read: each topic, by the filter of all devices'.

    Raises:
        NotConnected: the broker is not there.
    """
    if len(known) <= _FEW:
        for of_all in topics:
            await session.read_retained(of_all)
    else:
        await read_devices(session, known, *topics.values())


async def read_devices(
    session: ReceivingSession, devices: Collection[DeviceId], *topics_of: TopicOf
) -> None:
    """As `read_fleet`, of some devices alone."""
    topics = (topic_of(device) for device in sorted(devices) for topic_of in topics_of)
    while batch := tuple(islice(topics, _TOPICS_AT_ONCE)):
        await session.read_retained(*batch)
