"""Whether a device is there: what it publishes, retained, and leaves as its last will, and what a relay says
in its place until it first does. And what an operator tells one device to do at once.
"""

from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, field_serializer


class Presence(BaseModel):
    """A device's presence. `software` is the agent's version. `registered_at` is what a relay says of a
    device that has not come since; whether it is online is then null."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    online: Annotated[bool, BeforeValidator(lambda said: said or False)]
    software: str | None = None
    registered_at: AwareDatetime | None = None

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
