"""Who buys in the demo shop: people of one to three intents who follow each intent's journey, with taste and noise."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from tessera.catalog.raw import RAW_INTERACTIONS
from tessera.catalog.shop.definition import INTENTS, Item

NOISE = 0.15  # purchases of anything popular, whatever the intent
_KEEP_INTENT = 0.85  # the next purchase is for the same intent
_FOLLOW = 0.7  # and of the product that comes next in its journey
_FAVOURITE_BRAND = 0.5  # and, if there is one, of the customer's brand
_ZIPF = 0.7  # popularity of the r-th item of a group falls as r^-0.7
_PURCHASES = (6, 15)
_START, _DAY = 1_735_689_600, 86_400  # 1 January 2025
Array = np.ndarray


def purchases(items: Sequence[Item], users: int, seed: int) -> pa.Table:
    """Histories of `users` customers as `RAW_INTERACTIONS`: 6 to 15 purchases each, increasing times in seconds.

    A customer's next purchase is predictable from the previous ones (intent, next product of the journey, brand) and
    only weakly from popularity. Nobody buys an item twice. Equal arguments give equal histories.
    """
    rng = np.random.default_rng([seed, 2])
    shop = _Shelves(items, rng)
    lengths = np.minimum(rng.integers(_PURCHASES[0], _PURCHASES[1] + 1, users), len(items) // 2)
    bought = [shop.visit(int(length), rng) for length in lengths]
    starts = _START + rng.integers(0, 200 * _DAY, users)
    gaps = [np.cumsum(3600 + rng.exponential(6 * _DAY, length).astype(np.int64)) for length in lengths]
    names = np.array([f"user-{number:04d}" for number in range(1, users + 1)])
    ids = np.array([item.item_id for item in items])
    columns = [
        np.repeat(names, lengths), ids[np.concatenate(bought)],
        np.concatenate([start + gap for start, gap in zip(starts, gaps, strict=True)]),
    ]
    return pa.table([pa.array(column) for column in columns], schema=RAW_INTERACTIONS)


class _Shelves:
    """Items by intent and product, with their popularity."""

    def __init__(self, items: Sequence[Item], rng: np.random.Generator) -> None:
        self.brand = np.array([item.brand for item in items])
        self.brands = sorted(set(self.brand.tolist()))
        groups: dict[str, dict[str, list[int]]] = {intent: {} for intent in INTENTS}
        for index, item in enumerate(items):
            groups[item.intent].setdefault(item.product, []).append(index)
        self.popularity = np.zeros(len(items))
        for shelf in (shelf for by_product in groups.values() for shelf in by_product.values()):
            self.popularity[shelf] = rng.permutation(np.arange(1, len(shelf) + 1) ** -_ZIPF)
        self.shelf = {k: {p: np.array(shelf) for p, shelf in by.items()} for k, by in groups.items() if by}
        self.journey = {
            intent: [product for product in INTENTS[intent].journey if product in shelves]
            for intent, shelves in self.shelf.items()
        }

    def visit(self, length: int, rng: np.random.Generator) -> Array:
        """One customer's purchases as item indices."""
        intents = rng.permutation(list(self.shelf))[: rng.integers(1, 4)]
        favourite = self.brands[rng.integers(len(self.brands))]
        weights = 0.5 ** np.arange(len(intents))  # the first intent matters most
        left = self.popularity.copy()  # what is bought is not bought again
        intent, step, bought = str(rng.choice(intents, p=weights / weights.sum())), -1, np.zeros(length, np.int64)
        for position in range(length):
            if rng.random() < NOISE:
                choice = rng.choice(len(left), p=left / left.sum())
            else:
                if rng.random() > _KEEP_INTENT:
                    intent, step = str(rng.choice(intents, p=weights / weights.sum())), -1
                journey = self.journey[intent]
                follows = step >= 0 and rng.random() < _FOLLOW
                step = (step + 1) % len(journey) if follows else int(rng.integers(len(journey)))
                choice = self._pick(self.shelf[intent][journey[step]], favourite, left, rng)
            bought[position] = choice
            left[choice] = 0.0
        return bought

    def _pick(self, shelf: Array, favourite: str, left: Array, rng: np.random.Generator) -> int:
        of_brand = shelf[self.brand[shelf] == favourite]
        if rng.random() < _FAVOURITE_BRAND and left[of_brand].sum() > 0:
            shelf = of_brand
        if left[shelf].sum() == 0:  # a small shop's shelf, emptied
            shelf = np.flatnonzero(left)
        return int(rng.choice(shelf, p=left[shelf] / left[shelf].sum()))
