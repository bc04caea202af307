"""Brings a database to this version's tables, with Alembic."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Engine, text

_LOCK = 0x62656C6C
"""Of PostgreSQL's advisory locks, the one that relays take to migrate one after the other."""


def migrate(engine: Engine) -> None:
    """Runs the migrations that the database lacks."""
    configuration = Config()
    configuration.set_main_option("script_location", str(Path(__file__).parents[1] / "migrations"))
    with engine.connect() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_lock(:lock)"), {"lock": _LOCK})
            connection.commit()
        configuration.attributes["connection"] = connection
        command.upgrade(configuration, "head")
        if engine.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_unlock(:lock)"), {"lock": _LOCK})
            connection.commit()
