"""What a relay is told of Janus, whose AudioBridge mixes calls of more than five."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from config.ice_servers import HOST
from config.shared_secret import read_shared_secret

JanusUrl = Annotated[str, Field(pattern=rf"^wss?://{HOST}(/[A-Za-z0-9._/-]*)?$", max_length=255)]
"""Janus' WebSocket API, such as `ws://127.0.0.1:8188`: on loopback or a private network, for the relay
alone."""


def read_janus_secret(file: Path) -> str:
    """What Janus and the relay share. It blocks.

    Raises:
        InvalidInput: the file cannot be read, everybody may read it, or its secret is too short.
    """
    return read_shared_secret(file, "janus_secret_file", "Janus' api_secret and admin_key")
