"""Adaptive probabilistic fusion: how much a prefix's probability counts beside that of the item behind it.

SIGMA ranks the items behind the prefixes that the beam found. Here by

    score(item) = log P(prefix) / T + log P(item | prefix),    T = 1 + s d / (1 - d)

where d in [0, 1] is the dial of the task, 0 for accuracy and 1 for diversity, and s the standard deviation of the log
P(prefix) over the prefixes found. At d = 0 this is the plain product of probabilities; at d = 1, T is infinite and all
found prefixes are alike. Between, T adapts to the spread: what is left of it, s / T, never exceeds (1 - d) / d, so a
policy that is sure of one prefix opens up as well as one that is not, which is left nearly as it is.
"""

import torch
from torch import Tensor


def inverse_temperature(prefix: Tensor, diversity: Tensor) -> Tensor:
    """1 / T [batch] of each request, from log P(prefix) [batch, n], -inf where there is none, and its dial [batch]."""
    found = prefix > -torch.inf
    count = found.sum(1, keepdim=True).clamp(min=1)
    known = prefix.masked_fill(~found, 0.0)
    centred = (known - known.sum(1, keepdim=True) / count).masked_fill(~found, 0.0)
    spread = (centred.square().sum(1) / count.squeeze(1)).sqrt()
    both = (1 - diversity) + spread * diversity
    return torch.where(both > 0, (1 - diversity) / both, 1.0)  # no spread: nothing to flatten


def flattened(prefix: Tensor, diversity: Tensor) -> Tensor:
    """log P(prefix) / T [batch, n], still -inf where there is none."""
    weighted = prefix * inverse_temperature(prefix, diversity).unsqueeze(1)
    return weighted.masked_fill(prefix == -torch.inf, -torch.inf)  # an infinite T would make NaN of it
