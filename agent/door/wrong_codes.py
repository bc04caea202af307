"""How many wrong door codes count against whom, kept on disk: a restart, or a kill, forgives nothing.

The file holds no time, since a Pi's clock jumps: whoever stands in it at the start waits for the whole
`lockout_s` anew. It is written on a thread of its own, as a memory card takes its time, and whoever
typed a wrong code is answered only then.
"""

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import structlog
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bellwire.config.private_file import write_private
from bellwire.signaling.identifiers import IDENTITY_MAX_LENGTH

log = structlog.get_logger(__name__)

_CALLERS_KEPT = 4096
"""More than a device's doors name (8 of 256): settings may have named others before."""
_LIMIT_BYTES = 2 * 1024 * 1024

_Who = Annotated[str, Field(max_length=IDENTITY_MAX_LENGTH)]


class _Kept(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    device_id: str
    wrong_codes: dict[_Who, Annotated[int, Field(ge=1, le=1_000_000)]]


class WrongCodes:
    """The counts of one device. It reads the disk when it is built; it blocks only then.

    Args:
        folder: Where the file is; None keeps nothing.
        device_id: Whose counts they are: a card that was copied to another device brings it none.
    """

    def __init__(self, folder: Path | None, device_id: str) -> None:
        self._file = None if folder is None else folder / f"door-{device_id}.json"
        self._device_id = device_id
        self.is_damaged = False
        """Whether the file was there and could not be used: it is not known who typed wrong codes."""
        self.fault: str | None = None
        """Why what is counted cannot be kept, and what to do; None while it can."""
        self.found: dict[str, int] = {} if self._file is None else self._read(self._file)
        self._asked = None if self.is_damaged else dict(self.found)
        self._writing: Future[None] | None = None
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="wrong codes")

    def keep(
        self, wrong_codes: Mapping[str, int], then: Callable[[], object] = lambda: None
    ) -> None:
        """Keeps these in place of those before, and calls `then` on the event loop once they, and all
        those before, are durable, or cannot be."""
        if self._file is not None and wrong_codes != self._asked:
            self._asked = asked = dict(wrong_codes)
            self._writing = self._writer.submit(self._write, self._file, asked)
        if self._writing is None or self._writing.done():
            then()
            return
        loop = asyncio.get_running_loop()

        def written(_: Future[None]) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is told any more
                loop.call_soon_threadsafe(then)

        self._writing.add_done_callback(written)

    def close(self) -> None:
        """Returns once all is durable. What is to be kept later is not: it has been, as what stood typed."""
        self._file = None
        self._writer.shutdown()

    def _write(self, file: Path, wrong_codes: dict[str, int]) -> None:
        most = sorted(wrong_codes.items(), key=lambda one: -one[1])[:_CALLERS_KEPT]
        kept = _Kept(device_id=self._device_id, wrong_codes=dict(most))
        try:
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_private(file, kept.model_dump_json())
        except OSError as error:
            self._asked = None  # to be kept by the next that asks, be it the same
            self.fault = (
                f"wrong door codes are not kept, so that a restart would forgive them ({error}): "
                f"make room on the disk of {file.parent}, and let the agent write there"
            )
            log.error("wrong door codes not kept", file=str(file), error=str(error))
        else:
            self.fault = None

    def _read(self, file: Path) -> dict[str, int]:
        try:
            with file.open("rb") as opened:
                kept = _Kept.model_validate_json(opened.read(_LIMIT_BYTES))
        except FileNotFoundError:
            return {}
        except (OSError, ValidationError) as error:
            # Neither open to all, nor shut for ever: nobody's code opens for as long as a lockout.
            self.is_damaged = True
            log.error("kept wrong door codes are damaged", file=str(file), error=str(error))
            return {}
        return dict(kept.wrong_codes) if kept.device_id == self._device_id else {}
