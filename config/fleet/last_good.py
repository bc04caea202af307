"""The last good layers, kept on disk, so that a device starts with them without a broker.

A file holds the SHA-256 of its body, a line feed, and the body. It is written beside, made durable,
and only then takes the place of the one before, which stays as `.previous`: whenever the power goes,
one whole file is left, the old or the new.
"""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import structlog
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bellwire.config.fleet.layer import Layer
from bellwire.config.fleet.obeyed import Obeyed, ObeyedLayers
from bellwire.config.private_file import write_private

log = structlog.get_logger(__name__)

_LIMIT_BYTES = 8 * 1024 * 1024


class _Kept(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    device_id: str
    layers: dict[str, Layer]
    obeyed: dict[str, Obeyed] = Field(default_factory=dict)
    """Not said by the version before: then what is in force is what was obeyed."""


def state_folder(config_file: Path, given: Path | None = None) -> Path:
    """Where an agent keeps its state: the folder that is given, systemd's StateDirectory, or beside
    its file."""
    if given is not None:
        return given
    of_systemd = os.environ.get("STATE_DIRECTORY", "").split(":")[0]
    return Path(of_systemd) if of_systemd else config_file.absolute().parent


class LastGood:
    """The layers that were last in force. It reads the disk when it is built: those kept; those before
    where the file is damaged; none where both are.

    Args:
        folder: Where the files are; made where it is missing.
        device_id: Whose layers they are: a card that was copied to another device brings it none.
    """

    def __init__(self, folder: Path, device_id: str) -> None:
        self._device_id = device_id
        self._file = folder / f"fleet-{device_id}.json"
        self._previous = self._file.with_name(f"{self._file.name}.previous")
        found = self._read(self._file) or self._read(self._previous)
        self._layers: dict[str, Layer] = found.layers if found else {}
        self._obeyed = ObeyedLayers(found.obeyed if found else {})
        self._obeyed.note(self._layers)

    @property
    def layers(self) -> dict[str, Layer]:
        """The layers kept, by name."""
        return dict(self._layers)

    @property
    def obeyed(self) -> dict[str, Obeyed]:
        """The highest revisions that were ever kept, of layers that are not in force any more too."""
        return self._obeyed.highest

    def save(self, layers: Mapping[str, Layer]) -> None:
        """Keeps these layers from now on; they are durable once this returns. It blocks.

        Raises:
            OSError: the disk does not take them; what was kept before still is.
        """
        obeyed = ObeyedLayers(self._obeyed.highest)
        obeyed.note(layers)
        kept = _Kept(device_id=self._device_id, layers=dict(layers), obeyed=obeyed.highest)
        body = kept.model_dump_json().encode()
        document = hashlib.sha256(body).hexdigest().encode() + b"\n" + body
        self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # A damaged file must not push out the one before.
        is_good = self._read(self._file) is not None
        write_private(self._file, document, previous=self._previous if is_good else None)
        self._layers = dict(layers)
        self._obeyed = obeyed

    def _read(self, file: Path) -> _Kept | None:
        try:
            with file.open("rb") as opened:
                document = opened.read(_LIMIT_BYTES)
        except FileNotFoundError:
            return None
        except OSError as error:
            log.error("kept configuration not read", file=str(file), error=str(error))
            return None
        checksum, _, body = document.partition(b"\n")
        if hashlib.sha256(body).hexdigest().encode() != checksum:
            log.error("kept configuration is damaged", file=str(file))
            return None
        try:
            kept = _Kept.model_validate_json(body)
        except ValidationError as error:
            log.error("kept configuration not understood", file=str(file), error=str(error))
            return None
        return kept if kept.device_id == self._device_id else None
