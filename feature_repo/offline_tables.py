"""The offline logs as tables of PostgreSQL, where Feast's offline store is one: Feast reads them but cannot write them.

The files in `home/feast/offline` stay the publisher's own record, from which a table can be made anew at any time.
"""

from typing import TYPE_CHECKING, Any

import pyarrow as pa

from feature_repo.tables import TIMESTAMP

if TYPE_CHECKING:
    from feast import FeatureStore

_TYPES = {
    pa.string(): "text", pa.int32(): "integer", pa.int64(): "bigint", pa.float32(): "real", pa.bool_(): "boolean",
}  # fmt: skip


def in_database(store: "FeatureStore") -> bool:
    """Whether the offline store of these settings is PostgreSQL."""
    return bool(store.config.offline_store.type == "postgres")


def put(store: "FeatureStore", view: str, rows: pa.Table, *, anew: bool) -> None:
    """Append rows (a view's columns and the event timestamp) to the view's table, or make it of these rows alone.

    One transaction: who joins meanwhile sees all of it or nothing.
    """
    from feast.infra.utils.postgres.connection_utils import _get_conn
    from psycopg import sql

    table, key = sql.Identifier(view), sql.Identifier(rows.column_names[0])
    with _get_conn(store.config.offline_store) as connection, connection.cursor() as cursor:
        if anew:
            columns = [sql.SQL("{} " + _sql_type(f.type)).format(sql.Identifier(f.name)) for f in rows.schema]
            cursor.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(table))
            cursor.execute(sql.SQL("CREATE TABLE {} ({})").format(table, sql.SQL(", ").join(columns)))
            newest = sql.SQL("CREATE INDEX ON {} ({}, {} DESC)").format(table, key, sql.Identifier(TIMESTAMP))
            cursor.execute(newest)
        names = sql.SQL(", ").join(map(sql.Identifier, rows.column_names))
        with cursor.copy(sql.SQL("COPY {} ({}) FROM STDIN").format(table, names)) as copy:
            for batch in rows.to_batches(max_chunksize=10_000):
                for row in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                    copy.write_row(row)


def _sql_type(arrow: Any) -> str:
    if pa.types.is_list(arrow):
        return f"{_TYPES[arrow.value_type]}[]"
    return "timestamptz" if pa.types.is_timestamp(arrow) else _TYPES[arrow]
