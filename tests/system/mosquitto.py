"""A mosquitto that is nobody's child: the external broker of `bellwire relay --broker URL`."""

import asyncio
import os
from asyncio.subprocess import DEVNULL, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from bellwire.broker.embedded import EmbeddedBroker, find_mosquitto


class Mosquitto:
    """A broker set up as the relay's own would be, but started, killed and stopped by a test."""

    def __init__(self, folder: Path) -> None:
        self.address = EmbeddedBroker(folder).prepare()
        self.folder = folder
        self._process: Process | None = None

    @property
    def arguments(self) -> tuple[str, ...]:
        """What `bellwire relay` is told about it."""
        return ("--broker", self.address.url)

    @property
    def environment(self) -> dict[str, str]:
        """The relay's credentials, as its environment."""
        return {
            "BELLWIRE_BROKER_USERNAME": self.address.username or "",
            "BELLWIRE_BROKER_PASSWORD": self.address.password or "",
        }

    async def start(self) -> None:
        """Starts it. Its clients find it when it listens: they try again until it does."""
        with (self.folder / "mosquitto.log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                find_mosquitto(),
                "-c",
                str(self.folder / "mosquitto.conf"),
                env={k: v for k, v in os.environ.items() if k != "NOTIFY_SOCKET"},
                stdin=DEVNULL,
                stdout=log,
                stderr=log,
            )

    async def kill(self) -> None:
        """kill -9, as a power cut does."""
        if self._process is not None:
            self._process.kill()
            await self._process.wait()
            self._process = None


@asynccontextmanager
async def running_mosquitto(folder: Path) -> AsyncIterator[Mosquitto]:
    """A broker for one test."""
    broker = Mosquitto(folder)
    await broker.start()
    try:
        yield broker
    finally:
        await broker.kill()
