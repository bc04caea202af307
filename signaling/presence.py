"""Whether a device is there: what it publishes, retained, and leaves as its last will."""

from pydantic import BaseModel, ConfigDict


class Presence(BaseModel):
    """A device's presence. `software` is the agent's version."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    online: bool
    software: str | None = None


def parse_presence(document: bytes) -> Presence:
    """The presence in a document.

    Raises:
        pydantic.ValidationError: it is none.
    """
    return Presence.model_validate_json(document)


def presence_document(presence: Presence) -> bytes:
    """The presence as it travels."""
    return presence.model_dump_json(exclude_none=True).encode()
