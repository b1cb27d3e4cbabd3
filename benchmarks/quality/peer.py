"""The peers' answers: popularity here, the others from RecBole in its own environment."""

import time
from pathlib import Path

import numpy as np

from benchmarks.peers import environment, peers
from benchmarks.quality.measures import LIST, Ground
from tessera.evaluation.baselines import popularity

NAMES = {name.lower(): name for name in peers.MODELS}


class Missing(Exception):
    """A peer that cannot be measured here, and why."""


def answers(
    name: str, ground: Ground, folder: Path, seed: int, budget: peers.Budget
) -> tuple[np.ndarray, np.ndarray, float]:
    """Validation and test answers [users, LIST] of a peer, and the seconds that it took.

    Raises:
        Missing: it is not installed.
    """
    started = time.monotonic()
    if name == "popularity":
        split, items = ground.split, len(ground.item_ids)
        top = popularity(split.train, items, min(LIST, items))
        asked = len(split.validation_cases()[1]), len(split.test_cases()[1])
        validation, test = (np.tile(top, (users, 1)) for users in asked)
    elif environment.find() is None:
        raise Missing(environment.NOT_INSTALLED)
    else:
        peer = peers.run_peer(NAMES[name], ground.split, ground.items, folder, seed, budget)
        validation, test = peer.validation, peer.test
    return validation, test, time.monotonic() - started
