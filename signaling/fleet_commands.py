"""What an operator may tell one device to do at once, and what the device answers."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

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
