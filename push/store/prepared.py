"""Statements that are run for every call: SQLAlchemy writes each once for a kind of database, and
from then on the driver runs it, without what SQLAlchemy does around each execution."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from sqlalchemy import ClauseElement, Connection
from sqlalchemy.exc import DBAPIError

_PARAMSTYLES = {"sqlite": "qmark", "postgresql": "format"}
_LONGEST_LIST = 512

Row = tuple[Any, ...]
_Arguments = Callable[[dict[str, Any]], Sequence[Any]]


class Prepared:
    """A statement that is run often, in a transaction that has begun. Its parameters are named by
    `bindparam`, or by `columns` where it is an insert; one that is a list (`expanding`) is filled up
    to a power of two with its last element, so that few lengths are ever written."""

    def __init__(self, statement: ClauseElement, columns: Sequence[str] | None = None) -> None:
        self._statement = statement
        self._columns = columns
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

    def each(self, connection: Connection, values: Iterable[dict[str, Any]]) -> None:
        """Runs it for each of some sets of values, in one go."""
        sql, arguments = self._write(connection, 0)
        driver: Any = connection.connection.driver_connection
        try:
            driver.cursor().executemany(sql, [arguments(row) for row in values])
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
        compiled: Any = self._statement.compile(dialect=dialect, column_keys=self._columns)
        names: list[str] = list(compiled.positiontup)
        if not length:
            return str(compiled), lambda values: [values[name] for name in names]
        lists = {name for name, bind in compiled.binds.items() if bind.expanding}
        parameters = {name: [None] * length if name in lists else None for name in compiled.binds}
        sql = compiled.construct_expanded_state(parameters).statement

        def flat(values: dict[str, Any]) -> Sequence[Any]:
            found: list[Any] = []
            for name in names:
                if name in lists:
                    found += values[name]
                else:
                    found.append(values[name])
            return found

        return sql, flat


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
