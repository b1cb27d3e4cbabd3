"""Intents without a language model: zero-shot matching against the lexicon, led by the caption's scene."""

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tessera.enrichment.encoders import TextEncoder
from tessera.enrichment.parsing import MAX_TEXT, Descriptor, Intents
from tessera.enrichment.providers.base import Item
from tessera.enrichment.providers.embedded.lexicon import Lexicon, load_lexicon, scenes_in

MOST, LEAST = 5, 3
TOKENS = 48
CAPTION_SHARE = 0.25
# An entry of the photo's scene gains, one that belongs to other places loses; both in units of cosine.
SCENE_GAIN, SCENE_LOSS = 0.18, 0.10
# Score at which a descriptor is as likely right as wrong, and the score that moves the odds by e.
EVEN_SCORE, SCORE_SCALE = 0.30, 0.08
# Descriptors within this of the best are kept; weaker ones only up to LEAST.
WINDOW = 0.12
_UNIT = r"(?:fl\.? ?oz|(?:fluid[ -])?ounce|oz|ml|l|g|kg|lb|inch|in|cm|mm|ft|pack|pcs|pair|count|piece)s?"
_SIZE = re.compile(rf"\b(size \w+|\d+(?:\.\d+)?[ -]?{_UNIT}|pack of \d+)\b", re.IGNORECASE)


def match_text(item: Item) -> str:
    """What is matched: title without sizes, narrowest categories, some attributes, the start of the description."""
    lists = [", ".join(item.categories[-3:]), ", ".join(item.attributes[-4:])]
    parts = [_SIZE.sub("", item.title), *lists, item.description[:160]]
    return ". ".join(part.strip().rstrip(".") for part in parts if part.strip())


def item_vectors(encoder: TextEncoder, items: Sequence[Item], tokens: int = TOKENS) -> NDArray[np.float32]:
    """[N, D] unit rows: the item's text, moved towards its caption by CAPTION_SHARE where it has one."""
    vectors = encoder.encode([match_text(item) for item in items], tokens)
    captioned = [i for i, item in enumerate(items) if item.caption]
    if captioned:
        captions = encoder.encode([items[i].caption or "" for i in captioned], tokens)
        mixed = (1 - CAPTION_SHARE) * vectors[captioned] + CAPTION_SHARE * captions
        vectors[captioned] = mixed / np.linalg.norm(mixed, axis=1, keepdims=True)
    return vectors


class IntentMiner:
    """Holds the lexicon's vectors; one encoder call per batch of items."""

    def __init__(self, encoder: TextEncoder, lexicon: Lexicon | None = None) -> None:
        self.encoder, self.lexicon = encoder, lexicon or load_lexicon()
        self.vectors = encoder.encode([f"{m.tag}: {m.motive}" for m in self.lexicon.motives])
        self.hubness = _hubness(self.vectors)
        self.scene_names = list(self.lexicon.scenes)
        self.in_scene = np.array([[s in m.scenes for m in self.lexicon.motives] for s in self.scene_names])

    def mine(self, items: Sequence[Item]) -> list[Intents]:
        """DCIM's three steps per item: surface attributes, motives, descriptors with confidence."""
        scores = self._scores(item_vectors(self.encoder, items), [scenes_in(item.caption or "") for item in items])
        order = np.argsort(-scores, axis=1, kind="stable")[:, :MOST]
        return [self._intents(item, scores[i], order[i]) for i, item in enumerate(items)]

    def _scores(self, items: NDArray[np.float32], scenes: Sequence[frozenset[str]]) -> NDArray[np.float32]:
        """[N, M]: cosine less hubness, plus what the scene gives or takes."""
        seen = np.array([[name in found for name in self.scene_names] for found in scenes])
        fits = (seen.astype(np.float32) @ self.in_scene.astype(np.float32)) > 0
        elsewhere = ~fits & self.in_scene.any(axis=0) & seen.any(axis=1, keepdims=True)
        return items @ self.vectors.T - self.hubness + SCENE_GAIN * fits - SCENE_LOSS * elsewhere

    def _intents(self, item: Item, scores: NDArray[np.float32], order: NDArray[np.intp]) -> Intents:
        best = scores[order[0]]
        kept = [int(m) for rank, m in enumerate(order) if rank < LEAST or scores[m] > best - WINDOW]
        tags = tuple(Descriptor(self.lexicon.motives[m].tag, confidence(float(scores[m]))) for m in kept)
        return Intents(surface_of(item), tuple(self.lexicon.motives[m].motive for m in kept[:LEAST]), tags)


def confidence(score: float) -> float:
    """A matching score as confidence in [0.05, 0.95], rounded to two digits."""
    return round(float(np.clip(1 / (1 + np.exp((EVEN_SCORE - score) / SCORE_SCALE)), 0.05, 0.95)), 2)


def surface_of(item: Item) -> tuple[str, ...]:
    """Step 1, what the texts state: brand, narrowest categories, attributes, sizes, and what the caption shows."""
    shown = (item.caption or "").split(". ")[0].split(", in ")[0]
    stated = [item.brand, *item.categories[-2:], *item.attributes[-3:], *_SIZE.findall(item.title), shown or item.title]
    unique = {text.casefold(): text for text in (" ".join(s.split())[: MAX_TEXT * 2] for s in stated) if len(text) > 1}
    return tuple(unique.values())[:10]


def _hubness(vectors: NDArray[np.float32], neighbours: int = 10) -> NDArray[np.float32]:
    """[M]: a quarter of each entry's mean cosine to its nearest entries; broad entries are near everything."""
    similarity = vectors @ vectors.T
    np.fill_diagonal(similarity, -1.0)
    nearest = np.sort(similarity, axis=1)[:, -neighbours:]
    return (0.25 * (nearest.mean(axis=1) - nearest.mean())).astype(np.float32)
