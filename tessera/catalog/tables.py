"""The SQL tables. Columns of items and interactions derive from `tessera.schema`; lists are stored as JSON."""

import pyarrow as pa
from sqlalchemy import JSON, BigInteger, Column, DateTime, Integer, LargeBinary, MetaData, Table, Text, func
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.types import TypeEngine

from tessera.schema import SCHEMAS

METADATA = MetaData()


def _sql_type(arrow: pa.DataType) -> TypeEngine:
    if pa.types.is_list(arrow):
        # JSONB and not JSON: PostgreSQL can compare it, so that an unchanged row need not be written again.
        return JSON().with_variant(JSONB(), "postgresql")
    if pa.types.is_int64(arrow):
        return BigInteger()
    return Integer() if pa.types.is_integer(arrow) else Text()


def _derived(name: str, *key: str) -> Table:
    columns = [
        Column(f.name, _sql_type(f.type), primary_key=f.name in key, nullable=f.nullable, autoincrement=False)
        for f in SCHEMAS[name]
    ]
    return Table(name, METADATA, *columns)


ITEMS = _derived("items", "item_id")
# A history is one row a position, so that repeated purchases stay and a longer or shorter history replaces the old one.
INTERACTIONS = _derived("interactions", "user_id", "position")

# The ledger: what a model said about an item, keyed by all that could change the answer.
ENRICHMENTS = Table(
    "enrichments",
    METADATA,
    Column("kind", Text, primary_key=True),
    Column("provider", Text, primary_key=True),
    Column("model", Text, primary_key=True),
    Column("prompt_version", Text, primary_key=True),
    Column("item_id", Text, primary_key=True),
    Column("content_hash", Text, primary_key=True),
    Column("status", Text, nullable=False),
    Column("payload", LargeBinary),
    Column("reason", Text),
    Column("recorded_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
)
