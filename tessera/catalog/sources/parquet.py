"""Source `parquet`: your own catalogue as a folder of parquet files.

    items.parquet          item_id, title and any of description, brand, categories, attributes, image; more is ignored
    interactions.parquet   user_id, item_id, timestamp        } one of the two,
    sequences.parquet      user_id, item_ids in time order    } or neither
    images/ or images.zip  the photos that items.image names; without that column, the photos named after the item ids

Ids may be integers or text; categories and attributes may be lists or text ("Fruit, Apple"); timestamps may be seconds,
milliseconds or Arrow timestamps. An item without a title (null or "") gets one from its brand, categories, attributes.
"""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tessera.catalog.images import Photos, relative_name
from tessera.catalog.raw import (
    RAW_INTERACTIONS,
    RAW_ITEMS,
    RawCatalogue,
    clean,
    clean_list,
    in_seconds,
    some,
    split_list,
    title_from,
)
from tessera.errors import InputError

_OPTIONAL = ("description", "brand", "categories", "attributes", "image")
_MILLISECONDS_FROM = 100_000_000_000  # as seconds, the year 5138


def read(folder: Path) -> RawCatalogue:
    """Read and validate the folder.

    Raises:
        InputError: a file is missing or unreadable, a column is missing or of another type, an item id is blank or has
            two different rows, a title is only white space, a photo's name leads out of the folder, or an interaction
            names an item that is not in items.parquet.
    """
    path = folder / "items.parquet"
    source = next((photos for photos in (folder / "images", folder / "images.zip") if photos.exists()), None)
    table = _load(path, ("item_id", "title"), _OPTIONAL)
    rows, stats = _items(table, path)
    if "image" not in table.column_names and source is not None:
        by_stem = {PurePosixPath(name).stem: name for name in Photos(source).names()}
        for row in rows:
            row["image"] = by_stem.get(row["item_id"])
    items = pa.Table.from_pylist(rows, schema=RAW_ITEMS)
    interactions, repeats = _interactions(folder)
    _require_known(interactions, items, folder)
    return RawCatalogue(items, interactions, source, stats, repeats)


def _load(path: Path, required: Sequence[str], optional: Sequence[str] = ()) -> pa.Table:
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            missing = [name for name in required if name not in names]
            if missing:
                raise InputError(
                    f"{path} has no column {', '.join(map(repr, missing))} (it has {', '.join(names)}); "
                    "rename or add it."
                )
            return file.read(columns=[name for name in (*required, *optional) if name in names])
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; a parquet source needs it.") from None
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} is not a readable parquet file ({error}); write it again.") from None


def _ids(column: pa.ChunkedArray, name: str, path: Path) -> pa.ChunkedArray:
    """Ids as text."""
    kind = _undictionaried(column.type)
    if not (pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise InputError(f"column '{name}' of {path} is {kind}; ids must be integers or text.")
    ids = column.cast(pa.string())
    bad = ids.null_count or pc.any(pc.match_substring_regex(ids, r"^\s*$|[\x00-\x1f]")).as_py()
    if bad:
        row = pc.index(pc.fill_null(pc.match_substring_regex(ids, r"^\s*$|[\x00-\x1f]"), True), True).as_py()
        raise InputError(f"column '{name}' of {path} is blank or unprintable in row {row}; give every row an id.")
    return ids


def _texts(table: pa.Table, name: str, path: Path) -> list[Any]:
    """A column of texts, or of lists of texts, as Python values; nothing but nulls if it is not there."""
    if name not in table.column_names:
        return [None] * table.num_rows
    column = table[name]
    kind = _undictionaried(column.type)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        kind = _undictionaried(kind.value_type)
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind)):
        raise InputError(f"column '{name}' of {path} is {column.type}; it must be text or a list of texts.")
    return column.to_pylist()


def _undictionaried(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _text(value: Any) -> str:
    return clean(" ".join(part for part in value if part) if isinstance(value, list) else value)


def _list(value: Any) -> list[str]:
    return clean_list(value) if isinstance(value, list) else split_list(value)


def _items(table: pa.Table, path: Path) -> tuple[list[dict[str, Any]], dict[str, int]]:
    if not table.num_rows:
        raise InputError(f"{path} has no rows; a catalogue needs items.")
    ids = _ids(table["item_id"], "item_id", path).to_pylist()
    columns = {name: _texts(table, name, path) for name in ("title", *_OPTIONAL)}
    rows: dict[str, dict[str, Any]] = {}
    clashing, untitled, duplicates = [], 0, 0
    for index, item_id in enumerate(ids):
        row = _item(item_id, {name: values[index] for name, values in columns.items()}, path)
        if item_id in rows:
            duplicates += 1
            if rows[item_id] != row:
                clashing.append(item_id)
            continue
        rows[item_id] = row
    if clashing:
        raise InputError(
            f"{path} has rows with the same item_id and different content ({some(sorted(set(clashing)))}); "
            "keep one row an item."
        )
    for row in rows.values():
        if not row["title"]:
            row["title"], untitled = title_from(row), untitled + 1
    nothing = [item_id for item_id, row in rows.items() if not row["title"]]
    if nothing:
        raise InputError(
            f"{path} has items without a title or any other text (item_id {some(nothing)}); give them a title."
        )
    return list(rows.values()), {"titles_filled": untitled, "dropped_duplicate_items": duplicates}


def _item(item_id: str, raw: dict[str, Any], path: Path) -> dict[str, Any]:
    title = _text(raw["title"])
    if raw["title"] and not title:
        # "" and null say that there is no title; white space says that something went wrong on the way.
        raise InputError(f"{path}: the title of item {item_id} is only white space; give it a title or leave it empty.")
    image = _text(raw["image"])
    return {
        "item_id": item_id,
        "title": title,
        "description": _text(raw["description"]),
        "brand": _text(raw["brand"]),
        "categories": _list(raw["categories"]),
        "attributes": _list(raw["attributes"]),
        "image": relative_name(image, f"item {item_id} in {path}") if image else None,
    }


def _interactions(folder: Path) -> tuple[pa.Table, bool]:
    clocked, ordered = folder / "interactions.parquet", folder / "sequences.parquet"
    if clocked.exists() and ordered.exists():
        raise InputError(f"{folder} holds both interactions.parquet and sequences.parquet; keep one of them.")
    if clocked.exists():
        table = _load(clocked, RAW_INTERACTIONS.names)
        columns = [_ids(table[name], name, clocked) for name in ("user_id", "item_id")]
        times, in_milliseconds = _times(table["timestamp"], clocked)
        found = pa.table([*columns, times], names=RAW_INTERACTIONS.names)
        return (in_seconds(found) if in_milliseconds else found).cast(RAW_INTERACTIONS), False
    return (_sequences(ordered), True) if ordered.exists() else (RAW_INTERACTIONS.empty_table(), False)


def _times(column: pa.ChunkedArray, path: Path) -> tuple[pa.ChunkedArray, bool]:
    """Times as integers, and whether they are milliseconds rather than seconds."""
    kind = column.type
    if column.null_count:
        raise InputError(f"column 'timestamp' of {path} has {column.null_count} nulls; every interaction needs a time.")
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return column.cast(pa.timestamp("ms"), safe=False).cast(pa.int64()), True
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise InputError(f"column 'timestamp' of {path} is {kind}; it must be seconds, milliseconds or a timestamp.")
    try:
        times = (pc.floor(column) if pa.types.is_floating(kind) else column).cast(pa.int64())
    except pa.ArrowInvalid as error:
        raise InputError(f"column 'timestamp' of {path} is not a time in seconds ({error}); repair it.") from None
    return times, len(times) > 0 and pc.max(times).as_py() >= _MILLISECONDS_FROM


def _sequences(path: Path) -> pa.Table:
    table = _load(path, ("user_id", "item_ids"))
    kind = table["item_ids"].type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        raise InputError(f"column 'item_ids' of {path} is {kind}; it must be a list of item ids in time order.")
    users = _ids(table["user_id"], "user_id", path)
    if pc.count_distinct(users).as_py() != len(users):
        counts = users.value_counts()
        twice = [entry["values"] for entry in counts.to_pylist() if entry["counts"] > 1]
        raise InputError(f"{path} has more than one row for user_id {some(twice)}; put all purchases in one list.")
    lengths = pc.fill_null(pc.list_value_length(table["item_ids"]), 0).to_numpy()
    items = _ids(pa.chunked_array([pc.list_flatten(table["item_ids"]).combine_chunks()]), "item_ids", path)
    user = users.take(pa.array(np.repeat(np.arange(len(users)), lengths)))
    return pa.table([user, items, pa.array(np.zeros(len(items), np.int64))], schema=RAW_INTERACTIONS)


def _require_known(interactions: pa.Table, items: pa.Table, folder: Path) -> None:
    known = pc.is_in(interactions["item_id"], value_set=items["item_id"].combine_chunks())
    if not pc.all(known, min_count=0).as_py():
        unknown = pc.unique(interactions["item_id"].filter(pc.invert(known))).to_pylist()
        raise InputError(
            f"purchases in {folder} name {len(unknown)} items that are not in items.parquet (item_id {some(unknown)}); "
            "add the items or drop the purchases."
        )
