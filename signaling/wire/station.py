"""Whether a device is there: what it publishes, retained, and leaves as its last will, and what a relay says
in its place until it first does. And what an operator tells one device to do at once.

A broker that is killed forgets the last wills, and would go on saying of a dead device that it is there. So
a device says again and again that it is (`CONFIRM_EVERY_S`), and each time for a while only
(`PRESENCE_LIFE_S`, as MQTT 5 message expiry): then the broker forgets it by itself. `is_online` is what
relays and operators go by.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_serializer

from bellwire.signaling.calls.events import SaidMoment

KEEP_ALIVE_S = 20
"""How often at least the two sides of an MQTT connection hear of each other."""
CONFIRM_EVERY_S = KEEP_ALIVE_S
"""How often a device says again that it is there."""
PRESENCE_LIFE_S = 50
"""How long that holds. With what relays need to notice it, three keep-alives are not over."""


class Presence(BaseModel):
    """A device's presence. `software` is the agent's version; `since` is when it came, by its own clock: who
    comes again says another. Of one that has gone, `since` is when it was last heard, where a relay knows it.
    `registered_at` is what a relay says of a device that has not come since; whether it is online is then
    null."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    online: Annotated[bool, BeforeValidator(lambda said: said or False)]
    software: str | None = None
    since: SaidMoment | None = None
    registered_at: SaidMoment | None = None

    @property
    def never_seen(self) -> bool:
        """Whether the device has not come since it was registered."""
        return not self.online and self.registered_at is not None

    @field_serializer("online")
    def _say_online(self, online: bool) -> bool | None:
        """Of a device that was never seen neither that it is online nor that it is not, so that relays
        of older versions, which take that for a loss, pass over it."""
        return None if self.never_seen else online


def parse_presence(document: bytes) -> Presence:
    """The presence in a document.

    Raises:
        pydantic.ValidationError: it is none.
    """
    return Presence.model_validate_json(document)


def presence_document(presence: Presence) -> bytes:
    """The presence as it travels."""
    return presence.model_dump_json(exclude_none=True).encode()


def expires_at_s(expires_in_s: float | None, now_s: float) -> float | None:
    """When a word of presence that has just come is too old, by the clock of who heard it: the broker's is
    not asked, nor the device's. None, with which a device of an older version leaves it, is never."""
    return None if expires_in_s is None else now_s + expires_in_s


def is_online(presence: Presence | None, until_s: float | None, now_s: float) -> bool:
    """Whether a device is there: it has said so last, and that is not too old (`expires_at_s`)."""
    return presence is not None and presence.online and (until_s is None or now_s < until_s)


COMMAND_LIFE_S = 10
"""MQTT 5 message expiry of a command: a device that was away does not ring an hour later."""


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class RingTest(_Document):
    """Ring for `duration_s` seconds, as for a call that nobody makes. `id` marks the answer."""

    command: Literal["ring_test"] = "ring_test"
    id: Annotated[str, Field(min_length=1, max_length=64)]
    duration_s: Annotated[float, Field(gt=0, le=10)] = 3.0


class CommandResult(_Document):
    """What has become of a command: `done`, or `refused` and why (a call is in progress)."""

    id: Annotated[str, Field(min_length=1, max_length=64)]
    result: Literal["done", "refused"]
    reason: Annotated[str, Field(max_length=512)] = ""
