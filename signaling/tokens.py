"""What an access token claims. Signing and checking the signature is the relay's (`push/auth`)."""

from pydantic import BaseModel, ConfigDict, Field

from signaling.identifiers import CallSidField, DeviceIdField, IdentityField

AUDIENCE = "bellwire"
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
