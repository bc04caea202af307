"""What a relay is told of push apps and webhooks. Secrets stand in files of their own."""

from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ApnsApp(_Settings):
    """An iOS app, named by its bundle id: a token key (p8), or a VoIP certificate (PEM with its key)."""

    key_file: Path | None = None
    key_id: Annotated[str, Field(pattern=r"^[A-Z0-9]{10}$")] | None = None
    team_id: Annotated[str, Field(pattern=r"^[A-Z0-9]{10}$")] | None = None
    certificate_file: Path | None = None
    connections: Annotated[int, Field(ge=1, le=64, description="per environment")] = 4
    cancel_by_push: Annotated[
        bool, Field(description="push cancels too: each costs the app a CallKit report")
    ] = False
    server: Annotated[
        str | None, Field(description="HOST:PORT in place of Apple's, for tests and proxies")
    ] = None
    ca_file: Path | None = None

    @model_validator(mode="after")
    def _one_kind_of_credentials(self) -> Self:
        key = (self.key_file, self.key_id, self.team_id)
        if self.certificate_file is not None:
            if any(part is not None for part in key):
                raise ValueError("give a key or a certificate, not both")
        elif any(part is None for part in key):
            raise ValueError("give key_file, key_id and team_id, or certificate_file")
        return self


class FcmApp(_Settings):
    """An Android app: a service account's file, or none for the machine's workload identity."""

    credentials_file: Path | None = None
    project_id: str | None = None
    server: Annotated[
        str | None, Field(description="URL in place of Google's, for tests and proxies")
    ] = None
    ca_file: Path | None = None


class WebhookTarget(_Settings):
    """Where a backend is told of events, signed as Standard Webhooks (`whsec_...` in `secret_file`)."""

    url: Annotated[str, Field(pattern=r"^https?://", max_length=2048)]
    secret_file: Path
    events: Annotated[
        frozenset[str] | None, Field(description="names of events; none: every event")
    ] = None
    allow_private_network: bool = False
    ca_file: Path | None = None
