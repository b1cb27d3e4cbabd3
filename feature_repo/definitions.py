"""What Feast knows: entities, sources, views and services. Field types come from `feature_repo.tables`.

Nothing here names a home: paths of files are relative to its folder `feast`, and tables are of the configured database.
"""

from collections.abc import Callable
from datetime import timedelta

import pyarrow as pa
from feast import Entity, FeatureService, FeatureView, Field, FileSource, PushSource, ValueType
from feast.data_source import DataSource
from feast.feast_object import FeastObject
from feast.types import Array, Bool, FeastType, Float32, Int32, Int64, String, UnixTimestamp

from feature_repo.tables import TIMESTAMP, VIEWS

PUSH_SOURCE = "user_history_push"
FOREVER = timedelta(0)  # features do not expire: a later publish replaces them

_PRIMITIVES = {pa.string(): String, pa.int32(): Int32, pa.int64(): Int64, pa.float32(): Float32, pa.bool_(): Bool}


def feast_type(arrow: pa.DataType) -> FeastType:
    """The Feast type of an Arrow type: lists become arrays, time stamps become UnixTimestamp."""
    if pa.types.is_list(arrow):
        return Array(_PRIMITIVES[arrow.value_type])
    if pa.types.is_timestamp(arrow):
        return UnixTimestamp
    return _PRIMITIVES[arrow]


def offline_path(view: str) -> str:
    """The parquet file behind a view, relative to the folder `feast`."""
    return f"offline/{view}.parquet"


def _file(view: str) -> DataSource:
    return FileSource(name=f"{view}_file", path=offline_path(view), timestamp_field=TIMESTAMP)


def _table(view: str) -> DataSource:
    from feast.infra.offline_stores.contrib.postgres_offline_store.postgres_source import PostgreSQLSource

    return PostgreSQLSource(name=f"{view}_table", table=view, timestamp_field=TIMESTAMP)


def _view(name: str, entity: Entity, description: str, source: DataSource) -> FeatureView:
    fields = [Field(name=field.name, dtype=feast_type(field.type)) for field in VIEWS[name]]
    return FeatureView(
        name=name, entities=[entity], schema=fields, source=source, ttl=FOREVER, online=True, description=description
    )


item = Entity(name="item", join_keys=["item_id"], value_type=ValueType.STRING, description="A product of the catalogue")
user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.STRING, description="A customer")
sid = Entity(name="sid", join_keys=["sid"], value_type=ValueType.STRING, description="A semantic ID, codes joined by _")


def definitions(in_database: bool) -> list[FeastObject]:
    """All of them; the sources come along with their views.

    Args:
        in_database: the offline logs are read from tables of PostgreSQL, not from files.
    """
    source: Callable[[str], DataSource] = _table if in_database else _file
    told = "What the catalogue and the enrichment models say of an item"
    item_enrichment = _view("item_enrichment", item, told, source("item_enrichment"))
    item_sid = _view("item_sid", item, "The item's semantic ID, and the tokenizer that gave it", source("item_sid"))
    sid_items = _view("sid_items", sid, "The items behind a semantic ID; empty when it is gone", source("sid_items"))
    history_push = PushSource(name=PUSH_SOURCE, batch_source=source("user_history"))
    user_history = _view("user_history", user, "A user's purchases in time order; new ones can be pushed", history_push)
    user_topk = _view("user_topk", user, "Precomputed recommendations of one policy version", source("user_topk"))
    return [
        *(item, user, sid),
        *(item_enrichment, item_sid, sid_items, user_history, user_topk),
        FeatureService(name="item_lookup", features=[item_enrichment, item_sid]),
        FeatureService(name="sid_lookup", features=[sid_items]),
        FeatureService(name="serving", features=[user_history, user_topk]),
    ]
