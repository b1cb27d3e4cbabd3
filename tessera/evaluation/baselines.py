"""Baselines that need no training, measured on the same split as the policy."""

import numpy as np


def popularity(train: list[np.ndarray], items: int, k: int) -> np.ndarray:
    """The k items bought most often in the training histories; equal counts keep the order of item number.

    Returns:
        [k] item numbers, the same answer for everybody.
    """
    counts = np.bincount(np.concatenate(train), minlength=items)
    return np.argsort(-counts, kind="stable")[:k]
