"""Files that only their owner can read: credentials, keys, the agent's own file.

Secrets that the relay shares with a media server, each in a file of its own.
"""

import os
from pathlib import Path

from bellwire.signaling.errors import InvalidInput


def write_private(path: Path, content: str | bytes, *, previous: Path | None = None) -> None:
    """Writes a file that only its owner can read, whole or not at all, and durable once this returns:
    whenever the power goes, the file before or this one is there. It blocks.

    Args:
        path: The file.
        content: What it is to hold.
        previous: Under what name, of the same folder, the file before is kept; None: it is not.

    Raises:
        OSError: the disk does not take it; the file before is as it was.
    """
    partial = path.with_name(f".{path.name}.partial")
    partial.unlink(missing_ok=True)
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    if previous is not None:
        path.replace(previous)
    partial.replace(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


_LIMIT_BYTES = 1024
_SHORTEST = 16


def read_shared_secret(file: Path, setting: str, same_as: str) -> str:
    """The secret on the first line of a file. It blocks.

    Args:
        file: Where it is.
        setting: The setting that names the file.
        same_as: What it has to equal, for who reads the error.

    Raises:
        InvalidInput: the file cannot be read, everybody may read it, or its secret is too short. The
            secret is not shown.
    """
    where = f"{setting}, {file},"
    try:
        with file.open("rb") as opened:
            mode = os.fstat(opened.fileno()).st_mode
            text = opened.read(_LIMIT_BYTES).decode("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or "it is not in ASCII"
        raise InvalidInput(f"{where} cannot be read: {reason}") from None
    # The group may be let in: the account of the media server, or systemd's LoadCredential.
    if mode & 0o027:
        raise InvalidInput(
            f"{where} may be read by everybody, or written by others (mode {mode & 0o777:o}):"
            f" chmod 600 {file}"
        )
    return checked_secret(text, where, same_as)


def checked_secret(secret: str, where: str, same_as: str) -> str:
    """A secret that is long enough.

    Raises:
        InvalidInput: it is not.
    """
    if len(secret) < _SHORTEST:
        raise InvalidInput(
            f"{where} must hold at least {_SHORTEST} characters: make one with"
            f" `openssl rand -hex 32`, the same as {same_as}"
        )
    return secret
