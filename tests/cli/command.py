"""The `bellwire` command as people run it: a process, its exit code and what it says."""

import asyncio
import os
from collections.abc import Mapping
from dataclasses import dataclass
from tempfile import TemporaryFile

from tests.conftest import PATIENCE_S
from tests.forking import forked


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str

    def must_say_in_one_line(self, *words: str) -> None:
        """It failed as every command fails: exit code 1 and one line that says what to do."""
        assert self.code == 1, (self.out, self.err)
        assert self.err.startswith("error: "), self.err
        assert self.err.count("\n") == 1, self.err
        for word in words:
            assert word in self.err


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's, without what would set up a relay, on a terminal that does not break lines."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("BELLWIRE_") and name not in ("NOTIFY_SOCKET", "STATE_DIRECTORY")
    }
    return {**kept, "COLUMNS": "300", "NO_COLOR": "1", **(more or {})}


async def bellwire(*arguments: object, more: Mapping[str, str] | None = None) -> Ended:
    """Runs a command to its end, with nothing to read."""
    with TemporaryFile() as out, TemporaryFile() as err:
        process = await forked(
            *arguments,
            environment=environment(more),
            stdout=out.fileno(),
            stderr=err.fileno(),
        )
        try:
            async with asyncio.timeout(2 * PATIENCE_S):
                code = await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
            raise
        out.seek(0)
        err.seek(0)
        return Ended(code, out.read().decode(), err.read().decode())
