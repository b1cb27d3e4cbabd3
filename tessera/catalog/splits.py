"""The leave-last-out split of sequential recommendation."""

import numpy as np
import pyarrow as pa

from tessera.schema import SCHEMAS


def leave_last_out(interactions: pa.Table) -> pa.Table:
    """Hold out each user's last item for test and the one before it for validation; the rest trains.

    Args:
        interactions: schema "interactions", in its order.

    Returns: schema "splits", one row a user; a user with fewer than three interactions only trains.
    """
    users, items = interactions["user_id"].combine_chunks(), interactions["item_id"].combine_chunks()
    starts = np.flatnonzero(interactions["position"].to_numpy() == 0)
    counts = np.diff(np.append(starts, len(users)))
    held = counts >= 3
    from_end = np.repeat(counts, counts) - np.arange(len(users)) + np.repeat(starts, counts)  # 1 for the last row
    train = items.take(pa.array(np.flatnonzero((from_end > 2) | ~np.repeat(held, counts))))
    offsets = np.concatenate([[0], np.cumsum(counts - 2 * held)]).astype(np.int32)
    ends = starts + counts
    return pa.table(
        {
            "user_id": users.take(pa.array(starts)),
            "train": pa.ListArray.from_arrays(pa.array(offsets), train),
            "validation": items.take(pa.array(ends - 2, mask=~held)),
            "test": items.take(pa.array(ends - 1, mask=~held)),
        }
    ).cast(SCHEMAS["splits"])
