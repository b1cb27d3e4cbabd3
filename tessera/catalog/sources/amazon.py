"""Source `amazon`: raw Amazon Reviews files as their authors publish them (McAuley lab, UCSD), one category a folder.

    2014   reviews_Beauty_5.json.gz + meta_Beauty.json.gz, JSON or Python-literal lines
    2018   Beauty_5.json.gz + meta_Beauty.json.gz, JSON lines
    2023   All_Beauty.jsonl.gz + meta_All_Beauty.jsonl.gz, JSON lines: parent_asin, milliseconds, image lists
"""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from tessera.catalog.raw import RAW_INTERACTIONS, RAW_ITEMS, RawCatalogue, in_seconds, title_from
from tessera.catalog.sources.amazon_files import Files, Records, detect, review_columns
from tessera.catalog.sources.amazon_items import item_of
from tessera.errors import InputError


def read(folder: Path) -> RawCatalogue:
    """Read reviews as interactions (of any rating) and metadata as items; items nobody reviewed are left out.

    What raw data is known to contain is dropped and counted in `stats`: lines that are no records, items listed twice,
    items without any text, reviews without user, item or time, and reviews of items without metadata. `items.image` is
    the largest photo's URL.

    Raises:
        InputError: the folder has no pair of reviews and metadata, or a file is truncated or of another form.
    """
    files = detect(folder)
    interactions, stats = _reviews(files)
    items, of_items = _items(files, set(pc.unique(interactions["item_id"]).to_pylist()))
    known = interactions.filter(pc.is_in(interactions["item_id"], value_set=items["item_id"].combine_chunks()))
    if not known.num_rows:
        raise InputError(
            f"no review in {files.reviews} is of an item in {files.meta}; both files must be of one category and year."
        )
    stats |= of_items | {"dropped_interactions_of_unknown_items": interactions.num_rows - known.num_rows}
    return RawCatalogue(items, known, folder / "images", stats)


def _reviews(files: Files) -> tuple[pa.Table, dict[str, int]]:
    columns, unreadable = review_columns(files)
    user, item, time = (column.combine_chunks() for column in columns)
    complete = pc.and_(pc.and_(user.is_valid(), item.is_valid()), time.is_valid())
    if not pc.any(complete).as_py():
        raise InputError(f"no line of {files.reviews} has user, item and time; take the review file as published.")
    table = pa.table([user, item, time], names=RAW_INTERACTIONS.names).filter(complete)
    if files.year == 2023:
        table = in_seconds(table)
    dropped = {"dropped_incomplete_reviews": len(complete) - table.num_rows, "dropped_unreadable_reviews": unreadable}
    return table.cast(RAW_INTERACTIONS), dropped


def _items(files: Files, reviewed: set[str]) -> tuple[pa.Table, dict[str, int]]:
    found: dict[str, dict[str, Any]] = {}
    counts = dict.fromkeys(("dropped_duplicate_items", "dropped_items_without_text", "titles_filled"), 0)
    records = Records(files.meta)
    for record in records:
        item_id = record.get("parent_asin" if files.year == 2023 else "asin")
        if not isinstance(item_id, str) or item_id not in reviewed:
            continue
        if item_id in found:
            counts["dropped_duplicate_items"] += 1
            continue
        item = item_of(item_id, record, files.year)
        if not item["title"]:
            item["title"] = title_from(item)
            counts["titles_filled" if item["title"] else "dropped_items_without_text"] += 1
        found[item["item_id"]] = item
    counts["dropped_unreadable_items"] = records.unreadable
    rows = [item for item in found.values() if item["title"]]
    return pa.Table.from_pylist(rows, schema=RAW_ITEMS), counts
