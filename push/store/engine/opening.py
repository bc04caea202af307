"""Which database a relay uses: the one its settings name, else SQLite in its data directory."""

from pathlib import Path

from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

from bellwire.push.store.engine.database import Database
from bellwire.push.store.engine.postgres import PostgresDatabase
from bellwire.push.store.engine.sqlite import SqliteDatabase
from bellwire.signaling.errors import InvalidInput


def open_database(url: str | None, data: Path) -> Database:
    """Opens a database and brings it to this version's tables. It blocks.

    Raises:
        InvalidInput: the URL is none, or of a database that the relay does not speak.
        Unavailable: the database cannot be reached.
    """
    if url is None:
        return SqliteDatabase(data / "relay.db")
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise InvalidInput(
            "--database: must be a URL such as postgresql://bellwire@localhost/bellwire"
        ) from error
    match parsed.get_backend_name():
        case "postgresql":
            return PostgresDatabase(parsed)
        case "sqlite" if parsed.database:
            return SqliteDatabase(Path(parsed.database))
        case other:
            raise InvalidInput(
                f"--database: {other} is not served; use postgresql:// or sqlite:///"
            )
