"""What the strings of a call mean: identities, devices, call SIDs. An identity is `alice` inside
Bellwire and `client:alice` on the wire, as Twilio writes it."""

import hashlib
import re
from typing import Annotated, Literal, NewType

from pydantic import AfterValidator, Field

from bellwire.signaling.errors import InvalidInput

Identity = NewType("Identity", str)
DeviceId = NewType("DeviceId", str)
CallSid = NewType("CallSid", str)

ChannelKind = Literal["apns", "fcm", "mqtt", "websocket"]

IDENTITY_MAX_LENGTH = 121
_DEVICE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_CALL_SID = re.compile(r"CA[0-9a-f]{32}")
_CLIENT = "client:"


def parse_identity(text: str) -> Identity:
    """The identity in `alice` or `client:alice`.

    Raises:
        InvalidInput: it is empty, over 121 characters, holds white space or control characters, or
            still begins with `client:`.
    """
    name = text.removeprefix(_CLIENT)
    if not name or len(name) > IDENTITY_MAX_LENGTH or any(c.isspace() for c in name):
        raise InvalidInput(
            f"identity {text[:40]!r} must be 1 to {IDENTITY_MAX_LENGTH} characters without spaces"
        )
    if name.startswith(_CLIENT):
        raise InvalidInput(f"identity {text[:40]!r} must not begin with {_CLIENT} twice")
    if not name.isprintable():
        raise InvalidInput("an identity must not hold control characters")
    return Identity(name)


def wire_address(identity: Identity) -> str:
    """How an identity is written in an invite: `client:alice`; numbers and SIP addresses as they are."""
    if identity.startswith(("sip:", "sips:")) or re.fullmatch(r"\+[0-9]+", identity):
        return identity
    return f"{_CLIENT}{identity}"


def parse_device_id(text: str) -> DeviceId:
    """A device id, which is also its MQTT user name and a level of its topics.

    Raises:
        InvalidInput: it is not 1 to 64 of `A-Z a-z 0-9 . _ -`, starting with a letter or digit.
    """
    if not _DEVICE_ID.fullmatch(text):
        raise InvalidInput(
            f"device id {text[:40]!r} must be 1 to 64 of A-Z a-z 0-9 . _ -, starting with a letter or digit"
        )
    return DeviceId(text)


def mqtt_client_id(device: DeviceId, password: str) -> str:
    """The only MQTT client id that a device's account may have. A broker disconnects whoever has an id
    that another comes under, so this one is not to be guessed; and a device with a new password
    inherits no session."""
    secret = hashlib.sha256(f"{device}\n{password}".encode()).hexdigest()
    return f"{device}-{secret[:16]}"


def parse_call_sid(text: str) -> CallSid:
    """A call SID: `CA` and 32 lower-case hex digits.

    Raises:
        InvalidInput: it is not.
    """
    if not _CALL_SID.fullmatch(text):
        raise InvalidInput(f"call SID {text[:40]!r} must be CA and 32 hex digits")
    return CallSid(text)


def new_call_sid(at_ms: int, randomness: bytes) -> CallSid:
    """A call SID that sorts by time: 48 bits of Unix milliseconds, then 10 random bytes (as UUIDv7 does).

    Raises:
        InvalidInput: `randomness` is not 10 bytes, or the time does not fit 48 bits.
    """
    if not 0 <= at_ms < 1 << 48:
        raise InvalidInput(f"a call SID holds a time of 0 to 2^48 - 1 ms, not {at_ms}")
    if len(randomness) != 10:
        raise InvalidInput(f"a call SID needs 10 random bytes, not {len(randomness)}")
    return CallSid(f"CA{at_ms:012x}{randomness.hex()}")


IdentityField = Annotated[
    str, Field(min_length=1, max_length=128), AfterValidator(lambda text: parse_identity(text))
]
DeviceIdField = Annotated[
    str,
    Field(pattern=rf"^{_DEVICE_ID.pattern}$"),
    AfterValidator(lambda text: parse_device_id(text)),
]
CallSidField = Annotated[
    str, Field(pattern=rf"^{_CALL_SID.pattern}$"), AfterValidator(lambda text: parse_call_sid(text))
]
GroupNameField = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
