"""What the gated bonus pays for each item: aggregated descriptor quality (QARM), and the labels it is compared with.

Each function returns [items] float32 scores in [0, 1] in the order of `item_ids`. An item without judged descriptors
scores 0: there is nothing that a bonus could be for.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pyarrow as pa

from tessera.enrichment.scoring import quality_score

WORDS, COMMON = 2, 0.05


def quality(item_ids: Sequence[str], table: pa.Table) -> np.ndarray:
    """QARM's scores, as the table of schema "quality" holds them."""
    known = dict(zip(table["item_id"].to_pylist(), table["score"].to_pylist(), strict=True))
    return np.array([known.get(item) or 0.0 for item in item_ids], np.float32)


def uniform(item_ids: Sequence[str], table: pa.Table) -> np.ndarray:
    """The same for every item: the mean of QARM's scores, so that the bonus is as large on average."""
    scores = quality(item_ids, table)
    return np.full(len(scores), scores.mean(), np.float32)


def random(item_ids: Sequence[str], table: pa.Table, intents: pa.Table, seed: int) -> np.ndarray:
    """Labels that are 1 as often as QARM's, but for descriptors drawn at random."""
    ones = [label for labels in table["labels"].to_pylist() for label in labels or ()]
    share = float(np.mean(ones)) if ones else 0.0
    generator = np.random.default_rng(seed)
    return _aggregate(item_ids, intents, lambda texts: generator.random(len(texts)) < share)


def heuristic(item_ids: Sequence[str], intents: pa.Table) -> np.ndarray:
    """Labels by a rule that reads no meaning: 1 for two or more words that at most one item in twenty shares."""
    described = _descriptors(intents)
    count = Counter(text for descriptors in described.values() for text in {text for text, _ in descriptors})
    most = max(1.0, COMMON * len(described))
    return _aggregate(
        item_ids, intents, lambda texts: [len(text.split()) >= WORDS and count[text] <= most for text in texts]
    )


def _descriptors(intents: pa.Table) -> dict[str, list[tuple[str, float | None]]]:
    """Text and confidence of each descriptor, by item."""
    rows = zip(intents["item_id"].to_pylist(), intents["descriptors"].to_pylist(), strict=True)
    return {item: [(one["text"], one["confidence"]) for one in found or ()] for item, found in rows}


def _aggregate(
    item_ids: Sequence[str], intents: pa.Table, label: Callable[[Sequence[str]], Iterable[bool]]
) -> np.ndarray:
    described = _descriptors(intents)
    scores = np.zeros(len(item_ids), np.float32)
    for row, item in enumerate(item_ids):
        if descriptors := described.get(item):
            texts, confidences = zip(*descriptors, strict=True)
            scores[row] = quality_score([int(one) for one in label(texts)], confidences)
    return scores
