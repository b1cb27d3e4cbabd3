"""What the numbers of a tokenizer are: utilisation, perplexity, collision rate, reconstruction cosine."""

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.integer]


def utilisation(codes: Codes, size: int) -> list[float]:
    """Share of a level's `size` codes that at least one item uses; codes [N, L] -> L shares in (0, 1]."""
    return [len(np.unique(level)) / size for level in codes.T]


def perplexity(codes: Codes) -> list[float]:
    """exp(-sum_k p_k ln p_k) per level, p_k the share of items with code k; K when all K codes are equally frequent."""
    shares = [np.unique(level, return_counts=True)[1] / len(level) for level in codes.T]
    return [float(np.exp(-(p * np.log(p)).sum())) for p in shares]


def collision_rate(codes: Codes) -> float:
    """Share of items whose full SID is also another item's; codes [N, L] -> [0, 1]."""
    _, group, count = np.unique(codes, axis=0, return_inverse=True, return_counts=True)
    return float((count[group.reshape(-1)] > 1).mean())


def mean_cosine(x: NDArray[np.floating], y: NDArray[np.floating]) -> float:
    """Mean over rows of cos(x_i, y_i); x and y [N, D]. A row of zeros counts as 0."""
    norms = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    return float(np.where(norms > 0, (x * y).sum(1) / np.where(norms > 0, norms, 1.0), 0.0).mean())
