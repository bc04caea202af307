"""The migrations lead from an empty file to the tables that the code knows."""

import ast
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
    folder = Path(migrate_module.__file__).parent / "migrations"
    scripts = ScriptDirectory(str(folder))
    assert len(scripts.get_heads()) == len(scripts.get_bases()) == 1


SINCE_RELAYS_ARE_UPGRADED_ONE_BY_ONE = "0006"
ADDS = {"add_column", "create_table", "create_index", "bulk_insert", "f"}
"""What leaves alone the rows that a relay of the version before reads and writes."""


def asked_of_alembic(file: Path) -> list[ast.Call]:
    """The calls of `op` in a migration's upgrade."""
    return [
        call
        for function in ast.parse(file.read_text()).body
        if isinstance(function, ast.FunctionDef) and function.name == "upgrade"
        for call in ast.walk(function)
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and isinstance(call.func.value, ast.Name)
        and call.func.value.id == "op"
    ]


def test_a_migration_only_adds_and_what_it_adds_to_a_table_a_relay_of_before_may_leave_out() -> (
    None
):
    folder = Path(migrate_module.__file__).parent / "migrations" / "versions"
    for file in sorted(folder.glob("0*.py")):
        if file.name < SINCE_RELAYS_ARE_UPGRADED_ONE_BY_ONE:
            continue
        for call in asked_of_alembic(file):
            assert isinstance(call.func, ast.Attribute)
            assert call.func.attr in ADDS, f"{file.name}, line {call.lineno}: {call.func.attr}"
            if call.func.attr == "add_column":
                column = call.args[1]
                assert isinstance(column, ast.Call)
                said = {word.arg: ast.unparse(word.value) for word in column.keywords}
                may_be_left_out = said.get("nullable") != "False" or "server_default" in said
                assert may_be_left_out, f"{file.name}, line {call.lineno}: must be given a value"
