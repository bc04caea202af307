"""The voice on libwebrtc, through the package `wrtc` (module `webrtc`): `MediaEngine` as it is used.

Its quirks are known in the files wrtc_*.py only. Import this when sound is first needed: it loads
libwebrtc, 12 MB.
"""

from collections.abc import Sequence

import webrtc

from agent.media.engine import IceServer, PeerListeners
from agent.media.wrtc_connection import WrtcConnection
from agent.media.wrtc_listener import Listener


class WrtcEngine:
    """Makes connections.

    Args:
        allow_loopback: Whether two ends on one machine may meet over 127.0.0.1, which WebRTC does
            not try by itself. For tests, the demo and the simulation; for the whole process, and to
            be said before its first connection.
        connect_within_s: After this long without a connection, it has failed.
    """

    def __init__(self, *, allow_loopback: bool = False, connect_within_s: float = 20.0) -> None:
        if allow_loopback:
            _allow_loopback_once()
        self._connect_within_s = connect_within_s
        self._listener = Listener()
        self._connections: set[WrtcConnection] = set()

    def connect(self, ice_servers: Sequence[IceServer], listeners: PeerListeners) -> WrtcConnection:
        """A new connection, for one audio stream each way. To be called on the event loop.

        Raises:
            CallError: 53400, where WebRTC refuses a server's address.
        """
        connection = WrtcConnection(
            ice_servers,
            listeners,
            self._listener,
            self._connect_within_s,
            self._connections.discard,
        )
        self._connections.add(connection)
        return connection

    async def close(self) -> None:
        """Closes every connection that is left."""
        for connection in tuple(self._connections):
            await connection.close()


_loopback_allowed = False


def _allow_loopback_once() -> None:
    """wrtc refuses the call once there has been a connection, also the repeated one."""
    global _loopback_allowed  # the switch it mirrors is the process's, too
    if not _loopback_allowed:
        webrtc.allow_loopback()
        _loopback_allowed = True
