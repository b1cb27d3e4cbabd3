"""What preference training learns from: prompts, and the item that each was asked for."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tessera.policy.data import prompt_rows
from tessera.policy.ragged import Ints, Ragged
from tessera.policy.tasks import positions

BLOCK = 16
"""Batches within which prompts are brought together by length, so that little is padding."""


@dataclass(frozen=True)
class NextItemCases:
    """prompts: [cases] rows of token ids; targets: [cases] item numbers."""

    prompts: Ragged
    targets: Ints

    def batch(self, chosen: np.ndarray, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens [batch, T] padded on the left, mask [batch, T], False on padding, and targets [batch]."""
        tokens, mask = self.prompts.take(chosen).left_padded()
        return tokens.to(device), mask.to(device), torch.from_numpy(self.targets[chosen]).to(device)

    def order(self, epochs: int, count: int, batch: int, seed: int) -> list[np.ndarray]:
        """Batches of case numbers for so many passes over `count` cases (0: all), drawn anew for each pass."""
        lengths, out = self.prompts.lengths, []
        for epoch in range(epochs):
            rng = np.random.default_rng([seed, epoch])
            chosen = rng.permutation(len(lengths))[: count or None]
            blocks = np.split(chosen, range(batch * BLOCK, len(chosen), batch * BLOCK))
            alike = [block[np.argsort(lengths[block], kind="stable")] for block in blocks]
            cut = [part for block in alike for part in np.split(block, range(batch, len(block), batch))]
            out += [cut[i] for i in rng.permutation(len(cut))]
        return out


def next_item_cases(
    histories: Sequence[np.ndarray], codes: np.ndarray, sid_tokens: np.ndarray, bos: int, max_history: int
) -> NextItemCases:
    """One case for each purchase but a user's first: the opening token, the codes of the items before, the item.

    Args:
        histories: item numbers in time order, one array a user; codes: [items, L]; sid_tokens: [L, K] token ids.
    """
    purchases = positions(histories, max_history)
    return NextItemCases(prompt_rows(purchases.history, codes, sid_tokens, bos), purchases.item)
