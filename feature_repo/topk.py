"""The users' precomputed lists as tables: which a publish keeps online, and which are out of date. No Feast in here.

A list says when the history that it was computed from was read. It is stale once the user's history has changed at that
moment or later (see `publish.moment`), or another policy serves.
"""

import pyarrow as pa
import pyarrow.compute as pc

from feature_repo.offline import latest
from feature_repo.tables import TIMESTAMP, VIEWS

LISTS = VIEWS["user_topk"]


def newest(log: pa.Table, tokenizer_version: str) -> pa.Table:
    """Each user's newest list of a tokenizer, from the log of view `user_topk`.

    So a return to an earlier tokenizer brings the lists of then back. One that was withdrawn stays so: its tombstone is
    of the same tokenizer.
    """
    found = latest(log.filter(pc.equal(log["tokenizer_version"], tokenizer_version)))
    return found.filter(_filled(found["item_ids"])).select(LISTS.names)


def judged(lists: pa.Table, histories: pa.Table, policy_version: str) -> pa.Table:
    """`lists` with column `stale` set.

    Args:
        histories: newest rows of the log of view `user_history`.
        policy_version: the policy that serves; empty where that is not known.
    """
    place = pc.index_in(lists["user_id"], value_set=histories["user_id"])
    changed = pc.greater_equal(histories[TIMESTAMP].take(place), lists["computed_at"])
    stale = pc.or_(pc.fill_null(changed, False), pc.is_null(lists["computed_at"]))
    if policy_version:
        stale = pc.or_(stale, pc.fill_null(pc.not_equal(lists["policy_version"], policy_version), True))
    return with_stale(lists, stale)


def of_known_users(lists: pa.Table, histories: pa.Table) -> pa.Table:
    """The lists of users who are not gone: a history was taken back if its newest row is empty."""
    gone = histories.filter(pc.invert(_filled(histories["item_ids"])))["user_id"]
    return lists.filter(pc.invert(pc.is_in(lists["user_id"], value_set=gone)))


def users(histories: pa.Table) -> list[str]:
    """Users who have a history, in order."""
    return sorted(histories.filter(_filled(histories["item_ids"]))["user_id"].to_pylist())


def with_stale(lists: pa.Table, stale: pa.ChunkedArray | pa.Array) -> pa.Table:
    """`lists` with the column `stale` in its place."""
    features = [name for name in lists.column_names if name != "stale"]
    return lists.select(features).append_column(LISTS.field("stale"), stale)


def _filled(items: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.greater(pc.fill_null(pc.list_value_length(items), 0), 0)
