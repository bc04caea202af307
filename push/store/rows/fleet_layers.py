"""The revisions of the fleet's layers as rows: of each layer the newest, as many as its history has. The
first document that was stored under a revision stays."""

from collections.abc import Iterable, Sequence

from sqlalchemy import Connection, delete, func, select
from sqlalchemy.dialects import postgresql, sqlite

from bellwire.config.fleet.layer import HISTORY_LENGTH
from bellwire.config.fleet.writing import Held, Mark, held
from bellwire.push.store.tables import fleet_layers
from bellwire.signaling.topics import LayerName

Revisions = Sequence[tuple[LayerName, Held]]
"""Layers, each with a revision that it had."""


def newest_layers(connection: Connection) -> dict[LayerName, Mark]:
    """The newest revision of each layer, without what it says."""
    newest = (
        select(fleet_layers.c.layer, func.max(fleet_layers.c.revision).label("revision"))
        .group_by(fleet_layers.c.layer)
        .subquery()
    )
    rows = connection.execute(
        select(fleet_layers.c.layer, fleet_layers.c.revision, fleet_layers.c.hash).join(
            newest,
            (fleet_layers.c.layer == newest.c.layer)
            & (fleet_layers.c.revision == newest.c.revision),
        )
    )
    return {LayerName(layer): Mark(revision, hashed) for layer, revision, hashed in rows}


def layer_history(connection: Connection, name: LayerName) -> list[Held]:
    """The revisions of a layer, the oldest first."""
    documents = connection.execute(
        select(fleet_layers.c.document)
        .where(fleet_layers.c.layer == name)
        .order_by(fleet_layers.c.revision)
    ).scalars()
    return [held(document.encode()) for document in documents]


def keep_layers(connection: Connection, revisions: Revisions, at_ms: int) -> list[Held]:
    """Stores revisions that are not there yet; what now stands under each of them, in their order."""
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    rows = [
        {
            "layer": name,
            "revision": revision.layer.revision,
            "hash": revision.fingerprint,
            "document": revision.payload.decode(),
            "stored_at_ms": at_ms,
        }
        for name, revision in revisions
        if revision.layer is not None
    ]
    if rows:
        connection.execute(dialect.insert(fleet_layers).on_conflict_do_nothing(), rows)
    stored = [_stored(connection, name, revision) for name, revision in revisions]
    _forget_old(connection, {name for name, _ in revisions})
    return stored


def _stored(connection: Connection, name: LayerName, revision: Held) -> Held:
    number = 0 if revision.layer is None else revision.layer.revision
    document = connection.execute(
        select(fleet_layers.c.document).where(
            fleet_layers.c.layer == name, fleet_layers.c.revision == number
        )
    ).scalar_one_or_none()
    # Gone where another relay has stored so many newer ones meanwhile.
    return revision if document is None else held(document.encode())


def _forget_old(connection: Connection, names: Iterable[LayerName]) -> None:
    for name in names:
        last_kept = (
            select(fleet_layers.c.revision)
            .where(fleet_layers.c.layer == name)
            .order_by(fleet_layers.c.revision.desc())
            .limit(1)
            .offset(HISTORY_LENGTH - 1)
            .scalar_subquery()
        )
        connection.execute(
            delete(fleet_layers).where(
                fleet_layers.c.layer == name, fleet_layers.c.revision < last_kept
            )
        )
