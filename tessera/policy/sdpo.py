"""Softmax direct preference optimisation (S-DPO, arXiv 2406.09215): the target against several other items at once."""

from torch import Tensor


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
