"""Layers and device files for tests of the fleet's configuration."""

from datetime import UTC, datetime
from typing import Any

from bellwire.config.fleet.layer import Layer, Rollout
from bellwire.config.fleet.merge import LocalFile

AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def layer(settings: dict[str, Any], revision: int = 1, **rollout: Any) -> Layer:  # noqa: ANN401
    return Layer(
        revision=revision, author="ann", at=AT, settings=settings, rollout=Rollout(**rollout)
    )


def document(settings: dict[str, Any], revision: int = 1) -> bytes:
    return layer(settings, revision).model_dump_json().encode()


def of_file(
    settings: dict[str, Any] | None = None,
    *,
    device_id: str = "gate",
    locked: tuple[str, ...] = (),
    remote: tuple[str, ...] = (),
) -> LocalFile:
    return LocalFile(device_id, settings or {}, locked, remote)
