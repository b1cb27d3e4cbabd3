"""What else a list of recommendations is: varied, not only of the popular, open to the new. All over the first k."""

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.integer]


def popularity_share(train: list[np.ndarray], items: int, share: float = 0.2) -> NDArray[np.bool_]:
    """[items] whether an item is among the `share` that were bought most in training; ties by item number."""
    counts = np.bincount(np.concatenate([*train, np.empty(0, np.int64)]).astype(np.int64), minlength=items)
    head = np.argsort(-counts, kind="stable")[: round(share * items)]
    return np.isin(np.arange(items), head)


def head_share(rows: Ints, head: NDArray[np.bool_], k: int = 10) -> float:
    """Share of the recommended places that popular items take; rows [users, n] of items, -1 where there is none."""
    top = rows[:, :k]
    return float(head[top[top >= 0]].mean())


def gini(rows: Ints, items: int, k: int = 10) -> float:
    """How unevenly recommendations fall on the catalogue: 0 on all alike, near 1 on a few.

    G = sum_i (2 i - n - 1) x_i / (n sum_i x_i) over the counts x in rising order, i from 1.
    """
    top = rows[:, :k]
    counts = np.sort(np.bincount(top[top >= 0], minlength=items)).astype(np.float64)
    place = np.arange(1, items + 1)
    return float(((2 * place - items - 1) * counts).sum() / (items * counts.sum()))


def categories_per_list(rows: Ints, category: Ints, k: int = 10) -> float:
    """Mean number of different categories in a list; items of no category (-1) count for none."""
    top = np.sort(np.where(rows[:, :k] >= 0, category[rows[:, :k]], -1), axis=1)
    first = np.ones(top.shape, bool)
    first[:, 1:] = top[:, 1:] != top[:, :-1]
    return float((first & (top >= 0)).sum(1).mean())


def category_coverage(rows: Ints, category: Ints, k: int = 10) -> float:
    """Share of all categories that some list holds."""
    top = rows[:, :k]
    met = np.unique(category[top[top >= 0]])
    known = np.unique(category[category >= 0])
    return len(met[met >= 0]) / max(1, len(known))
