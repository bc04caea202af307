"""The disk that holds the relay's data: how much of it is free, and whether it takes what is written.

A disk that is full, or that the kernel has mounted read-only, takes no call; a file of one block, made
durable and removed again, finds both. It is written seldom, for the sake of flash.
"""

import asyncio
import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

LOW_BYTES = 64_000_000
"""With less there is time left to do something, and it is time to."""
_FULL_BYTES = 4_000_000
"""With less the database may not be able to write what it began."""
_BLOCK = bytes(4096)
_LOOK_EVERY_S = 5.0
_WRITE_EVERY_S = 60.0
_ANSWERS_WITHIN_S = 3.0


@dataclass(frozen=True, slots=True)
class DiskState:
    """A disk as it was found. `problem` says why nothing can be written, and what to do."""

    free_bytes: int
    problem: str | None = None

    @property
    def is_low(self) -> bool:
        """Whether it will be full soon."""
        return self.free_bytes < LOW_BYTES


def look_at_disk(folder: Path, *, write: bool = True) -> DiskState:
    """The disk of a folder that is there; with `write` a block is written to it. It blocks."""
    try:
        found = os.statvfs(folder)
    except OSError as error:
        return DiskState(0, f"the folder {folder} cannot be used: {error.strerror}")
    # What is kept for root is root's.
    free = found.f_frsize * (found.f_bfree if os.geteuid() == 0 else found.f_bavail)
    problem = None
    if free < _FULL_BYTES:
        problem = "it is full"
    elif write:
        problem = _write_a_block(folder)
    if problem is None:
        return DiskState(free)
    return DiskState(
        free,
        f"the disk of {folder} takes nothing more: {problem} ({free / 1e6:.1f} MB free). Free at least"
        f" {LOW_BYTES // 1_000_000} MB of it, or move the folder to another disk",
    )


def _write_a_block(folder: Path) -> str | None:
    """Why a block cannot be written, in words."""
    probe = folder / f".probe-{os.getpid()}"
    try:
        with contextlib.suppress(FileNotFoundError):
            probe.unlink()
        descriptor = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.write(descriptor, _BLOCK)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
            probe.unlink()
    except OSError as error:
        return error.strerror or str(error)
    return None


class DataDisk:
    """Looks at the disk of a relay's data when it is asked, but not more often than is good for it.

    Args:
        folder: The relay's data.
        clock: Tells seconds that only grow.
    """

    def __init__(self, folder: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder = folder
        self._clock = clock
        self._state: DiskState | None = None
        self._looked_at = self._written_at = 0.0
        self._looking: asyncio.Task[DiskState] | None = None

    async def state(self) -> DiskState:
        """How it is, at most 5 s ago. A disk that does not answer is a problem, too."""
        if self._looking is None:
            if self._state is not None and self._clock() - self._looked_at < _LOOK_EVERY_S:
                return self._state
            self._looking = asyncio.create_task(self._look())
        done, _ = await asyncio.wait({self._looking}, timeout=_ANSWERS_WITHIN_S)
        if not done:
            return DiskState(
                0, f"the disk of {self._folder} does not answer: look at the kernel's log"
            )
        return done.pop().result()

    async def _look(self) -> DiskState:
        now = self._clock()
        was_bad = self._state is None or self._state.problem is not None
        write = was_bad or now - self._written_at >= _WRITE_EVERY_S
        if write:
            self._written_at = now
        try:
            self._state = await asyncio.to_thread(look_at_disk, self._folder, write=write)
        finally:
            self._looked_at, self._looking = now, None
        return self._state
