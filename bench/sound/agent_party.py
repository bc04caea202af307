"""`bellwire agent`, which at each SIGUSR1 prints what its connections have concealed and received,
`[concealed_samples, total_samples_received]`: the real agent counts these, but tells nobody."""

import asyncio
import json
import signal
from collections.abc import Sequence

from bellwire.agent.media.engine import wrtc_engine
from bellwire.agent.media.engine.interface import IceServer, PeerListeners
from bellwire.agent.media.engine.wrtc_engine import WrtcConnection
from bellwire.cli.main import app


class CountedEngine(wrtc_engine.WrtcEngine):
    """Remembers its connections."""

    _asking: set["asyncio.Task[None]"] = set()  # noqa: RUF012

    def connect(self, ice_servers: Sequence[IceServer], listeners: PeerListeners) -> WrtcConnection:
        """As it is, and counted from now on."""
        connection = super().connect(ice_servers, listeners)

        def ask() -> None:
            task = asyncio.get_running_loop().create_task(tell())
            self._asking.add(task)
            task.add_done_callback(self._asking.discard)

        async def tell() -> None:
            stats = await connection.stats()
            print(json.dumps([stats.concealed_samples, stats.total_samples_received]), flush=True)

        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, ask)
        return connection


if __name__ == "__main__":
    wrtc_engine.WrtcEngine = CountedEngine  # type: ignore[misc]
    app()
