"""Descriptor quality as one number per item (QARM, before reinforcement learning)."""

from collections.abc import Sequence

import numpy as np


def quality_score(labels: Sequence[int], confidences: Sequence[float | None]) -> float:
    """Confidence-weighted mean of an item's binary descriptor labels.

    score = sum_i c_i * l_i / sum_i c_i

    with l_i in {0, 1} the label of descriptor i and c_i in [0, 1] its confidence. Where any confidence is missing, or
    all are zero, the weights are equal and the score is the plain mean of the labels: a known weight beside an
    unknown one would decide the score by who happened to state it. (QARM labels as used by DeepInterestGR, arXiv
    2604.20861.)

    Raises:
        ValueError: no labels, or as many confidences as labels are not given.
    """
    if not labels or len(labels) != len(confidences):
        raise ValueError(f"{len(labels)} labels and {len(confidences)} confidences do not make a score")
    known = [c for c in confidences if c is not None]
    weights = np.asarray(known if len(known) == len(labels) else np.ones(len(labels)), dtype=np.float64)
    if weights.sum() <= 0:
        weights = np.ones(len(labels))
    return float(weights @ np.asarray(labels, dtype=np.float64) / weights.sum())
