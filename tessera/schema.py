"""The one declaration of every table that passes between stages.

Writers conform to these Arrow schemas and readers check them. The catalogue's SQL tables, the Great Expectations suites
and the Feast views derive their columns from here. Item and user ids are strings everywhere inside Tessera.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tessera.errors import InputError
from tessera.files import replacing

DESCRIPTOR = pa.struct([pa.field("text", pa.string(), False), pa.field("confidence", pa.float32())])


def _table(*fields: tuple[str, pa.DataType], optional: tuple[tuple[str, pa.DataType], ...] = ()) -> pa.Schema:
    return pa.schema([pa.field(n, t, False) for n, t in fields] + [pa.field(n, t, True) for n, t in optional])


_STR, _TEXTS, _VECTOR = pa.string(), pa.list_(pa.string()), pa.list_(pa.float32())
# Who made an enrichment, and whether it succeeded: status is "ok" or "failed", and a failed row has its reason.
_PROVENANCE = (("provider", _STR), ("model", _STR), ("prompt_version", _STR), ("status", _STR))

SCHEMAS: dict[str, pa.Schema] = {
    # The catalogue, sorted by item_id. `image` is a path relative to the folder of photos, null without a usable photo;
    # `image_status` is "ok", "none", "missing" or "corrupt".
    "items": _table(
        ("item_id", _STR), ("title", _STR), ("description", _STR), ("brand", _STR), ("categories", _TEXTS),
        ("attributes", _TEXTS), ("image_status", _STR), optional=(("image", _STR),),
    ),
    # Sorted by (user_id, timestamp, position); sources with order but no clock have timestamp 0.
    "interactions": _table(("user_id", _STR), ("item_id", _STR), ("timestamp", pa.int64()), ("position", pa.int32())),
    # Leave-last-out: test is the last item, validation the one before it, train the rest in time order.
    # A user with fewer than three interactions only trains.
    "splits": _table(("user_id", _STR), ("train", _TEXTS), optional=(("validation", _STR), ("test", _STR))),
    "captions": _table(("item_id", _STR), *_PROVENANCE, optional=(("caption", _STR), ("reason", _STR))),
    "intents": _table(
        ("item_id", _STR), *_PROVENANCE,
        ("surface", _TEXTS), ("motives", _TEXTS), ("descriptors", pa.list_(DESCRIPTOR)), optional=(("reason", _STR),),
    ),
    # labels[i] in {0, 1} judges descriptors[i] of the item's intents; score is their confidence-weighted mean (QARM).
    "quality": _table(
        ("item_id", _STR), *_PROVENANCE, ("labels", pa.list_(pa.int8())),
        optional=(("score", pa.float32()), ("reason", _STR)),
    ),
    # text is never null; image is null for an item without a usable photo.
    "embeddings": _table(("item_id", _STR), ("text", _VECTOR), optional=(("image", _VECTOR),)),
    # sid is the codes joined by "_"; moved says that collision resolution changed the last codes.
    "sids": _table(
        ("item_id", _STR), ("sid", _STR), ("codes", pa.list_(pa.int32())), ("moved", pa.bool_()),
        ("tokenizer_version", _STR),
    ),
}


def conform(name: str, table: pa.Table, origin: str = "the table") -> pa.Table:
    """Return `table` cast to the declared schema `name`, columns in declared order, extra columns dropped.

    Raises:
        InputError: a column is missing, has another type, or holds nulls where none may be.
    """
    schema = SCHEMAS[name]
    missing = [field.name for field in schema if field.name not in table.column_names]
    if missing:
        raise InputError(
            f"{origin} is not a '{name}' table: column {', '.join(map(repr, missing))} is missing "
            f"(it has {', '.join(table.column_names) or 'none'}); expected {', '.join(schema.names)}."
        )
    for field in schema:
        if not field.nullable and table[field.name].null_count:
            raise InputError(f"{origin}: column '{field.name}' of a '{name}' table must not be null.")
    try:
        return table.select(schema.names).cast(schema)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ValueError) as error:
        raise InputError(f"{origin} does not fit the '{name}' schema: {error}.") from None


def write_table(name: str, table: pa.Table, path: str | Path) -> None:
    """Check `table` against schema `name` and write it as parquet, atomically."""
    table = conform(name, table, str(path))
    with replacing(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def read_table(name: str, path: str | Path) -> pa.Table:
    """Read a parquet file and check it against schema `name`.

    Raises:
        InputError: the file is missing, unreadable, or of another schema.
    """
    try:
        # ParquetFile and not read_table: a path with "key=value" in it must not grow partition columns.
        with pq.ParquetFile(path) as file:
            table = file.read()
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; check the path or run the stage that writes '{name}'.") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path} is not a readable parquet file ({error}); write it again.") from None
    return conform(name, table, str(path))


Sizes = int | Sequence[int]
"""Codes to choose from: a number that holds for every level, or one a level."""


def level_sizes(sizes: Sizes, levels: int) -> tuple[int, ...]:
    """Codes to choose from at each of so many levels.

    Raises:
        InputError: another number of levels.
    """
    out = (sizes,) * levels if isinstance(sizes, int) else tuple(sizes)
    if len(out) != levels:
        raise InputError(f"the policy writes SIDs of {len(out)} codes, these have {levels}; use its own.")
    return out


def codes_of(sids: pa.Table, levels: int) -> np.ndarray:
    """[items, levels] codes of a table of schema "sids".

    Raises:
        InputError: a SID of another length.
    """
    column: pa.ListArray = sids["codes"].combine_chunks()
    if not pc.all(pc.equal(pc.list_value_length(column), levels)).as_py():
        raise InputError(f"the policy writes SIDs of {levels} codes, some of these are longer or shorter; use its own.")
    codes: np.ndarray = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, levels)
    return codes
