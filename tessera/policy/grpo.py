"""Group relative policy optimisation (GRPO) of next-item generation, from the supervised policy on.

The objective of DeepSeekMath (arXiv 2402.03300, section "Group Relative Policy Optimization"), with the items of a
prompt's beam or sample as its group.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tessera.config import GrpoSettings
from tessera.decoding.index import CatalogueIndex
from tessera.policy.backbone import Backbone
from tessera.policy.cases import NextItemCases
from tessera.policy.checkpoints import Progress
from tessera.policy.likelihood import log_probabilities
from tessera.policy.rewards import Reward
from tessera.policy.rollouts import roll_out
from tessera.policy.tuning import Reference, generator_of, precision, tune


def advantages(rewards: Tensor, epsilon: float) -> Tensor:
    """A_i = (r_i - mean(r)) / (std(r) + epsilon), within each group of rewards [groups, G].

    std is the population's, sqrt(mean((r - mean(r))^2)). A group of equal rewards has advantages 0. Because of the
    division, a factor on all rewards of a group leaves no trace but through epsilon: where only one item of a group is
    paid (exact match), a bonus on it changes the advantages little unless epsilon is of the size of std; where others
    are paid too (prefix, collaborative), it sets the target further apart from them.
    """
    centred = rewards - rewards.mean(1, keepdim=True)
    return centred / (centred.square().mean(1, keepdim=True).sqrt() + epsilon)


def clipped_objective(logp: Tensor, old: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """min(rho A, clip(rho, 1 - c, 1 + c) A) with rho = exp(logp - old), by element; to be raised."""
    ratio = (logp - old).exp()
    return torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)


def kl_to_reference(logp: Tensor, reference: Tensor) -> Tensor:
    """exp(d) - d - 1 with d = reference - logp, by element: never negative, 0 where both agree.

    An unbiased estimate of KL(policy || reference) where the codes are samples of the policy; over a beam, which takes
    the likeliest codes, it is a penalty of the same form.
    """
    difference = reference - logp
    return difference.exp() - difference - 1


def grpo_loss(logp: Tensor, old: Tensor, reference: Tensor, advantage: Tensor, clip: float, kl: float) -> Tensor:
    """-mean(clipped objective - kl * KL to the reference) over groups, rollouts and codes.

    Args:
        logp, old, reference: [groups, G, L] log-probabilities of the rollouts' codes under the policy, under the policy
            that made the rollouts, and under the supervised one; gradients flow through `logp` alone.
        advantage: [groups, G], the same for all codes of a rollout.
    """
    objective = clipped_objective(logp, old.detach(), advantage.detach().unsqueeze(-1), clip)
    return (kl * kl_to_reference(logp, reference.detach()) - objective).mean()


def train(
    backbone: Backbone,
    index: CatalogueIndex,
    cases: NextItemCases,
    reward: Reward,
    validate: Callable[[], dict[str, float]],
    settings: GrpoSettings,
    seed: int,
    work: Path,
    fingerprint: str,
) -> Progress:
    """Raise the reward of the policy's own rollouts; leaves the best weights in the model.

    Args:
        backbone: the supervised policy, which is also the reference of the KL.
        reward: of rows, codes and targets; see `tessera.policy.rewards.reward_function`.
        validate, work, fingerprint: as in `tessera.policy.tuning.tune`.
    """
    device = backbone.model.device
    order = cases.order(settings.epochs, settings.cases, settings.batch, seed)

    def step(number: int, chosen: np.ndarray, reference: Reference) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        tokens, mask, targets = cases.batch(chosen, device)
        generator = generator_of(device, seed, number)
        group = roll_out(
            backbone, index, tokens, mask, settings.group, settings.rollouts, settings.temperature, generator
        )
        rewards = reward(group.rows, group.codes, targets)
        advantage = advantages(rewards, settings.epsilon)
        with torch.no_grad(), reference.in_place(), precision(device):
            supervised = log_probabilities(backbone, tokens, mask, group.codes)
        old: Tensor | None = None
        for _ in range(settings.updates):
            with precision(device):
                logp = log_probabilities(backbone, tokens, mask, group.codes)
            old = logp.detach() if old is None else old
            divergence = kl_to_reference(logp.detach(), supervised).mean()
            loss = grpo_loss(logp, old, supervised, advantage, settings.clip, settings.kl)
            yield loss, {"reward": rewards.mean(), "kl": divergence}

    return tune(
        backbone.model, step, order, settings.learning_rate, settings.validate_every, validate, work, fingerprint,
        "GRPO",
    )
