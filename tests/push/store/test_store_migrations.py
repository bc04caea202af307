"""The migrations lead from an empty file to the tables that the code knows."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, inspect

from bellwire.push.store import tables as migrate_module
from bellwire.push.store.engine.sqlite import sqlite_engine
from bellwire.push.store.tables import metadata, migrate


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "relay.db"


@pytest.fixture
def engine(path: Path) -> Iterator[Engine]:
    made = sqlite_engine(path)
    yield made
    made.dispose()


def schema(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as file:
        rows = file.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY name")
        return [sql for (sql,) in rows]


def test_an_empty_file_becomes_exactly_the_tables_of_the_code(engine: Engine) -> None:
    migrate(engine)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
        foreign = {
            (table, key["constrained_columns"][0], key["options"].get("ondelete"))
            for table in metadata.tables
            for key in inspect(connection).get_foreign_keys(table)
        }
    assert foreign == {
        ("call_users", "call_number", "CASCADE"),
        ("channels", "device_id", "CASCADE"),
        ("connections", "device_id", "CASCADE"),
        ("device_events", "device_id", "CASCADE"),
        ("feedback", "call_number", "CASCADE"),
        ("group_members", "name", "CASCADE"),
        ("outbox", "device_id", "CASCADE"),
        ("token_devices", "device_id", "CASCADE"),
    }


def test_a_second_start_changes_nothing_and_keeps_the_rows(engine: Engine, path: Path) -> None:
    migrate(engine)
    with closing(sqlite3.connect(path)) as file:
        file.execute("INSERT INTO api_keys (key_hash, created_at_ms) VALUES ('kept', 0)")
        file.commit()
    before = schema(path)
    migrate(engine)
    assert schema(path) == before
    with closing(sqlite3.connect(path)) as file:
        assert file.execute("SELECT key_hash FROM api_keys").fetchall() == [("kept",)]


def test_the_migrations_are_one_line_without_branches() -> None:
    folder = Path(migrate_module.__file__).parents[1] / "migrations"
    scripts = ScriptDirectory(str(folder))
    assert len(scripts.get_heads()) == len(scripts.get_bases()) == 1
