"""STUN and TURN servers that an agent is told of. Credentials are never configured: the relay gives
short-lived ones."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

IceUrl = Annotated[
    str,
    Field(
        pattern=r"^(stuns?|turns?):[^\s/@]+$",
        max_length=256,
        description="`stun:HOST[:PORT]` or `turn:HOST[:PORT][?transport=udp|tcp]` (RFC 7064, RFC 7065).",
    ),
]


class IceServerSettings(BaseModel):
    """One server, under one or more URLs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    urls: Annotated[tuple[IceUrl, ...], Field(min_length=1, max_length=8)]
