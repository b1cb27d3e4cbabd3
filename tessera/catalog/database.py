"""The catalogue as a SQL database: migrations, upserts that are safe to repeat, and reads as Arrow tables."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from sqlalchemy import Connection, Engine, Table, bindparam, delete, func, select, text

from tessera.catalog.engine import open_engine, reading, upsert, writing
from tessera.catalog.tables import INTERACTIONS, ITEMS
from tessera.errors import ServiceError
from tessera.schema import SCHEMAS, conform
from tessera.secrets import hidden, public

_MIGRATIONS = Path(__file__).parent / "migrations"
_MIGRATION_LOCK = 7236418  # any number, the same in every process: PostgreSQL's advisory lock takes one


def migrate(engine: Engine) -> None:
    """Bring the database to the newest revision; several processes may do so at once.

    Raises:
        ServiceError: the database cannot be reached, or a newer Tessera has migrated it further.
    """
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    with writing(engine) as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _MIGRATION_LOCK})
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, "head")
        except CommandError as error:
            where = hidden(public(engine.url.render_as_string(hide_password=False)))
            raise ServiceError(
                f"the database {where} is at a revision that this Tessera does not know ({error}); "
                "use the version that wrote it."
            ) from None


class Catalogue:
    """Items and interactions in SQL; one database holds one catalogue, and the ledger beside it."""

    def __init__(self, url: str | Engine) -> None:
        self.engine = open_engine(url)

    def migrate(self) -> None:
        """Create or update the tables; see `migrate`."""
        migrate(self.engine)

    def upsert_items(self, table: pa.Table, batch: int = 1000) -> None:
        """Insert or update items (schema "items") in one transaction, `batch` rows a statement."""
        table = conform("items", table)
        with writing(self.engine) as connection:
            upsert(connection, ITEMS, _rows(table, batch))

    def upsert_interactions(self, table: pa.Table, batch: int = 5000) -> None:
        """Give each user of `table` (schema "interactions") exactly the history in it; other users stay as they are."""
        table = conform("interactions", table)
        with writing(self.engine) as connection:
            self._put_histories(connection, table, batch)

    def replace(self, items: pa.Table, interactions: pa.Table, batch: int = 5000) -> dict[str, int]:
        """Make the database say what these tables say, in one transaction; the ledger is left alone.

        Returns: {"removed_items", "removed_users"}: what the database had and the tables no longer have.
        """
        items, interactions = conform("items", items), conform("interactions", interactions)
        with writing(self.engine) as connection:
            known = set(connection.scalars(select(ITEMS.c.item_id)))
            gone = sorted(known - set(items["item_id"].to_pylist()))
            _delete_each(connection, ITEMS, [{"key_item_id": item} for item in gone])
            upsert(connection, ITEMS, _rows(items, batch))
            users = set(connection.scalars(select(INTERACTIONS.c.user_id).distinct()))
            lost = sorted(users - set(pc.unique(interactions["user_id"]).to_pylist()))
            _delete_each(connection, INTERACTIONS, [{"key_user_id": user} for user in lost])
            self._put_histories(connection, interactions, batch)
        return {"removed_items": len(gone), "removed_users": len(lost)}

    def _put_histories(self, connection: Connection, table: pa.Table, batch: int) -> None:
        upsert(connection, INTERACTIONS, _rows(table, batch))
        counted = table.group_by("user_id").aggregate([("position", "max")])
        last = dict(zip(counted["user_id"].to_pylist(), counted["position_max"].to_pylist(), strict=True))
        stored = select(INTERACTIONS.c.user_id, func.max(INTERACTIONS.c.position)).group_by(INTERACTIONS.c.user_id)
        longer = [(user, last[user]) for user, end in connection.execute(stored) if user in last and end > last[user]]
        if longer:
            statement = delete(INTERACTIONS).where(
                INTERACTIONS.c.user_id == bindparam("user"), INTERACTIONS.c.position > bindparam("last")
            )
            connection.execute(statement, [{"user": user, "last": end} for user, end in longer])

    def items(self) -> pa.Table:
        """All items (schema "items"), sorted by item id."""
        return self._read("items", ITEMS).sort_by("item_id")

    def interactions(self) -> pa.Table:
        """All interactions (schema "interactions"), sorted by user, time and position."""
        order = [("user_id", "ascending"), ("timestamp", "ascending"), ("position", "ascending")]
        return self._read("interactions", INTERACTIONS).sort_by(order)

    def history(self, user_id: str) -> list[str]:
        """A user's item ids in time order; empty for a user the catalogue does not know."""
        columns = INTERACTIONS.c
        statement = select(columns.item_id).where(columns.user_id == user_id).order_by(columns.position)
        with reading(self.engine) as connection:
            return list(connection.scalars(statement))

    def _read(self, name: str, table: Table) -> pa.Table:
        schema = SCHEMAS[name]
        with reading(self.engine) as connection:
            rows: Sequence[Any] = connection.execute(select(*(table.c[column] for column in schema.names))).all()
        # Sorted by the caller in Arrow, by bytes: a server's collation is not the order of the schema.
        columns = list(zip(*rows, strict=True)) or [()] * len(schema)
        return pa.table([pa.array(list(c), f.type) for c, f in zip(columns, schema, strict=True)], schema=schema)


def _rows(table: pa.Table, batch: int) -> Iterable[list[dict[str, Any]]]:
    return (part.to_pylist() for part in table.to_batches(max_chunksize=batch))


def _delete_each(connection: Connection, table: Table, keys: list[dict[str, str]]) -> None:
    if keys:
        (parameter,) = keys[0]
        column = table.c[parameter.removeprefix("key_")]
        connection.execute(delete(table).where(column == bindparam(parameter)), keys)
