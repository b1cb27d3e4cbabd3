"""The whole catalogue's tables from what a refresh made and what is published: what is gated is what is published."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from tessera.schema import read_table, write_table


def merge(names: Iterable[str], given: Mapping[str, Path], published: Path, folder: Path) -> dict[str, Path]:
    """Tables of the items of now: of each what was made now, else what was published.

    One that says what it said before is the published file itself, so that a refresh of nothing keeps nothing anew.

    Args:
        names: tables to merge.
        given: `items` of the source, and `splits` if it is to be merged; of other tables the rows that were made now.
        published: folder of the published tables.
        folder: gets the tables that say something else.
    """
    now, merged = read_table("items", given["items"])["item_id"], {}
    for name in names:
        before = read_table(name, published / f"{name}.parquet")
        table = read_table(name, given[name]) if name in given else before.schema.empty_table()
        if name not in ("items", "splits"):
            kept = before.filter(pc.invert(pc.is_in(before["item_id"], value_set=table["item_id"])))
            table = pa.concat_tables([kept, table])
            table = table.filter(pc.is_in(table["item_id"], value_set=now))
        merged[name] = published / f"{name}.parquet"
        if not table.equals(before):
            merged[name] = folder / f"{name}.parquet"
            write_table(name, table, merged[name])
    return merged
