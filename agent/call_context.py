"""What a device lends its calls."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from agent.call_requests import CallRequests
from agent.call_tasks import Spawn
from agent.insights import Insight
from agent.media_news import MediaTiming
from agent.sound import Sound
from signaling.identifiers import DeviceId, Identity

if TYPE_CHECKING:
    from agent.call import Call

Report = Callable[[Insight], None]
"""Takes an insight into a call."""


@dataclass(frozen=True, slots=True)
class CallContext:
    """What a device lends its calls.

    Args:
        identity: Whose device it is.
        device: The device.
        requests: The way to the relay.
        sound: Its sound; None where it has none.
        spawn: Starts work that the device owns.
        now: Tells the time.
        sleep: Waits.
        timing: How long things may take.
        made: Is told when the relay has made an outgoing call.
        changed: Is told when a call's status has changed.
        report: Takes insights.
    """

    identity: Identity
    device: DeviceId
    requests: CallRequests
    sound: Sound | None
    spawn: Spawn
    now: Callable[[], datetime]
    sleep: Callable[[float], Awaitable[None]]
    timing: MediaTiming
    made: Callable[["Call"], None]
    changed: Callable[["Call"], None]
    report: Report
