"""Engines and peers for the tests of sound."""

from collections.abc import AsyncIterator, Callable

import pytest

from bellwire.agent.media.engine.interface import PeerListeners
from bellwire.agent.media.engine.wrtc_engine import WrtcEngine
from tests.agent.media.aiortc_peer import AiortcPeer
from tests.agent.media.party import Party

NewParty = Callable[[], Party]


@pytest.fixture
async def engine() -> AsyncIterator[WrtcEngine]:
    engine = WrtcEngine(allow_loopback=True)
    yield engine
    await engine.close()


@pytest.fixture
def ours(engine: WrtcEngine) -> NewParty:
    """Makes one of our connections."""
    return lambda: Party(lambda listeners: engine.connect((), listeners))


@pytest.fixture
def theirs() -> Callable[..., Party]:
    """Makes one of an independent stack, which speaks the codecs it is given."""

    def make(*codecs: str) -> Party:
        def peer(listeners: PeerListeners) -> AiortcPeer:
            return AiortcPeer((), listeners, *([codecs] if codecs else []))

        return Party(peer)

    return make
