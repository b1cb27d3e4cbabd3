"""Softmax direct preference optimisation (S-DPO, arXiv 2406.09215): the target against several other items at once."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tessera.config import PreferenceSettings
from tessera.decoding.index import CatalogueIndex
from tessera.policy.backbone import Backbone
from tessera.policy.cases import NextItemCases
from tessera.policy.checkpoints import Progress
from tessera.policy.likelihood import log_probabilities
from tessera.policy.rollouts import roll_out
from tessera.policy.tuning import Reference, generator_of, precision, tune


def sdpo_loss(logp: Tensor, reference: Tensor, beta: float) -> Tensor:
    """-log sigmoid(-log sum_d exp(m_d - m_p)), the mean over examples, with margins m = beta (log pi - log pi_ref).

    p is the preferred item and d runs over the dispreferred ones. It is the cross-entropy of the margins' softmax,
    -log(exp(m_p) / (exp(m_p) + sum_d exp(m_d))), which is how it is computed; with one d it is DPO (arXiv 2305.18290).

    Args:
        logp, reference: [batch, 1 + negatives] log p of whole SIDs under the policy and under the supervised one, the
            preferred item first.
    """
    margins = beta * (logp - reference.detach())
    return -margins.log_softmax(1)[:, 0].mean()


def train(
    backbone: Backbone,
    index: CatalogueIndex,
    cases: NextItemCases,
    validate: Callable[[], dict[str, float]],
    settings: PreferenceSettings,
    seed: int,
    work: Path,
    fingerprint: str,
) -> Progress:
    """Set the items that were bought apart from others; leaves the best weights in the model.

    Args:
        backbone: the supervised policy, which is also the reference of the margins.
        validate, work, fingerprint: as in `tessera.policy.tuning.tune`.
    """
    device = backbone.model.device
    order = cases.order(settings.epochs, settings.cases, settings.batch, seed)

    def step(number: int, chosen: np.ndarray, reference: Reference) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        tokens, mask, targets = cases.batch(chosen, device)
        generator = generator_of(device, seed, number)
        wrong = negatives(backbone, index, tokens, mask, targets, settings, generator)
        codes = index.codes[torch.cat([targets[:, None], wrong], dim=1)].long()
        with precision(device):
            with torch.no_grad(), reference.in_place():
                supervised = log_probabilities(backbone, tokens, mask, codes).sum(-1)
            logp = log_probabilities(backbone, tokens, mask, codes).sum(-1)
        first = (logp[:, :1] - supervised[:, :1] > logp[:, 1:] - supervised[:, 1:]).float().mean()
        yield sdpo_loss(logp, supervised, settings.beta), {"accuracy": first.detach()}

    return tune(
        backbone.model, step, order, settings.learning_rate, settings.validate_every, validate, work, fingerprint,
        "S-DPO",
    )


def negatives(
    backbone: Backbone,
    index: CatalogueIndex,
    tokens: Tensor,
    mask: Tensor,
    targets: Tensor,
    settings: PreferenceSettings,
    generator: torch.Generator,
) -> Tensor:
    """[batch, negatives] items other than the targets: drawn evenly, as in the paper, or the policy's likeliest ones.

    An item may be drawn twice. Beams give each once, and fewer than asked for from a small catalogue.
    """
    if settings.source == "random":
        shape = len(targets), settings.negatives
        drawn = torch.randint(index.size - 1, shape, generator=generator, device=targets.device)
        return drawn + (drawn >= targets[:, None])  # all items but the target, each as likely
    width = min(settings.negatives + 1, index.size)
    rows = roll_out(backbone, index, tokens, mask, width, "beam", 1.0, generator).rows
    target_last = (rows == targets[:, None]).long().argsort(dim=1, stable=True)
    return rows.gather(1, target_last)[:, : width - 1]
