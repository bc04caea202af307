"""What a database does with the rows of a whole call and nothing around them: four transactions, each
durable when it returns, as many at once as the relay's own settings allow."""

import itertools
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg

_DOCUMENT = "x" * 900
"""As long as a call of two users is."""

_EVENT = "x" * 350
_TABLES = """
CREATE TABLE bare_calls (number INTEGER PRIMARY KEY, call_sid TEXT UNIQUE, state TEXT,
  deadline_ms BIGINT, document TEXT);
CREATE INDEX bare_deadline ON bare_calls (deadline_ms);
CREATE TABLE bare_users (identity TEXT, number INTEGER, PRIMARY KEY (identity, number));
CREATE TABLE bare_owed (id INTEGER PRIMARY KEY, event_id TEXT, payload TEXT, due_ms BIGINT);
CREATE INDEX bare_due ON bare_owed (due_ms);
"""

Statement = tuple[str, tuple[Any, ...]]
_numbers = itertools.count(1)


def whole_call() -> Iterator[list[Statement]]:
    """The four transactions of a call: invite, received, accept, hang up, each with its deliveries
    owed; what the one before owed is settled by the next."""
    number = next(_numbers)
    insert = "INSERT INTO bare_calls VALUES (%s, %s, %s, %s, %s)"
    user = "INSERT INTO bare_users VALUES (%s, %s)"
    select = "SELECT document FROM bare_calls WHERE call_sid = %s"
    update = "UPDATE bare_calls SET state = %s, deadline_ms = %s, document = %s WHERE call_sid = %s"
    owe = "INSERT INTO bare_owed VALUES (%s, %s, %s, %s)"
    settle = "DELETE FROM bare_owed WHERE id = %s"
    owed = [number * 8 + step for step in range(8)]

    def owing(first: int) -> list[Statement]:
        return [(owe, (id_, f"{number}-{id_}", _EVENT, 1)) for id_ in owed[first : first + 2]]

    def settling(first: int) -> list[Statement]:
        return [(settle, (id_,)) for id_ in owed[first : first + 2]]

    yield [
        (insert, (number, f"CA{number}", "ringing", number, _DOCUMENT)),
        (user, ("alice", number)),
        (user, ("bob", number)),
        *owing(0),
    ]
    for step, state in enumerate(("ringing", "open", "ended"), start=1):
        yield [
            (select, (f"CA{number}",)),
            (update, (state, number, _DOCUMENT, f"CA{number}")),
            *owing(2 * step),
            *settling(2 * step - 2),
        ]


def sqlite_calls_per_s(folder: Path, seconds: float) -> float:
    """One writer, as SQLite has it, with the relay's own pragmas."""
    connection = sqlite3.connect(folder / f"bare-{next(_numbers)}.db", isolation_level=None)
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")
    connection.executescript(_TABLES)

    def commit(statements: list[Statement]) -> None:
        connection.execute("BEGIN IMMEDIATE")
        for statement, values in statements:
            connection.execute(statement.replace("%s", "?"), values).fetchall()
        connection.execute("COMMIT")

    done = _run_for(seconds, commit)
    connection.close()
    return done / seconds


def postgres_calls_per_s(url: str, seconds: float, writers: int) -> float:
    """As many connections as the relay has."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("DROP TABLE IF EXISTS bare_calls, bare_users, bare_owed")
        connection.execute(_TABLES)
    done: list[int] = []

    def write() -> None:
        with psycopg.connect(url) as connection:

            def commit(statements: list[Statement]) -> None:
                for statement, values in statements:
                    connection.execute(statement, values)
                connection.commit()

            done.append(_run_for(seconds, commit))

    threads = [threading.Thread(target=write) for _ in range(writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(done) / seconds


def _run_for(seconds: float, commit: Callable[[list[Statement]], None]) -> int:
    calls, until = 0, time.perf_counter() + seconds
    while time.perf_counter() < until:
        for statements in whole_call():
            commit(statements)
        calls += 1
    return calls
