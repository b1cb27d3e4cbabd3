"""The feature tables: which columns each Feast view has, and how they follow from the tables of a run.

Columns are picked from `tessera.schema`, so a type is declared once. Nothing here imports Feast.
"""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from tessera.errors import InputError
from tessera.schema import DESCRIPTOR, SCHEMAS, read_table

TIMESTAMP = "event_timestamp"
UTC = pa.timestamp("us", tz="UTC")


def _pick(table: str, *columns: str) -> list[pa.Field]:
    return [SCHEMAS[table].field(column).with_nullable(True) for column in columns]


def _many(name: str, table: str, column: str) -> pa.Field:
    return pa.field(name, pa.list_(SCHEMAS[table].field(column).type))


# The first column is the entity's join key. A row whose features are all empty says that the key is gone (a tombstone).
VIEWS: dict[str, pa.Schema] = {
    "item_enrichment": pa.schema([
        *_pick("items", "item_id", "title", "brand", "categories", "image"),
        *_pick("captions", "caption"),
        *_pick("intents", "motives"),
        _many("descriptors", "items", "title"),
        pa.field("confidences", pa.list_(DESCRIPTOR.field("confidence").type)),
        _pick("quality", "score")[0].with_name("quality_score"),
    ]),
    "item_sid": pa.schema(_pick("sids", "item_id", "sid", "codes", "tokenizer_version")),
    "sid_items": pa.schema([
        *_pick("sids", "sid"), _many("item_ids", "sids", "item_id"), *_pick("sids", "tokenizer_version"),
    ]),
    "user_history": pa.schema([*_pick("splits", "user_id"), _many("item_ids", "splits", "test")]),
    "user_topk": pa.schema([
        *_pick("splits", "user_id"), _many("item_ids", "sids", "item_id"), _many("sids", "sids", "sid"),
        pa.field("scores", pa.list_(pa.float32())), pa.field("policy_version", pa.string()),
        *_pick("sids", "tokenizer_version"), pa.field("computed_at", UTC), pa.field("stale", pa.bool_()),
    ]),
}  # fmt: skip


def conform_view(view: str, table: pa.Table, origin: str) -> pa.Table:
    """`table` with exactly the columns of `view`, cast; keys present and unique.

    Raises:
        InputError: a column is missing or of another type, or a key is null or occurs twice.
    """
    schema = VIEWS[view]
    missing = [name for name in schema.names if name not in table.column_names]
    if missing:
        expected = ", ".join(schema.names)
        raise InputError(f"{origin}: column {', '.join(map(repr, missing))} is missing; expected {expected}.")
    try:
        table = table.select(schema.names).cast(schema).combine_chunks()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ValueError) as error:
        raise InputError(f"{origin} does not fit the feature view '{view}': {error}.") from None
    _check_unique(table[schema.names[0]], schema.names[0], origin)
    return table


def snapshot(
    items: Path, captions: Path, intents: Path, quality: Path, sids: Path, splits: Path
) -> dict[str, pa.Table]:
    """The present rows of every view but `user_topk`, from the tables of one run.

    Raises:
        InputError: a table is missing, unreadable or of another schema; a key occurs twice; SIDs of several tokenizers,
            or of items that are not in the catalogue.
    """
    catalogue, codes = read_table("items", items), read_table("sids", sids)
    _check_unique(catalogue["item_id"], "item_id", str(items))
    _check_unique(codes["item_id"], "item_id", str(sids))
    versions = codes["tokenizer_version"].unique().to_pylist()
    if len(versions) != 1:
        raise InputError(f"{sids} has SIDs of {len(versions)} tokenizer versions; publish those of exactly one.")
    unknown = codes.filter(pc.invert(pc.is_in(codes["item_id"], value_set=catalogue["item_id"])))
    if unknown.num_rows:
        first = unknown["item_id"][0].as_py()
        raise InputError(
            f"{sids} has SIDs of {unknown.num_rows} items that are not in {items} ('{first}'); use tables of one run."
        )
    tables = {
        "item_enrichment": _enrichment(catalogue, captions, intents, quality),
        "item_sid": codes,
        "sid_items": _by_sid(codes),
        "user_history": _histories(read_table("splits", splits)),
    }
    origins = {"item_enrichment": items, "item_sid": sids, "sid_items": sids, "user_history": splits}
    return {view: conform_view(view, table, str(origins[view])) for view, table in tables.items()}


def _enrichment(catalogue: pa.Table, captions: Path, intents: Path, quality: Path) -> pa.Table:
    ids = catalogue["item_id"]
    caption = _ok_rows("captions", captions, ids)
    intent = _ok_rows("intents", intents, ids)
    pairs = intent["descriptors"].combine_chunks()
    table = catalogue.select(["item_id", "title", "brand", "categories", "image"])
    columns = {
        "caption": caption["caption"],
        "motives": intent["motives"],
        "descriptors": _list_field(pairs, "text"),
        "confidences": _list_field(pairs, "confidence"),
        "quality_score": _ok_rows("quality", quality, ids)["score"],
    }
    for name, column in columns.items():
        table = table.append_column(name, column)
    return table


def _ok_rows(name: str, path: Path, ids: pa.ChunkedArray) -> pa.Table:
    """The rows of `path` in the order of `ids`; nulls for an item that failed or is absent."""
    table = read_table(name, path)
    _check_unique(table["item_id"], "item_id", str(path))
    table = table.filter(pc.equal(table["status"], "ok")).combine_chunks()
    return table.take(pc.index_in(ids, value_set=table["item_id"]))


def _list_field(pairs: pa.ListArray, name: str) -> pa.ListArray:
    """list<struct> -> list of one of its fields; a null list stays null, a null value becomes NaN if it is a number."""
    values = pc.struct_field(pairs.flatten(), name)
    if pa.types.is_floating(values.type):
        values = pc.fill_null(values, float("nan"))  # Feast's lists hold no nulls
    lengths = pc.fill_null(pc.list_value_length(pairs), 0)
    offsets = pa.concat_arrays([pa.array([0], pa.int32()), pc.cumulative_sum(lengths).cast(pa.int32())])
    return pa.ListArray.from_arrays(offsets, values, mask=pairs.is_null())


def _by_sid(codes: pa.Table) -> pa.Table:
    ordered = codes.sort_by([("sid", "ascending"), ("item_id", "ascending")])
    grouped = ordered.group_by(["sid", "tokenizer_version"], use_threads=False).aggregate([("item_id", "list")])
    return grouped.rename_columns({"item_id_list": "item_ids"})


def _histories(splits: pa.Table) -> pa.Table:
    """Everything known of a user: unlike an evaluation, serving reads the held-out purchases too."""
    rows = zip(*(splits[name].to_pylist() for name in ("train", "validation", "test")), strict=True)
    history = [[*train, *(item for item in held_out if item is not None)] for train, *held_out in rows]
    return pa.table({"user_id": splits["user_id"], "item_ids": pa.array(history, pa.list_(pa.string()))})


def _check_unique(column: pa.ChunkedArray, name: str, origin: str) -> None:
    if column.null_count:
        raise InputError(f"{origin}: column '{name}' must not be null.")
    counts = pc.value_counts(column)
    twice = counts.filter(pc.greater(counts.field("counts"), 1))
    if len(twice):
        raise InputError(f"{origin}: {name} '{twice[0]['values']}' occurs more than once; keep one row for each.")
