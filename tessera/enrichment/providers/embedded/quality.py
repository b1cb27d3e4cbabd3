"""Quality labels by rule: 1 for a descriptor that is specific, actionable and grounded in the item (QARM labels)."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tessera.enrichment.encoders import TextEncoder
from tessera.enrichment.providers.base import Item
from tessera.enrichment.providers.embedded.intents import item_vectors
from tessera.enrichment.providers.embedded.lexicon import load_lexicon, scenes_in, words_of

TOKENS = 32  # of the item: its title and categories; the words of the rest are compared as words
GROUNDED_COSINE = 0.32
KNOWN_USE_COSINE = 0.5


class QualityJudge:
    """Labels descriptors of any origin; descriptors repeat across items and are encoded once."""

    def __init__(self, encoder: TextEncoder, known_uses: NDArray[np.float32]) -> None:
        """`known_uses` [M, D]: unit vectors of descriptors that are known to be actionable, those of the lexicon."""
        self.encoder, self.known = encoder, known_uses
        self._vectors: dict[str, NDArray[np.float32]] = {}

    def label(self, items: Sequence[Item]) -> list[list[int]]:
        """A 0/1 label for each descriptor of each item."""
        tags = list(dict.fromkeys(t for item in items for t in item.descriptors if t not in self._vectors))
        if tags:
            self._vectors.update(zip(tags, self.encoder.encode(tags, TOKENS), strict=True))
        vectors = item_vectors(self.encoder, items, TOKENS)
        return [self._labels(item, vector) for item, vector in zip(items, vectors, strict=True)]

    def _labels(self, item: Item, text: NDArray[np.float32]) -> list[int]:
        words = {_stem(word) for word in words_of(item.text())}
        scenes = scenes_in(item.caption or "")
        labels = []
        for tag in item.descriptors:
            vector = self._vectors[tag]
            grounded = (
                _shared(tag, words) >= 0.5 or float(vector @ text) >= GROUNDED_COSINE or bool(scenes_in(tag) & scenes)
            )
            actionable = names_use(tag) or float((self.known @ vector).max()) >= KNOWN_USE_COSINE
            labels.append(int(grounded and actionable and specific(tag)))
        return labels


def specific(tag: str) -> bool:
    """Whether at least two words, or one long one, say something beyond praise."""
    telling = [word for word in words_of(tag) if word not in load_lexicon().vague]
    return len(telling) >= 2 or any(len(word) >= 9 for word in telling)


def names_use(tag: str) -> bool:
    """Whether the words name an activity ("-ing", "use"), a user, or what something is for."""
    words, users = words_of(tag), load_lexicon().users
    return "for" in words or any(word in users or (word.endswith("ing") and len(word) > 4) for word in words)


def _shared(tag: str, words: set[str]) -> float:
    """Share of a tag's telling words whose stem the item's texts hold."""
    telling = [_stem(word) for word in words_of(tag) if word not in load_lexicon().little]
    return sum(word in words for word in telling) / len(telling) if telling else 0.0


def _stem(word: str) -> str:
    """Cut common English endings, enough to match "hikes" and "hiking"."""
    for ending in ("ings", "ing", "ies", "es", "ed", "er", "s", "e", "y"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word[: -len(ending)]
    return word
