"""Database connections: SQLite and PostgreSQL behind one engine, short transactions, and errors in one sentence."""

import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, Table, create_engine, event, make_url, or_
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, DatabaseError, NoSuchModuleError

from tessera.errors import InputError, ServiceError
from tessera.secrets import hidden, public

BUSY_TIMEOUT_MS = 60_000
_WRITES = {"tessera_writes": True}


def open_engine(url: str | Engine) -> Engine:
    """An engine for `url`, or `url` itself if it is one; nothing is connected yet.

    Raises:
        InputError: the URL cannot be read, or names a database other than SQLite or PostgreSQL.
    """
    if isinstance(url, Engine):
        return url
    try:
        parsed = make_url(url)
        dialect = parsed.get_backend_name()
        if dialect not in ("sqlite", "postgresql"):
            raise InputError(f"the catalogue cannot live in {dialect}; use sqlite:///FILE or postgresql+psycopg://...")
        if dialect == "sqlite" and parsed.database:
            Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
        engine = create_engine(parsed, pool_pre_ping=dialect == "postgresql")
    except (ArgumentError, NoSuchModuleError, ModuleNotFoundError):
        # Not the URL itself in the message: it may carry a password.
        raise InputError(
            "the catalogue URL cannot be used; write sqlite:///FILE or postgresql+psycopg://USER:PASSWORD@HOST/NAME "
            "and install the driver that it names."
        ) from None
    except OSError as error:
        raise ServiceError(f"cannot make the folder of {parsed.database} ({error.strerror}); check the path.") from None
    if dialect == "sqlite":
        event.listen(engine, "connect", _configure_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    return engine


def _configure_sqlite(connection: sqlite3.Connection, _record: Any) -> None:
    # The driver's own BEGIN comes too late for DDL and too lazily for writers; `_begin_sqlite` says it instead.
    connection.isolation_level = None
    connection.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
    _write_ahead(connection)


def _write_ahead(connection: sqlite3.Connection) -> None:
    # Of several that turn a new file's log on at once, all but one are refused at once: here SQLite does not wait.
    deadline = time.monotonic() + BUSY_TIMEOUT_MS / 1000
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _begin_sqlite(connection: Connection) -> None:
    # A writer locks first: upgrading a read transaction fails at once, without waiting, when another wrote meanwhile.
    writes = connection.get_execution_options().get("tessera_writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """One transaction that writes: all of it is committed, or none.

    Raises:
        ServiceError: the database cannot be reached or refuses.
    """
    with plainly(engine), engine.connect().execution_options(**_WRITES) as connection, connection.begin():
        yield connection


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """One consistent read.

    Raises:
        ServiceError: the database cannot be reached or refuses.
    """
    with plainly(engine), engine.connect() as connection, connection.begin():
        yield connection


@contextmanager
def plainly(engine: Engine) -> Iterator[None]:
    """Turn what a database raises into a ServiceError of one sentence, without the password."""
    try:
        yield
    except DatabaseError as error:
        where = hidden(public(engine.url.render_as_string(hide_password=False)))
        reason = hidden(" ".join(str(error.orig).split()))
        raise ServiceError(
            f"the database {where} refused ({reason}); check that it is up and that the URL is right."
        ) from None


def upsert(connection: Connection, table: Table, rows: Iterable[list[dict[str, Any]]], keep_ok: bool = False) -> None:
    """Insert batches of rows, updating those whose key exists; a row that is already there unchanged is not written.

    Args:
        keep_ok: a row with status "failed" leaves one with status "ok" alone.
    """
    insert = (sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert)(table)
    new, key = insert.excluded, list(table.primary_key.columns)
    values = [column for column in table.columns if not column.primary_key and column.server_default is None]
    where = or_(*(column.is_distinct_from(new[column.name]) for column in values))
    if keep_ok:
        where = where & ((new["status"] == "ok") | (table.c.status != "ok"))
    updates = {column.name: new[column.name] for column in table.columns if not column.primary_key}
    statement = insert.on_conflict_do_update(index_elements=key, set_=updates, where=where)
    for batch in rows:
        if batch:
            connection.execute(statement, batch)
