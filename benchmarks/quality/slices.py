"""Test cases that are looked at apart: surface-similar targets, and targets that training hardly saw."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer

TWIN, COLD, BLOCK = 0.7, 5, 1024


def title_twins(titles: Sequence[str]) -> NDArray[np.bool_]:
    """[items] whether another item's title is like this one's: cosine of TF-IDF word vectors at least TWIN.

    Nothing but titles is read, so that no system's representation has a say in which cases are hard.
    """
    try:
        vectors = TfidfVectorizer(sublinear_tf=True).fit_transform(titles).tocsr()
    except ValueError:  # no title has a word
        return np.zeros(len(titles), bool)
    twins = np.zeros(len(titles), bool)
    for start in range(0, len(titles), BLOCK):
        block = vectors[start : start + BLOCK]
        likeness = (block @ vectors.T).toarray()
        likeness[np.arange(block.shape[0]), start + np.arange(block.shape[0])] = 0
        twins[start : start + BLOCK] = likeness.max(1) >= TWIN
    return twins


def cold_items(train: list[np.ndarray], items: int) -> NDArray[np.bool_]:
    """[items] whether training bought an item fewer than COLD times."""
    flat = np.concatenate([*train, np.empty(0, np.int64)]).astype(np.int64)
    return np.bincount(flat, minlength=items) < COLD
