"""Interactions: duplicates, k-core filtering and order, all as array operations."""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tessera.schema import SCHEMAS


def _codes(column: pa.ChunkedArray) -> NDArray[np.int64]:
    """Each value's rank among the sorted distinct values."""
    encoded = column.combine_chunks().dictionary_encode()
    rank = np.argsort(np.argsort(encoded.dictionary.to_numpy(zero_copy_only=False), kind="stable"), kind="stable")
    return rank[encoded.indices.to_numpy()].astype(np.int64)


def without_duplicates(interactions: pa.Table) -> pa.Table:
    """The first of rows with equal (user, item, timestamp), in the given order."""
    numbered = interactions.append_column("row", pa.array(np.arange(interactions.num_rows)))
    first = numbered.group_by(["user_id", "item_id", "timestamp"]).aggregate([("row", "min")])["row_min"]
    return interactions.take(np.sort(first.to_numpy()))


def k_core(interactions: pa.Table, k: int) -> pa.Table:
    """The rows that stay when users and items with fewer than `k` rows are dropped until none is left to drop."""
    if k <= 1 or not interactions.num_rows:
        return interactions
    user, item = _codes(interactions["user_id"]), _codes(interactions["item_id"])
    rows = np.arange(len(user))
    while len(rows):
        stays = (np.bincount(user[rows])[user[rows]] >= k) & (np.bincount(item[rows])[item[rows]] >= k)
        if stays.all():
            break
        rows = rows[stays]
    return interactions.take(rows)


def in_order(interactions: pa.Table) -> pa.Table:
    """Schema "interactions": sorted by (user, timestamp), equal times in the given order, `position` from 0 a user."""
    user = _codes(interactions["user_id"])
    order = np.lexsort((np.arange(len(user)), interactions["timestamp"].to_numpy(), user))
    counts = np.bincount(user) if len(user) else np.zeros(0, np.int64)
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]]) if len(counts) else counts
    position = np.arange(len(user)) - np.repeat(starts, counts)
    ordered = interactions.take(order).append_column("position", pa.array(position, pa.int32()))
    return ordered.select(SCHEMAS["interactions"].names).cast(SCHEMAS["interactions"])
