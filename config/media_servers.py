"""What relay and agent are told of STUN, TURN and Janus servers: their URLs, and to a relay the secrets that
it shares with them. An agent is given none: the relay makes it short-lived credentials.
"""

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from bellwire.config.private_file import checked_secret, read_shared_secret

HOST = r"([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?"

StunUrl = Annotated[str, Field(pattern=rf"^stuns?:{HOST}$", max_length=255)]
"""A STUN server (RFC 7064), such as `stun:turn.example.org`."""

TurnUrl = Annotated[str, Field(pattern=rf"^turns?:{HOST}(\?transport=(udp|tcp))?$", max_length=255)]
"""A TURN server (RFC 7065), such as `turns:turn.example.org:5349?transport=tcp`."""

_SAME_AS = "coturn's static-auth-secret"


def read_turn_secret(secret: SecretStr | None, file: Path | None) -> str | None:
    """The secret shared with the TURN servers, from the setting or from the first line of a file. It
    blocks.

    Raises:
        InvalidInput: the file cannot be read, everybody may read it, or its secret is too short. The
            secret is not shown.
    """
    if file is None:
        given = None if secret is None else secret.get_secret_value()
        return None if given is None else checked_secret(given, "turn_secret", _SAME_AS)
    return read_shared_secret(file, "turn_secret_file", _SAME_AS)


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


JanusUrl = Annotated[str, Field(pattern=rf"^wss?://{HOST}(/[A-Za-z0-9._/-]*)?$", max_length=255)]
"""The WebSocket API of Janus, whose AudioBridge mixes calls of more than five, such as
`ws://127.0.0.1:8188`: on loopback or a private network, for the relay alone."""


def read_janus_secret(file: Path) -> str:
    """What Janus and the relay share. It blocks.

    Raises:
        InvalidInput: the file cannot be read, everybody may read it, or its secret is too short.
    """
    return read_shared_secret(file, "janus_secret_file", "Janus' api_secret and admin_key")
