"""What servers ask of a relay beside calls, over HTTP: devices, groups, access tokens and API keys. What
is asked of calls stands in `operations`."""

import re
from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from bellwire.signaling.identifiers import ChannelKind, DeviceIdField, GroupNameField, IdentityField
from bellwire.signaling.tokens import Scope

_APNS_TOKEN = re.compile(r"[0-9A-Fa-f]{32,200}")

MAX_GROUP_MEMBERS = 256
MAX_KEY_LIFE_S = 10 * 366 * 86_400

PUSH_KINDS = ("apns", "fcm")
"""Kinds of channels that name an app."""

App = Annotated[str, Field(max_length=256)]


class Request(BaseModel):
    """What every request has: no members that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def each_once(identities: list[str]) -> list[str]:
    """The identities, where none stands twice."""
    if len(set(identities)) < len(identities):
        raise ValueError("an identity stands twice")
    return identities


class GroupRequest(Request):
    """The members of a group, in place of those it had."""

    members: Annotated[list[IdentityField], Field(min_length=1, max_length=MAX_GROUP_MEMBERS)]

    @field_validator("members", mode="after")
    @classmethod
    def _refuse_repeats(cls, members: list[str]) -> list[str]:
        return each_once(members)


class TokenRequest(Request):
    """An access token for one identity, and for one device of it where `device_id` is given."""

    identity: IdentityField
    device_id: DeviceIdField | None = None
    ttl: Annotated[int, Field(ge=1, le=86_400, description="seconds")] = 3_600


class RevokeTokensRequest(Request):
    """Whose access tokens are to end: all of one identity's; all that were made for one device, or have
    acted as it; or one, given as it is or by its claim `jti`. Exactly one of them is given."""

    identity: IdentityField | None = None
    device_id: DeviceIdField | None = None
    token: Annotated[str, Field(min_length=1, max_length=4096)] | None = None
    jti: Annotated[str, Field(min_length=1, max_length=64)] | None = None

    @model_validator(mode="after")
    def _name_one(self) -> Self:
        given = [value for value in (self.identity, self.device_id, self.token, self.jti) if value]
        if len(given) != 1:
            raise ValueError("give one of identity, device_id, token and jti")
        return self


KeyLife = Annotated[
    int, Field(ge=1, le=MAX_KEY_LIFE_S, description="seconds; absent: it does not expire")
]


class ApiKeyRequest(Request):
    """An API key: what it is called, what it may do, and how long."""

    name: GroupNameField
    scopes: Annotated[list[Scope], Field(min_length=1, max_length=len(Scope))]
    expires_in: KeyLife | None = None


class RotateKeyRequest(Request):
    """How long the key that takes a key's place is good; absent: as long as that was made for."""

    expires_in: KeyLife | None = None


class ChannelRequest(Request):
    """One way to reach a device. A push channel (`apns`, `fcm`) names its app, which the relay's
    settings must hold, and the token that the push service gave this installation of it."""

    kind: ChannelKind
    token: Annotated[str, Field(max_length=4096)] | None = None
    app: App | None = None
    environment: Literal["production", "sandbox"] | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.kind not in PUSH_KINDS:
            return self
        if not self.token or not self.app:
            raise ValueError(f"a channel of kind {self.kind} needs its token and its app")
        if self.kind == "apns" and not _APNS_TOKEN.fullmatch(self.token):
            raise ValueError("an APNs token is written in hex digits, 32 to 200 of them")
        return self


class DeviceRequest(Request):
    """A device to be registered, replacing what was registered under its id."""

    identity: IdentityField
    channels: Annotated[list[ChannelRequest], Field(max_length=8)] = Field(default_factory=list)
    rotate_credentials: bool = False
    """Whether the broker password is made anew; a device's first registration always makes one."""

    @field_validator("channels", mode="after")
    @classmethod
    def _one_of_a_kind(cls, channels: list[ChannelRequest]) -> list[ChannelRequest]:
        ways = {(c.kind, c.app or "" if c.kind in PUSH_KINDS else "") for c in channels}
        if len(ways) < len(channels):
            raise ValueError("a kind of channel stands twice, for a push channel for one app")
        return channels
