"""Statements that are run for every call: SQLAlchemy writes each once for a kind of database, and
from then on the driver runs it, without what SQLAlchemy does around each execution.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from pydantic_core import to_json
from sqlalchemy import (
    BindParameter,
    ClauseElement,
    ColumnElement,
    Connection,
    String,
    Table,
    Text,
    bindparam,
    cast,
    column,
    exc,
    func,
    insert,
    select,
)
from sqlalchemy.dialects.postgresql import JSON
from sqlalchemy.types import TypeEngine

_LONGEST_LIST = 512

Row = tuple[Any, ...]


class Prepared:
    """A statement that is run often, in a transaction that has begun. Its parameters are named by
    `bindparam`, and both drivers take them by these names."""

    def __init__(self, statement: ClauseElement) -> None:
        self._statement = statement
        self._written: dict[str, str] = {}

    def rows(self, connection: Connection, **values: Any) -> list[Row]:  # noqa: ANN401 - of columns
        """Runs it; returns the rows that it gives.

        Raises:
            sqlalchemy.exc.DBAPIError: as `Connection.execute`.
        """
        rows: list[Row] = _run(connection, self._sql(connection), values).fetchall()
        return rows

    def one(self, connection: Connection, **values: Any) -> Row | None:  # noqa: ANN401
        """Runs it; returns the first row, or None."""
        row: Row | None = _run(connection, self._sql(connection), values).fetchone()
        return row

    def run(self, connection: Connection, **values: Any) -> None:  # noqa: ANN401
        """Runs it, and asks for nothing back."""
        _run(connection, self._sql(connection), values)

    def cursor(self, connection: Connection, **values: Any) -> Any:  # noqa: ANN401 - the driver's own
        """Runs it; returns the cursor with the rows that it gives."""
        return _run(connection, self._sql(connection), values)

    def run_each(self, connection: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
        """Runs it for each of some rows of values."""
        if not rows:
            return
        sql = self._sql(connection)
        driver: Any = connection.connection.driver_connection
        try:
            driver.cursor().executemany(sql, rows)
        except connection.dialect.loaded_dbapi.Error as error:
            raise _translated(connection, sql, error) from error

    def _sql(self, connection: Connection) -> str:
        dialect = connection.dialect
        sql = self._written.get(dialect.name)
        if sql is None:
            sql = self._written[dialect.name] = str(self._statement.compile(dialect=dialect))
        return sql


class PreparedForList:
    """A statement that is run for the elements of a list at once, such as those of an `IN`. A list is
    filled up to a power of two with its last element, so that few lengths are ever written.

    Args:
        of: Writes it, with what stands for each of the elements.
        type_: The elements' type.
    """

    def __init__(
        self,
        of: Callable[[Sequence[BindParameter[Any]]], ClauseElement],
        type_: type[TypeEngine[Any]] = String,
    ) -> None:
        self._of = of
        self._type = type_
        self._written: dict[int, tuple[Prepared, list[str]]] = {}

    def rows(
        self,
        connection: Connection,
        elements: Sequence[Any],
        **values: Any,  # noqa: ANN401 - of columns
    ) -> list[Row]:
        """Runs it; returns the rows that it gives.

        Raises:
            sqlalchemy.exc.DBAPIError: as `Connection.execute`.
        """
        found: list[Row] = []
        for start in range(0, len(elements), _LONGEST_LIST):
            statement, named = self._for(elements[start : start + _LONGEST_LIST])
            found += statement.rows(connection, **named, **values)
        return found

    def run(self, connection: Connection, elements: Sequence[Any]) -> None:
        """Runs it, and asks for nothing back."""
        for start in range(0, len(elements), _LONGEST_LIST):
            statement, named = self._for(elements[start : start + _LONGEST_LIST])
            statement.run(connection, **named)

    def begin(self, connection: Connection, elements: Sequence[Any]) -> Callable[[], list[Row]]:
        """Runs it; returns what gives the rows that it gives. Asked for after a pipeline's end, they cost
        no way to the database of their own."""
        if connection.dialect.name != "postgresql":
            rows = self.rows(connection, elements)
            return lambda: rows
        cursors = []
        for start in range(0, len(elements), _LONGEST_LIST):
            statement, named = self._for(elements[start : start + _LONGEST_LIST])
            cursors.append(statement.cursor(connection, **named))
        return lambda: [row for cursor in cursors for row in cursor.fetchall()]

    def _for(self, elements: Sequence[Any]) -> tuple[Prepared, dict[str, Any]]:
        filled_up = list(elements)
        missing = (1 << (len(elements) - 1).bit_length()) - len(elements)
        if missing:
            filled_up += filled_up[-1:] * missing
        written = self._written.get(len(filled_up))
        if written is None:
            names = [f"element_{number}" for number in range(len(filled_up))]
            stand_ins = [bindparam(name, type_=self._type) for name in names]
            written = self._written[len(filled_up)] = (Prepared(self._of(stand_ins)), names)
        statement, names = written
        return statement, dict(zip(names, filled_up, strict=True))


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


def _run(connection: Connection, sql: str, values: Mapping[str, Any]) -> Any:  # noqa: ANN401 - a DBAPI cursor
    driver: Any = connection.connection.driver_connection
    try:
        return driver.execute(sql, values)
    except connection.dialect.loaded_dbapi.Error as error:
        raise _translated(connection, sql, error) from error


def _translated(connection: Connection, sql: str, error: Exception) -> exc.DBAPIError:
    """A driver's error as SQLAlchemy would raise it, with the connection thrown away that it broke."""
    dbapi: Any = connection.dialect.loaded_dbapi
    driver: Any = connection.connection.driver_connection
    broken = connection.dialect.is_disconnect(dbapi.Error(str(error)), driver, None)
    if broken:
        connection.invalidate(error)
    kinds = [getattr(exc, kind.__name__, None) for kind in type(error).__mro__]
    kind = next(
        (k for k in kinds if k is not None and issubclass(k, exc.DBAPIError)), exc.DBAPIError
    )
    return kind(sql, None, error, hide_parameters=True, connection_invalidated=broken)
