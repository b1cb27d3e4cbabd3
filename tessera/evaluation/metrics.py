"""Full-ranking metrics, from the rank of each user's one held-out item."""

from collections.abc import Iterable, Sequence

import numpy as np

KS = (1, 5, 10, 20)
MISSED = int(np.iinfo(np.int64).max)


def ranks(rows: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Rank of each target in its answer, 0 for the first place, and MISSED, beyond every K, where it is not in it.

    Args:
        rows: [users, n] item numbers in falling order, -1 where the answer is shorter; targets: [users].
    """
    hit = rows == targets[:, None]
    return np.where(hit.any(axis=1), hit.argmax(axis=1), MISSED)


def without_bought(rows: np.ndarray, histories: Sequence[np.ndarray]) -> np.ndarray:
    """The answers less what the user has bought already, as a shop shows them.

    Args:
        rows: [users, n] item numbers in falling order, -1 where the answer is shorter; histories: [users] item numbers.

    Returns:
        [users, n], the rest of each answer moved up, -1 behind it.
    """
    bought = np.concatenate(histories)
    size = 1 + max(int(bought.max(initial=0)), int(rows.max(initial=0)))
    owner = np.repeat(np.arange(len(histories)), [len(history) for history in histories])
    gone = np.isin(np.arange(len(rows))[:, None] * size + rows, owner * size + bought) | (rows < 0)
    order = np.argsort(gone, axis=1, kind="stable")
    return np.take_along_axis(np.where(gone, -1, rows), order, axis=1)


def hit_rate(rank: np.ndarray, k: int) -> float:
    """HR@K: share of users whose held-out item is among the first k."""
    return float((rank < k).mean())


def ndcg(rank: np.ndarray, k: int) -> float:
    """NDCG@K with one relevant item: the mean over users of 1 / log2(rank + 2) where rank < k, and of 0 elsewhere."""
    return float(np.where(rank < k, 1.0 / np.log2(rank + 2.0), 0.0).mean())


def ranking_metrics(rank: np.ndarray, ks: Iterable[int] = KS) -> dict[str, float]:
    """`hr@k` and `ndcg@k` for every k."""
    return {f"{name}@{k}": measure(rank, k) for k in ks for name, measure in (("hr", hit_rate), ("ndcg", ndcg))}


def coverage(rows: np.ndarray, items: int, k: int = 10) -> float:
    """Share of the catalogue that is recommended to anybody in the first k places."""
    top = rows[:, :k]
    return len(np.unique(top[top >= 0])) / items
