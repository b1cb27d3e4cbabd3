"""Hybrid tokens (SIGMA): an SID prefix that items share, then one token that is the item's alone.

The prefix generalises, the last token identifies; it starts from the item's grounded vector, so that a new token is not
noise to the backbone.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tessera.errors import InputError


@dataclass(frozen=True)
class HybridTokens:
    """Items in the order of their tokens: token n is item_ids[n]'s; prefix [N, P] holds the codes before it."""

    item_ids: list[str]
    prefix: NDArray[np.int64]


def hybrid_tokens(sids: pa.Table, depth: int, before: HybridTokens | None = None) -> HybridTokens:
    """Give every item of a `sids` table its own token after `depth` codes.

    Items of `before` keep their token and prefix, even those that `sids` no longer has, because a trained backbone
    knows their rows; new ones follow in order of item_id.

    Raises:
        InputError: fewer codes than `depth`, or `before` has another depth.
    """
    rows = sorted(zip(sids["item_id"].to_pylist(), sids["codes"].to_pylist(), strict=True))
    shortest = min((len(codes) for _, codes in rows), default=depth)
    if not 1 <= depth <= shortest:
        raise InputError(f"a hybrid SID needs a prefix of 1 to {shortest} codes, not {depth}.")
    if before is not None and before.prefix.shape[1] != depth:
        raise InputError(f"the tokens before have prefixes of {before.prefix.shape[1]} codes, not {depth}.")
    ids, prefix = (list(before.item_ids), [before.prefix]) if before is not None else ([], [])
    known = set(ids)
    fresh = [(item, codes[:depth]) for item, codes in rows if item not in known]
    added = np.array([codes for _, codes in fresh], dtype=np.int64).reshape(-1, depth)
    return HybridTokens([*ids, *(item for item, _ in fresh)], np.concatenate([*prefix, added]))


def hybrid_table(sids: pa.Table, tokens: HybridTokens) -> pa.Table:
    """The `sids` table with hybrid codes: an item's prefix, then the number of its token.

    The column `sid` stays as it was: under that name the item is published, whatever a policy writes for it.
    """
    number = {item: n for n, item in enumerate(tokens.item_ids)}
    rows = np.array([number[item] for item in sids["item_id"].to_pylist()], dtype=np.int64)
    codes = np.column_stack([tokens.prefix[rows], rows])
    place = sids.schema.get_field_index("codes")
    return sids.set_column(place, sids.schema.field(place), pa.array(codes.tolist(), pa.list_(pa.int32())))


def tokens_of(table: pa.Table) -> HybridTokens:
    """What `hybrid_table` wrote a table of all its items with."""
    codes = np.array(table["codes"].to_pylist(), dtype=np.int64)
    order = np.argsort(codes[:, -1])
    ids = table["item_id"].to_pylist()
    return HybridTokens([ids[row] for row in order], codes[order, :-1])


def mates_mean(prefix: NDArray[np.int64], rows: NDArray[np.floating]) -> NDArray[np.float32]:
    """[N - n, D] for each item behind the first n the mean row of those that share the longest prefix with it.

    Args:
        prefix: [N, P] codes before an item's own token; rows: [n, D] of the first n items.
    """
    known = len(rows)
    out = np.tile(rows.mean(0, dtype=np.float64), (len(prefix) - known, 1))
    for depth in range(1, prefix.shape[1] + 1):
        group = np.unique(prefix[:, :depth], axis=0, return_inverse=True)[1].reshape(-1)
        groups = int(group.max()) + 1
        sums, count = np.zeros((groups, rows.shape[1])), np.bincount(group[:known], minlength=groups)
        np.add.at(sums, group[:known], rows)
        mine = group[known:]
        has = count[mine] > 0
        out[has] = sums[mine[has]] / count[mine[has], None]
    return out.astype(np.float32)


def initial_rows(vectors: NDArray[np.floating], width: int, spread: float, seed: int) -> NDArray[np.float32]:
    """First embeddings [N, width] of the items' tokens, from grounded vectors [N, D].

    e_i = s R (v_i - mean v) with R [width, D] random and with orthonormal columns (rows, where width < D), so that
    inner products stay as they were, and s such that components spread by `spread` as the backbone's embeddings do.

    Args:
        spread: standard deviation of the components of the backbone's embeddings.
    """
    vectors = np.asarray(vectors, np.float64)
    gaussian = np.random.default_rng(seed).normal(size=(max(width, vectors.shape[1]), min(width, vectors.shape[1])))
    columns = np.linalg.qr(gaussian)[0]
    turn = columns if width >= vectors.shape[1] else columns.T
    rows = (vectors - vectors.mean(0)) @ turn.T
    deviation = float(np.sqrt(np.square(rows).mean()))
    return (rows * (spread / deviation if deviation > 0 else 0.0)).astype(np.float32)
