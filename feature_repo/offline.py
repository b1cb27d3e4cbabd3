"""The offline files, logs of rows by event timestamp, and what changed between two publishes; no Feast in here."""

import json
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from feature_repo.tables import TIMESTAMP, UTC
from tessera.errors import InputError
from tessera.files import replacing


@dataclass(frozen=True)
class Change:
    """What one publish does to one view."""

    rows: pa.Table
    """New and changed rows, then the tombstones."""
    tombstones: int
    """How many keys are gone since the last publish."""
    published: pa.Table
    """The view after the publish, old and new tombstones included."""


def compare(before: pa.Table, now: pa.Table, tokenizer_version: str) -> Change:
    """What has to be written so that a view that says `before` says `now`.

    A key that `now` lacks gets a tombstone, once: empty features, and `tokenizer_version` where the view has one.
    """
    key = now.column_names[0]
    known = dict(zip(before[key].to_pylist(), _fingerprints(before), strict=True))
    differs = [known.get(k) != mark for k, mark in zip(now[key].to_pylist(), _fingerprints(now), strict=True)]
    absent = before.filter(pc.invert(pc.is_in(before[key], value_set=now[key])))
    gone = _is_tombstone(absent)
    tombstones = _tombstones(now.schema, absent.filter(pc.invert(gone))[key], tokenizer_version)
    rows = pa.concat_tables([now.filter(pa.array(differs, pa.bool_())), tombstones])
    return Change(rows, tombstones.num_rows, pa.concat_tables([now, tombstones, absent.filter(gone)]))


def stamped(rows: pa.Table, seconds: int) -> pa.Table:
    """`rows` with the event timestamp `seconds` since 1970."""
    stamp = datetime.fromtimestamp(seconds, timezone.utc)
    return rows.append_column(TIMESTAMP, pa.array([stamp] * rows.num_rows, UTC))


def latest(log: pa.Table) -> pa.Table:
    """The newest row of every key: the later in time, of equal times the later in the file."""
    key, place = log.column_names[0], pa.array(range(log.num_rows), pa.int64())
    ordered = log.append_column("_place", place).sort_by([(TIMESTAMP, "ascending"), ("_place", "ascending")])
    ranks = pa.table({"key": ordered[key], "rank": place}).group_by("key").aggregate([("rank", "max")])
    return ordered.drop_columns(["_place"]).take(ranks["rank_max"])


def not_after(log: pa.Table, seconds: int) -> pa.Table:
    """`log` with the rows that are later than `seconds` since 1970 in the second after, a microsecond apart, in order.

    A list that says it was computed later says `seconds`.
    """
    limit = pa.scalar(seconds * 1_000_000).cast(UTC)
    late = pc.greater(log[TIMESTAMP], limit)
    ranks = pc.rank(log.filter(late)[TIMESTAMP].combine_chunks(), tiebreaker="dense")
    stamps = pc.add(ranks.cast(pa.int64()), seconds * 1_000_000).cast(UTC)
    times = pc.replace_with_mask(log[TIMESTAMP].combine_chunks(), late.combine_chunks(), stamps)
    log = log.set_column(log.column_names.index(TIMESTAMP), log.schema.field(TIMESTAMP), times)
    if "computed_at" in log.column_names:
        computed = pc.if_else(pc.greater(log["computed_at"], limit), limit, log["computed_at"])
        log = log.set_column(log.column_names.index("computed_at"), log.schema.field("computed_at"), computed)
    return log


def newest(path: Path) -> float:
    """Seconds since 1970 of a log's newest row; 0 if it has none."""
    stamp = pc.max(read(path, pa.schema([pa.field(TIMESTAMP, UTC)]))[TIMESTAMP]).as_py()
    return stamp.timestamp() if stamp else 0.0


def append(path: Path, rows: pa.Table) -> None:
    """Add `rows` to a log, atomically; the file appears even for no rows, because Feast wants to see it."""
    write(path, pa.concat_tables([read(path, rows.schema), rows]))


def read(path: Path, schema: pa.Schema) -> pa.Table:
    """A file's rows in `schema`; none if the file does not exist, nulls in a column that is younger than the file.

    Raises:
        InputError: the file is damaged.
    """
    if not path.is_file():
        return schema.empty_table()
    try:
        with pq.ParquetFile(path) as file:
            table = file.read()
        for field in schema if schema.names[0] in table.column_names else ():
            if field.name not in table.column_names:
                table = table.append_column(field, pa.nulls(table.num_rows, field.type))
        return table.select(schema.names).cast(schema)
    except (pa.ArrowInvalid, KeyError, OSError) as error:
        folder = path.parent.parent
        raise InputError(f"{path} cannot be read ({error}); remove {folder} and publish the run again.") from None


def write(path: Path, table: pa.Table) -> None:
    """Write a parquet file, atomically; lists are named as Feast's offline push expects them."""
    with replacing(path) as temporary:
        pq.write_table(table.combine_chunks(), temporary, compression="zstd", use_compliant_nested_type=False)


def _is_tombstone(table: pa.Table) -> pa.ChunkedArray:
    """Rows whose first feature (title, sid or item_ids) is null or empty."""
    feature = table.column(1)
    if pa.types.is_list(feature.type):
        return pc.equal(pc.fill_null(pc.list_value_length(feature), 0), 0)
    return pc.is_null(feature)


def _tombstones(schema: pa.Schema, keys: pa.ChunkedArray, tokenizer_version: str) -> pa.Table:
    n = len(keys)
    columns: list[Any] = [keys]
    for column in list(schema)[1:]:
        if column.name == "tokenizer_version":
            columns.append(pa.array([tokenizer_version] * n, column.type))
        elif pa.types.is_list(column.type):
            columns.append(pa.array([[]] * n, column.type))
        else:
            columns.append(pa.nulls(n, column.type))
    return pa.table(columns, schema=schema)


def _fingerprints(table: pa.Table) -> list[str]:
    """One comparable text a row; unlike the values themselves it takes NaN for equal to NaN."""
    return [json.dumps(row, default=str) for row in zip(*(column.to_pylist() for column in table.columns), strict=True)]
