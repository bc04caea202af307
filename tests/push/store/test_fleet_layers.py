"""The revisions of layers as rows, on both databases."""

import asyncio

from bellwire.config.fleet.layer import HISTORY_LENGTH
from bellwire.config.fleet.writing import held
from bellwire.push.store.engine.database import Database
from bellwire.push.store.rows.fleet_layers import keep_layers, layer_history, newest_layers
from bellwire.signaling.topics import LayerName
from tests.config.fleet_parts import document
from tests.push.support import on_both_stores

NORTH, SOUTH = LayerName("group/north"), LayerName("group/south")


@on_both_stores
async def test_first_document_under_a_revision_stays_and_of_each_layer_the_newest_twenty(
    shared_or_own: Database,
) -> None:
    first, other = held(document({"log_level": "debug"}, 3)), held(document({}, 3))
    assert await shared_or_own.write(lambda c: keep_layers(c, [(NORTH, first)], 0)) == [first]
    both = await asyncio.gather(
        *(shared_or_own.write(lambda c: keep_layers(c, [(NORTH, other)], 1)) for _ in range(2))
    )
    assert both == [[first], [first]]
    more = [held(document({"call_timeout_s": n}, n)) for n in range(10, 40)]
    await shared_or_own.write(lambda c: keep_layers(c, [(NORTH, one) for one in more], 2))
    await shared_or_own.write(lambda c: keep_layers(c, [(SOUTH, other), (SOUTH, other)], 3))
    assert await shared_or_own.read(newest_layers) == {
        NORTH: more[-1].mark,
        SOUTH: other.mark,
    }
    assert await shared_or_own.read(lambda c: layer_history(c, NORTH)) == more[-HISTORY_LENGTH:]
    assert await shared_or_own.read(lambda c: layer_history(c, LayerName("default"))) == []
