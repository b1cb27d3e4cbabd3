"""What preference training learns from: prompts, and the item that each was asked for."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

BLOCK = 16
"""Batches within which prompts are brought together by length, so that little is padding."""


@dataclass(frozen=True)
class Cases:
    """prompts: token ids of each; targets: [cases] item numbers."""

    prompts: Sequence[np.ndarray]
    targets: np.ndarray

    def batch(self, chosen: np.ndarray, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens [batch, T] padded on the left, mask [batch, T], False on padding, and targets [batch]."""
        prompts = [self.prompts[i] for i in chosen]
        lengths = np.array([len(prompt) for prompt in prompts])
        mask = np.arange(lengths.max())[None, :] >= (lengths.max() - lengths)[:, None]
        tokens = np.zeros(mask.shape, np.int64)
        tokens[mask] = np.concatenate(prompts)
        parts = tokens, mask, self.targets[chosen]
        return tuple(torch.from_numpy(part).to(device) for part in parts)  # type: ignore[return-value]

    def order(self, epochs: int, count: int, batch: int, seed: int) -> list[np.ndarray]:
        """Batches of case numbers for so many passes over `count` cases (0: all), drawn anew for each pass."""
        lengths = np.array([len(prompt) for prompt in self.prompts])
        out = []
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
) -> Cases:
    """One case for each purchase but a user's first: the opening token, the codes of the items before, the item.

    Args:
        histories: item numbers in time order, one array a user; codes: [items, L]; sid_tokens: [L, K] token ids.
    """
    depth = codes.shape[1]
    item_tokens = sid_tokens[np.arange(depth), codes].astype(np.int64)
    prompts, targets = [], []
    for history in histories:
        tokens = item_tokens[history]
        for end in range(1, len(history)):
            prompts.append(np.append(bos, tokens[max(0, end - max_history) : end]))
            targets.append(history[end])
    return Cases(prompts, np.array(targets, np.int64))
