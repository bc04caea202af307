"""A whole relay whose time the test moves: its clock stands still between two moves, and whoever
sleeps in it wakes when the clock has come that far. It serves HTTP and runs a mosquitto as ever."""

import asyncio
import threading
from concurrent.futures import Future
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Self

from pydantic import SecretStr

from bellwire.config.relay import RelaySettings
from bellwire.push.relay import serve
from tests.conftest import PATIENCE_S

START = datetime(2026, 11, 21, 8, 0, tzinfo=UTC)
NOT_RECEIVED_AFTER_S = 3


class _Loop(asyncio.SelectorEventLoop):
    """A loop that can be put forward, with all that sleeps on it."""

    ahead_s = 0.0

    def time(self) -> float:
        return super().time() + self.ahead_s


class ClockedRelay:
    """A relay on a thread of its own.

    Args:
        data: Its data directory.
        database: The URL of its database; None: SQLite.
    """

    def __init__(self, data: Path, database: str | None) -> None:
        self.data = data
        self.database = f"sqlite:///{data}/relay.db" if database is None else database
        self.now = START
        self.url = ""
        self._settings = RelaySettings(
            listen="127.0.0.1:0",
            data=data,
            database=None if database is None else SecretStr(database),
            not_received_after_s=NOT_RECEIVED_AFTER_S,
            idempotency_keep_s=10**8,  # longer than the clock is ever moved
            # These flood in real time, and the model knows none.
            device_invites_per_s=10**6,
            device_requests_per_s=10**6,
        )
        self._loop = _Loop()
        self._stop = asyncio.Event()
        self._serves: Future[str] = Future()
        self._thread = threading.Thread(target=self._run, name="relay")

    def __enter__(self) -> Self:
        self._thread.start()
        self.url = self._serves.result(PATIENCE_S)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with suppress(RuntimeError):  # it has ended by itself, and said why
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(PATIENCE_S)

    @property
    def api_key(self) -> str:
        return (self.data / "api-key").read_text().strip()

    def advance(self, by: timedelta) -> None:
        """Moves the clock; what that wakes is woken, but may not be done when this returns."""
        moved: Future[None] = Future()

        def move() -> None:
            self.now += by
            self._loop.ahead_s += by.total_seconds()
            moved.set_result(None)

        self._loop.call_soon_threadsafe(move)
        moved.result(PATIENCE_S)

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                runner.run(self._serve())
        except BaseException as error:
            if self._serves.done():
                raise
            self._serves.set_exception(error)

    async def _serve(self) -> None:
        await serve(self._settings, self._stop, ready=self._serves.set_result, now=lambda: self.now)
