"""Deterministic collision resolution: afterwards no two items share a SID, and every SID has exactly L codes in range.

Of the items that share a SID the one nearest to its last-level code keeps it. The others move to the nearest free code
of the last level; when their prefix has none left, to the nearest code of the level above that has room below it, and
so on up. Items that share their SID with no other never move, so resolving a resolved catalogue changes nothing.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tessera.errors import InputError

Codes = NDArray[np.int64]


def resolve(
    item_ids: Sequence[str],
    codes: Codes,
    latents: NDArray[np.floating],
    codebooks: NDArray[np.floating],
    taken: Codes | None = None,
) -> tuple[Codes, NDArray[np.bool_]]:
    """Give every item a SID of its own; the answer does not depend on the order of the rows.

    Args:
        item_ids: [N], distinct; they break ties of distance.
        codes: [N, L], the quantizer's choice, each in [0, K).
        latents: [N, D], what was quantized; codebooks: [L, K, D].
        taken: [M, L], SIDs that others hold and that no item here may get (append mode).

    Returns:
        codes [N, L] and moved [N], true where they differ from the input.

    Raises:
        InputError: there are more items than SIDs.
    """
    levels, size, _ = codebooks.shape
    held = np.empty((0, levels), np.int64) if taken is None else np.asarray(taken, np.int64)
    if len(codes) + len(held) > size**levels:
        raise InputError(
            f"{len(codes) + len(held)} items do not fit into the {size**levels} semantic IDs of {levels} levels of "
            f"{size} codes; raise tokenizer.codebook_size or tokenizer.levels and fit again."
        )
    z, books = np.asarray(latents, np.float64), np.asarray(codebooks, np.float64)
    distance = _distance_to_own_code(codes, z, books)
    keeps, order = _keepers(np.asarray(item_ids, dtype=str), codes, distance, held)
    resolved, pending = codes.copy(), order[~keeps[order]]
    occupied = _Occupied(np.concatenate([held, codes[keeps]]), size)
    # Everyone looks under the own prefix first, so that no item is crowded out by one from a full prefix elsewhere.
    for kept in range(levels - 1, -1, -1):
        stranded = []
        for item in pending:
            found = occupied.nearest_free(tuple(codes[item, :kept]), z[item] - _sum(codes[item, :kept], books), books)
            if found is None:
                stranded.append(item)
            else:
                resolved[item] = found
        pending = np.array(stranded, dtype=np.int64)
    return resolved, (resolved != codes).any(1)


def _sum(codes: Codes, books: NDArray[np.float64]) -> NDArray[np.float64]:
    return books[np.arange(len(codes)), codes].sum(0)


def _distance_to_own_code(codes: Codes, z: NDArray[np.float64], books: NDArray[np.float64]) -> NDArray[np.float64]:
    """Squared length [N] of what is left of each item after its last code."""
    left = z.copy()
    for level, book in enumerate(books):
        left -= book[codes[:, level]]
    return (left**2).sum(1)


def _keepers(
    ids: NDArray[np.str_], codes: Codes, distance: NDArray[np.float64], held: Codes
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Who keeps its SID [N], and all items [N] in order of (distance, id): the nearest of a SID that nobody holds."""
    order = np.lexsort((ids, distance))
    _, group = np.unique(np.concatenate([held, codes]), axis=0, return_inverse=True)
    group = group.reshape(-1)
    mine = group[len(held) :][order]
    first = np.zeros(len(codes), dtype=bool)
    first[order[np.unique(mine, return_index=True)[1]]] = True
    return first & ~np.isin(group[len(held) :], group[: len(held)]), order


class _Occupied:
    """Which SIDs are taken, counted per child of a prefix when that prefix is first asked for."""

    def __init__(self, codes: Codes, size: int) -> None:
        self.levels, self.size = codes.shape[1], size
        self._rows = codes[np.lexsort(codes.T[::-1])]
        self._used: dict[tuple[int, ...], NDArray[np.int64]] = {}

    def nearest_free(self, prefix: tuple[int, ...], residual: NDArray[np.float64], books: NDArray) -> Codes | None:
        """Take the SID under `prefix` that follows `residual` [D] greedily, level by level, among codes with room."""
        path = prefix
        while len(path) < self.levels:
            depth = len(path)
            room = self._children(path) < self.size ** (self.levels - depth - 1)
            if not room.any():
                return None
            distance = ((books[depth] - residual) ** 2).sum(1)
            code = int(np.where(room, distance, np.inf).argmin())
            residual = residual - books[depth, code]
            path = (*path, code)
        for depth in range(self.levels):
            self._children(path[:depth])[path[depth]] += 1
        return np.array(path, dtype=np.int64)

    def _children(self, prefix: tuple[int, ...]) -> NDArray[np.int64]:
        """Taken SIDs below each code that can follow `prefix`: [K]."""
        if prefix not in self._used:
            low, high = 0, len(self._rows)
            for depth, code in enumerate(prefix):
                column = self._rows[low:high, depth]
                first, last = np.searchsorted(column, [code, code + 1])
                low, high = low + int(first), low + int(last)
            self._used[prefix] = np.bincount(self._rows[low:high, len(prefix)], minlength=self.size)
        return self._used[prefix]
