"""Rewards of rollouts, as pure functions of item numbers and codes.

A group is one prompt's G rollouts. `rows` [groups, G] int64 are the items that the rollouts' SIDs belong to, -1 where a
SID belongs to none; `targets` [groups] int64 are the items that were bought. All rewards are float32 [groups, G].
"""

from collections.abc import Callable

import torch
from torch import Tensor

from tessera.config import GrpoSettings
from tessera.errors import InputError

Reward = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Of rows [groups, G], codes [groups, G, L] and targets [groups]: rewards [groups, G]."""


def exact_match(rows: Tensor, targets: Tensor) -> Tensor:
    """r = 1[decoded item is the target].

    >>> exact_match(torch.tensor([[4, 7, -1]]), torch.tensor([7]))
    tensor([[0., 1., 0.]])
    """
    return (rows == targets[:, None]).float()


def prefix_match(codes: Tensor, target_codes: Tensor) -> Tensor:
    """r = LCP(c, c*) / L: the share of the target's SID that the rollout has right from the first code on.

    Args:
        codes: [groups, G, L] codes of the rollouts; target_codes: [groups, L].

    >>> prefix_match(torch.tensor([[[1, 2, 3], [1, 0, 3], [0, 2, 3]]]), torch.tensor([[1, 2, 3]]))
    tensor([[1.0000, 0.3333, 0.0000]])
    """
    right = (codes == target_codes[:, None, :]).long()
    return right.cumprod(-1).sum(-1) / codes.shape[-1]


def sid_format(rows: Tensor, codes: Tensor, target_codes: Tensor) -> Tensor:
    """r = 1[the SID is an existing item's] + LCP(c, c*) / L, between 0 and 2.

    Worth its first term only where rollouts are unconstrained, because the constrained decoder writes no other SIDs.
    A near miss beside the catalogue keeps the second term: the first codes were right.
    """
    return (rows >= 0).float() + prefix_match(codes, target_codes)


def collaborative(rows: Tensor, targets: Tensor, vectors: Tensor) -> Tensor:
    """r = max(0, cos(e_i, e_i*)): how alike the users of the decoded item and of the target are; 0 for no item.

    Args:
        vectors: [items, D] collaborative item embeddings; an item without any (a zero vector) is like none.
    """
    unit = torch.nn.functional.normalize(vectors.float(), dim=1)
    cosine = (unit[rows.clamp(min=0)] * unit[targets][:, None, :]).sum(-1)
    return cosine.clamp(min=0) * (rows >= 0)


def gated_bonus(rows: Tensor, targets: Tensor, scores: Tensor) -> Tensor:
    """r = 1[decoded item is the target] q(target), the quality-aware bonus of QARM.

    The gate multiplies: an item that is wrong earns nothing, however good its descriptors are. (DeepInterestGR, arXiv
    2604.20861.) The peers of the ablation differ in `scores` alone; see `tessera.policy.labels`.

    Args:
        scores: [items] in [0, 1], aggregated quality of each item's descriptors.

    >>> gated_bonus(torch.tensor([[0, 1]]), torch.tensor([1]), torch.tensor([0.9, 0.4]))
    tensor([[0.0000, 0.4000]])
    """
    return exact_match(rows, targets) * scores[targets].float()[:, None]


def reward_function(
    settings: GrpoSettings, item_codes: Tensor, scores: Tensor | None = None, vectors: Tensor | None = None
) -> Reward:
    """r = reward + bonus_weight * gated bonus, as the settings choose.

    Args:
        item_codes: [items, L] SIDs; scores: [items], what the bonus pays for each item; vectors: [items, D] for the
            collaborative reward.

    Raises:
        InputError: a bonus without scores, or the collaborative reward without vectors.
    """
    if settings.bonus != "none" and scores is None:
        raise InputError(f"grpo.bonus is {settings.bonus}, which pays by scores of the items; give them, or take none.")
    if settings.reward == "collaborative" and vectors is None:
        raise InputError("the collaborative reward compares vectors of the items; give them, or choose another reward.")

    def reward(rows: Tensor, codes: Tensor, targets: Tensor) -> Tensor:
        if settings.reward == "exact":
            paid = exact_match(rows, targets)
        elif settings.reward == "collaborative":
            assert vectors is not None
            paid = collaborative(rows, targets, vectors)
        else:
            wanted = item_codes[targets].long()
            paid = prefix_match(codes, wanted) if settings.reward == "prefix" else sid_format(rows, codes, wanted)
        if settings.bonus == "none":
            return paid
        assert scores is not None
        return paid + settings.bonus_weight * gated_bonus(rows, targets, scores)

    return reward
