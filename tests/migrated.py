"""Databases that have their tables already: to make them is half of what a relay does at its first start.
That they are made is shown where the start itself is tested, and by `test_store_migrations.py`."""

import functools
import tempfile
from pathlib import Path

from bellwire.push.store.engine.sqlite import sqlite_engine
from bellwire.push.store.tables import migrate


def lay_migrated(path: Path) -> None:
    """Puts an empty SQLite database there, its owner's alone."""
    path.touch(mode=0o600, exist_ok=False)
    path.write_bytes(_migrated())


@functools.cache
def _migrated() -> bytes:
    with tempfile.TemporaryDirectory(prefix="bellwire-migrated-") as folder:
        path = Path(folder) / "relay.db"
        engine = sqlite_engine(path)
        migrate(engine)
        engine.dispose()  # the file is then all there is
        return path.read_bytes()
