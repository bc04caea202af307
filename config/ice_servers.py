"""What a relay is told of STUN and TURN servers: their URLs, and the secret shared with TURN."""

import os
from pathlib import Path
from typing import Annotated

from pydantic import Field, SecretStr

from signaling.errors import InvalidInput

_HOST = r"([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?"

StunUrl = Annotated[str, Field(pattern=rf"^stuns?:{_HOST}$", max_length=255)]
"""A STUN server (RFC 7064), such as `stun:turn.example.org`."""

TurnUrl = Annotated[
    str, Field(pattern=rf"^turns?:{_HOST}(\?transport=(udp|tcp))?$", max_length=255)
]
"""A TURN server (RFC 7065), such as `turns:turn.example.org:5349?transport=tcp`."""

_SECRET_LIMIT_BYTES = 1024
_SHORTEST_SECRET = 16


def read_turn_secret(secret: SecretStr | None, file: Path | None) -> str | None:
    """The secret shared with the TURN servers, from the setting or from the first line of a file. It
    blocks.

    Raises:
        InvalidInput: the file cannot be read, everybody may read it, or its secret is too short. The
            secret is not shown.
    """
    if file is None:
        return None if secret is None else _checked(secret.get_secret_value(), "turn_secret")
    where = f"turn_secret_file, {file},"
    try:
        with file.open("rb") as opened:
            mode = os.fstat(opened.fileno()).st_mode
            text = opened.read(_SECRET_LIMIT_BYTES).decode("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or "it is not in ASCII"
        raise InvalidInput(f"{where} cannot be read: {reason}") from None
    # The group may be let in: the account of the TURN server, or systemd's LoadCredential.
    if mode & 0o027:
        raise InvalidInput(
            f"{where} may be read by everybody, or written by others (mode {mode & 0o777:o}):"
            f" chmod 600 {file}"
        )
    return _checked(text, where)


def _checked(secret: str, where: str) -> str:
    if len(secret) < _SHORTEST_SECRET:
        raise InvalidInput(
            f"{where} must hold at least {_SHORTEST_SECRET} characters: make one with"
            " `openssl rand -hex 32`, the same as coturn's static-auth-secret"
        )
    return secret
