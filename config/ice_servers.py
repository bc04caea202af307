"""What a relay is told of STUN and TURN servers: their URLs, and the secret shared with TURN."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, SecretStr

from config.shared_secret import checked_secret, read_shared_secret

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
