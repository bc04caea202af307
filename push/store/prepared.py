"""Statements that are run for every call: SQLAlchemy writes each once for a kind of database, and
from then on the driver runs it, without what SQLAlchemy does around each execution."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from pydantic_core import to_json
from sqlalchemy import (
    ClauseElement,
    ColumnElement,
    Connection,
    Table,
    Text,
    bindparam,
    cast,
    column,
    func,
    insert,
    select,
)
from sqlalchemy.dialects.postgresql import JSON
from sqlalchemy.exc import DBAPIError
from sqlalchemy.types import TypeEngine

_PARAMSTYLES = {"sqlite": "qmark", "postgresql": "format"}
_LONGEST_LIST = 512

Row = tuple[Any, ...]
_Arguments = Callable[[Mapping[str, Any]], Sequence[Any]]


class Prepared:
    """A statement that is run often, in a transaction that has begun. Its parameters are named by
    `bindparam`; one that is a list (`expanding`) is filled up to a power of two with its last element,
    so that few lengths are ever written."""

    def __init__(self, statement: ClauseElement) -> None:
        self._statement = statement
        self._written: dict[tuple[str, int], tuple[str, _Arguments]] = {}

    def rows(self, connection: Connection, **values: Any) -> list[Row]:  # noqa: ANN401 - of columns
        """Runs it; returns the rows that it gives.

        Raises:
            sqlalchemy.exc.DBAPIError: as `Connection.execute`.
        """
        rows: list[Row] = self._run(connection, values).fetchall()
        return rows

    def one(self, connection: Connection, **values: Any) -> Row | None:  # noqa: ANN401
        """Runs it; returns the first row, or None."""
        row: Row | None = self._run(connection, values).fetchone()
        return row

    def run(self, connection: Connection, **values: Any) -> None:  # noqa: ANN401
        """Runs it, and asks for nothing back."""
        self._run(connection, values)

    def run_each(self, connection: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
        """Runs it for each of some rows of values."""
        if not rows:
            return
        sql, arguments = self._write(connection, 0)
        driver: Any = connection.connection.driver_connection
        try:
            driver.cursor().executemany(sql, [arguments(row) for row in rows])
        except connection.dialect.loaded_dbapi.Error as error:
            raise _translated(connection, sql, error) from error

    def _run(self, connection: Connection, values: dict[str, Any]) -> Any:  # noqa: ANN401 - a DBAPI cursor
        length = 0
        for name, value in values.items():
            if type(value) is list:
                values[name] = value = _filled_up(value)
                length = len(value)
        sql, arguments = self._write(connection, length)
        driver: Any = connection.connection.driver_connection
        try:
            return driver.execute(sql, arguments(values))
        except connection.dialect.loaded_dbapi.Error as error:
            raise _translated(connection, sql, error) from error

    def _write(self, connection: Connection, length: int) -> tuple[str, _Arguments]:
        key = (connection.dialect.name, length)
        written = self._written.get(key)
        if written is None:
            written = self._written[key] = self._written_anew(connection, length)
        return written

    def _written_anew(self, connection: Connection, length: int) -> tuple[str, _Arguments]:
        dialect = type(connection.dialect)(paramstyle=_PARAMSTYLES[connection.dialect.name])  # type: ignore[call-arg]
        compiled: Any = self._statement.compile(dialect=dialect)
        names: list[str] = list(compiled.positiontup)
        if not length:
            return str(compiled), lambda values: [values[name] for name in names]
        lists = {name for name, bind in compiled.binds.items() if bind.expanding}
        parameters = {name: [None] * length if name in lists else None for name in compiled.binds}
        sql = compiled.construct_expanded_state(parameters).statement

        def flat(values: Mapping[str, Any]) -> Sequence[Any]:
            found: list[Any] = []
            for name in names:
                if name in lists:
                    found += values[name]
                else:
                    found.append(values[name])
            return found

        return sql, flat


Values = Mapping[str, ColumnElement[Any]]


class PreparedForEach:
    """A statement that is run for many rows of values at once. SQLite runs it for one after the other;
    PostgreSQL once for all, since each run has a price there.

    Args:
        of: Writes it, with what stands for the values of a row.
        types: The values' types, by name.
    """

    def __init__(
        self, of: Callable[[Values], ClauseElement], types: Mapping[str, TypeEngine[Any]]
    ) -> None:
        given = (
            func.json_to_recordset(cast(bindparam("rows", type_=Text), JSON))
            .table_valued(*(column(name, type_) for name, type_ in types.items()))
            .render_derived(name="given", with_types=True)
        )
        self._for_all = Prepared(of(dict(given.c.items())))
        self._for_one = Prepared(of({n: bindparam(n, type_=type_) for n, type_ in types.items()}))

    def run(self, connection: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
        """Runs it, and asks for nothing back.

        Raises:
            sqlalchemy.exc.DBAPIError: as `Connection.execute`.
        """
        if rows and connection.dialect.name == "postgresql":
            self._for_all.run(connection, rows=to_json(rows).decode())
        else:
            self._for_one.run_each(connection, rows)


def insert_each(table: Table, names: Sequence[str]) -> PreparedForEach:
    """Inserts rows of some columns of a table."""
    return PreparedForEach(
        lambda values: insert(table).from_select(
            [*names], select(*(values[name] for name in names))
        ),
        {name: table.c[name].type for name in names},
    )


@contextmanager
def pipelined(connection: Connection) -> Iterator[None]:
    """Within it, PostgreSQL is told several statements at once where none waits for another's rows
    (psycopg's pipeline mode). Only what `Prepared` runs without counting may stand in it."""
    if connection.dialect.name != "postgresql":
        yield
        return
    driver: Any = connection.connection.driver_connection
    try:
        with driver.pipeline():
            yield
    except connection.dialect.loaded_dbapi.Error as error:
        raise _translated(connection, "a pipeline", error) from error


def in_parts(values: Sequence[Any]) -> Iterable[list[Any]]:
    """A list cut into parts that one statement can take."""
    for start in range(0, len(values), _LONGEST_LIST):
        yield list(values[start : start + _LONGEST_LIST])


def _filled_up(values: list[Any]) -> list[Any]:
    missing = (1 << (len(values) - 1).bit_length()) - len(values)
    return values + values[-1:] * missing if missing else values


def _translated(connection: Connection, sql: str, error: Exception) -> BaseException:
    """A driver's error as SQLAlchemy would raise it, with the connection thrown away that it broke."""
    dbapi: Any = connection.dialect.loaded_dbapi
    driver: Any = connection.connection.driver_connection
    broken = connection.dialect.is_disconnect(dbapi.Error(str(error)), driver, None)
    if broken:
        connection.invalidate(error)
    return DBAPIError.instance(
        sql,
        None,
        error,
        dbapi.Error,
        hide_parameters=True,
        connection_invalidated=broken,
        dialect=connection.dialect,
    )
