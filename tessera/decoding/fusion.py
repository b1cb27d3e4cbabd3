"""Adaptive probabilistic fusion: how much a prefix's probability counts beside that of an item behind it.

SIGMA generates in three steps: prefixes by the beam, item tokens behind each of them, then the two are fused. The
search brings log P(item) of every item behind a found prefix: of hybrid SIDs the own token's, of plain ones the whole
SID's. Here a prefix is worth its best item, log P(prefix) = max log P(item), and log P(item | prefix) = log P(item) -
log P(prefix), so that

    score(item) = log softmax(log P(prefix) / T) + log P(item | prefix),    T = 1 + s d / (1 - d)

where d in [0, 1] is the dial of the task, 0 for accuracy and 1 for diversity, and s the standard deviation of the log
P(prefix) over the prefixes found. At d = 0 this is the order of log P(item). At d = 1 all found prefixes are as good as
alike: each gives its best item before any gives its second. Between, T adapts to the spread: what is left of it, s / T,
never exceeds (1 - d) / d, so a policy that is sure of one prefix opens up as well as one that is not, which is left
nearly as it is.

Were a prefix worth the sum of its items, or its codes' probability, those with one item would be ahead of all others,
and at the diversity end lists would look alike: measured, and fewer categories are covered for more lost hits.
"""

import torch
from torch import Tensor

HOTTEST = 1000.0
"""T at d = 1: flat, but for which of equals comes first."""


def fused(scores: Tensor, diversity: Tensor) -> Tensor:
    """Scores [batch, prefixes, items] after fusion; -inf stays, and where the dial [batch] is 0, log P(item) as it was.

    Args:
        scores: log P(item) by the prefix that it is behind, -inf where there is no item.
    """
    prefix = scores.amax(2)
    found = prefix > -torch.inf
    behind = scores - prefix.masked_fill(~found, 0.0).unsqueeze(2)
    tempered = prefix * inverse_temperature(prefix, diversity).unsqueeze(1)
    total = tempered.logsumexp(1, keepdim=True).nan_to_num(neginf=0.0)  # a request that found nothing
    return torch.where(diversity[:, None, None] == 0, scores, (tempered - total).unsqueeze(2) + behind)


def inverse_temperature(prefix: Tensor, diversity: Tensor) -> Tensor:
    """1 / T [batch] of each request, from log P(prefix) [batch, n], -inf where there is none, and its dial [batch]."""
    found = prefix > -torch.inf
    count = found.sum(1, keepdim=True).clamp(min=1)
    known = prefix.masked_fill(~found, 0.0)
    centred = (known - known.sum(1, keepdim=True) / count).masked_fill(~found, 0.0)
    spread = (centred.square().sum(1) / count.squeeze(1)).sqrt()
    temperature = 1 + spread * diversity / (1 - diversity).clamp(min=1e-6)
    return 1 / temperature.clamp(max=HOTTEST)
