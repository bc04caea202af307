"""What tokens claim. Signing is the relay's (`push.access`), and so is checking access tokens; what it
says of callers is checked by who is called (`agent.calls.caller_verification`).

What an API key may do. Which routes each scope opens, the routes themselves say: docs/http.md has
the table that is made of them.
"""

from collections.abc import Collection
from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from bellwire.signaling.calls.calls import Attestation
from bellwire.signaling.identifiers import CallSidField, DeviceIdField, IdentityField

AUDIENCE = "bellwire"
CALLER_AUDIENCE = "bellwire-caller"
"""Of caller tokens: neither kind can stand for the other."""

MAX_TTL_S = 86_400
DEFAULT_TTL_S = 3_600


class AccessTokenClaims(BaseModel):
    """Claims of a JWT (RFC 7519): `sub` is the identity, `device_id` the device it was made for,
    absent where any device of the identity may use it. Times are Unix seconds."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    iss: str
    aud: str = AUDIENCE
    sub: IdentityField
    device_id: DeviceIdField | None = None
    call_sid: CallSidField | None = None
    """The one call that a connect token is for (`twi_bridge_token` of a push); absent from others."""
    iat: int
    exp: int
    jti: str = Field(min_length=1, max_length=64)
    rev: int | None = None
    """The newest revocation that the issuing relay knew: a later one may end the token."""


class CallerClaims(BaseModel):
    """Claims of a caller token, named as PASSporT does (RFC 8225, 5; RFC 8588, 4): `orig` calls `dest`,
    written as in the invite, and `attest` says how sure the relay is of it. `iat` and `exp` are the
    invite's `at` and `expires_at` in whole Unix seconds."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    iss: str
    aud: Literal["bellwire-caller"]
    call_sid: CallSidField
    orig: str
    dest: str
    attest: Attestation
    iat: int
    exp: int


class Jwk(BaseModel):
    """A public Ed25519 key (RFC 8037), by its key id."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    kid: str = Field(min_length=1, max_length=64)
    kty: Literal["OKP"] = "OKP"
    crv: Literal["Ed25519"] = "Ed25519"
    x: str = Field(min_length=43, max_length=43)
    use: Literal["sig"] = "sig"
    alg: Literal["EdDSA"] = "EdDSA"


class Scope(StrEnum):
    """A part of what a server may do."""

    CALLS = "calls"
    DEVICES = "devices"
    GROUPS = "groups"
    TOKENS = "tokens"
    WEBHOOKS = "webhooks"
    DOORS = "doors"
    FLEET = "fleet"
    AUDIT = "audit"
    METRICS = "metrics"
    ADMIN = "admin"

    def is_among(self, held: Collection["Scope"]) -> bool:
        """Whether a key that holds these scopes may do what this one opens."""
        return self in held or Scope.ADMIN in held


SCOPE_MEANINGS: dict[Scope, str] = {
    Scope.CALLS: "make, read and move calls, as anybody; be told ICE servers; read any device's stream",
    Scope.DEVICES: "register, read and remove devices: who holds it can be any device, and so anybody",
    Scope.GROUPS: "write and read groups",
    Scope.TOKENS: "issue access tokens for anybody, and revoke them: who holds it can be anybody",
    Scope.WEBHOOKS: "look at webhooks, test them, and have events sent again",
    Scope.DOORS: "nothing yet: kept for a door's log",
    Scope.FLEET: "nothing yet: kept for the fleet's settings",
    Scope.AUDIT: "nothing yet: kept for the audit log",
    Scope.METRICS: "read each device's metrics",
    Scope.ADMIN: "everything, and it alone makes and revokes API keys",
}
"""In words, for documents and for `bellwire keys`."""
