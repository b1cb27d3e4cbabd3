"""Claims: which worker asks a model about which item just now, so that several can fill one ledger and none asks twice.

A claim is a lock that ends with its holder, however that ends: PostgreSQL's advisory locks go with the connection, and
locks on ranges of a file with the process. So no claim has to be renewed while a model thinks, and none outlives a
worker that was killed. (A pooler that gives a connection away between transactions breaks this: connect directly.)
"""

import fcntl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Engine, text
from sqlalchemy.exc import DatabaseError

from tessera.catalog.engine import plainly
from tessera.files import sha256_of

_TRY = text("SELECT n FROM unnest(CAST(:numbers AS bigint[])) AS n WHERE pg_try_advisory_lock(n)")
# A worker whose machine vanished is noticed within a minute; the system's own patience is two hours.
_KEEPALIVE = text(
    "SELECT set_config('tcp_keepalives_idle', '30', false), set_config('tcp_keepalives_interval', '10', false),"
    " set_config('tcp_keepalives_count', '3', false)"
)


@contextmanager
def claimed(engine: Engine, keys: Mapping[str, tuple[str, ...]]) -> Iterator[list[str]]:
    """Within, the items of `keys` (item id -> key in the ledger) that no other process has claimed are this one's.

    Yields:
        their ids, in the order of `keys`.

    Raises:
        ServiceError: the database cannot be reached or refuses.
    """
    numbers = {item_id: int(sha256_of("\0".join(key))[:16], 16) - 2**63 for item_id, key in keys.items()}
    postgresql, file = engine.dialect.name == "postgresql", engine.url.database or ""
    if not postgresql and (file in ("", ":memory:") or file.startswith("file:")):
        yield list(keys)  # a database that only this process has
        return
    with _by_connection(engine, numbers) if postgresql else _by_file(Path(f"{file}.claims"), numbers) as granted:
        yield [item_id for item_id, number in numbers.items() if number in granted]


@contextmanager
def _by_connection(engine: Engine, numbers: Mapping[str, int]) -> Iterator[set[int]]:
    with plainly(engine):
        connection = engine.connect().execution_options(isolation_level="AUTOCOMMIT")
    with connection:
        with plainly(engine):
            connection.execute(_KEEPALIVE)
            granted = set(connection.scalars(_TRY, {"numbers": list(numbers.values())}))
        try:
            yield granted
        finally:
            try:
                connection.execute(text("SELECT pg_advisory_unlock_all()"))
            except DatabaseError:
                connection.invalidate()  # closed rather than kept, so that its claims end


@contextmanager
def _by_file(path: Path, numbers: Mapping[str, int]) -> Iterator[set[int]]:
    with path.open("ab") as file:  # one byte an item, far behind the end of a file that stays empty
        yield {number for number in numbers.values() if _locked(file.fileno(), (number + 2**63) >> 2)}


def _locked(file: int, byte: int) -> bool:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
    except (BlockingIOError, PermissionError):
        return False
    return True
