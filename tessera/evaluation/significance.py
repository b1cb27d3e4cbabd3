"""Is one system better than another on the same cases? The paired bootstrap."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Comparison:
    """difference: mean of a - b; low, high: its 95% interval; p: two-sided, of no difference."""

    difference: float
    low: float
    high: float
    p: float


def paired_bootstrap(
    a: NDArray[np.floating], b: NDArray[np.floating], draws: int = 10_000, seed: int = 0
) -> Comparison:
    """Compare two systems by what each scored in the same cases, [cases] each.

    Cases are drawn with replacement and both systems are read in each; p = 2 min(P(d* <= 0), P(d* >= 0)), the observed
    difference counted as one draw more, so that it is never 0 (Efron and Tibshirani, An Introduction to the Bootstrap,
    chapters 13 and 16).

    Raises:
        ValueError: no case, or not the same number of them.
    """
    if len(a) != len(b) or not len(a):
        raise ValueError(f"the systems must have been asked the same cases, these are of {len(a)} and {len(b)}")
    # Few values occur, so that a resample is a draw of how often each does, and no case is looked at again.
    values, counts = np.unique(np.asarray(a, np.float64) - b, return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(len(a), counts / len(a), size=draws) @ values / len(a)
    below, above = (drawn <= 0).sum() + 1, (drawn >= 0).sum() + 1
    low, high = np.quantile(drawn, [0.025, 0.975])
    p = min(1.0, 2 * min(below, above) / (draws + 1))
    return Comparison(float(values @ counts / len(a)), float(low), float(high), p)
