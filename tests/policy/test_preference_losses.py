"""GRPO's and S-DPO's formulas by hand, and the signs of their gradients."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tessera.policy.grpo import advantages, clipped_objective, grpo_loss, kl_to_reference
from tessera.policy.sdpo import sdpo_loss


def test_advantages() -> None:
    """(1, 0, 0, 0): mean 1/4, std sqrt(3)/4, so 3/sqrt(3) = 1.732 and -0.577; equal rewards teach nothing."""
    got = advantages(torch.tensor([[1.0, 0, 0, 0], [2.0, 2, 2, 2]]), 0.0 + 1e-9)
    assert got[0].tolist() == pytest.approx([math.sqrt(3), *[-1 / math.sqrt(3)] * 3], abs=1e-5)
    assert got[1].tolist() == [0.0] * 4


def test_epsilon_is_added_to_the_deviation() -> None:
    """(1, 0) deviates by 1/2: A = 0.5 / (0.5 + 0.5)."""
    assert advantages(torch.tensor([[1.0, 0.0]]), 0.5).tolist() == [[0.5, -0.5]]


def test_a_bonus_on_the_only_paid_item_shows_through_epsilon_alone() -> None:
    plain, more = torch.tensor([[1.0, 0, 0, 0]]), torch.tensor([[1.5, 0, 0, 0]])
    assert torch.allclose(advantages(plain, 1e-6), advantages(more, 1e-6), atol=1e-4)
    assert float(advantages(more, 0.5)[0, 0] - advantages(plain, 0.5)[0, 0]) > 0.1


@given(st.lists(st.floats(-10, 10, width=32), min_size=2, max_size=8), st.floats(1e-4, 1.0))
def test_advantages_sum_to_nothing_and_keep_the_order(group: list[float], epsilon: float) -> None:
    rewards = torch.tensor([group], dtype=torch.float64)
    got = advantages(rewards, epsilon)
    assert float(got.sum()) == pytest.approx(0, abs=1e-6)
    assert (got[0][rewards[0].argsort()].diff() >= 0).all()


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected", "slope"),
    [
        (1.1, 2.0, 2.2, 2.2),  # inside the clip: rho A, whose derivative by log p is rho A
        (1.5, 2.0, 2.4, 0.0),  # a good rollout that is already much likelier earns (1 + 0.2) A and no more
        (0.5, 2.0, 1.0, 1.0),  # a good one that has become less likely is not clipped
        (0.5, -2.0, -1.6, 0.0),  # a bad one that is already much less likely costs (1 - 0.2) A
        (1.5, -2.0, -3.0, -3.0),  # a bad one that has become likelier is not clipped
    ],
)
def test_clipped_objective(ratio: float, advantage: float, expected: float, slope: float) -> None:
    logp = torch.tensor(math.log(ratio) - 2.0, dtype=torch.float64, requires_grad=True)
    got = clipped_objective(logp, torch.tensor(-2.0, dtype=torch.float64), torch.tensor(advantage), 0.2)
    assert float(got.detach()) == pytest.approx(expected)
    assert float(torch.autograd.grad(got, logp)[0]) == pytest.approx(slope)


def test_kl_to_reference() -> None:
    """Policy 1/2, reference 1/4: 1/2 - log(1/2) - 1 = 0.193; equal ones 0."""
    logp = torch.tensor([0.5, 0.25]).log()
    assert kl_to_reference(logp, torch.tensor([0.25, 0.25]).log()).tolist() == pytest.approx([math.log(2) - 0.5, 0])


def test_kl_estimates_the_divergence_over_samples() -> None:
    """Its mean under the policy is sum_c pi(c) log(pi(c) / ref(c))."""
    policy, reference = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.3, 0.3, 0.4])
    mean = (policy * kl_to_reference(policy.log(), reference.log())).sum()
    assert float(mean) == pytest.approx(float((policy * (policy / reference).log()).sum()))


def test_grpo_loss_by_hand() -> None:
    """One group of two rollouts of two codes, A = (1, -1), clip 0.2, KL weight 0.1.

    Ratios (1.5 clipped to 1.2, 1) and (1, 0.5 clipped to 0.8): objectives 1.2, 1, -1, -0.8, mean 0.1. KL: the first
    code is twice as likely as in the reference, log 2 - 1/2 = 0.1931, a quarter of which counts.
    """
    old = torch.full((1, 2, 2), 0.4).log()
    logp = old + torch.tensor([[[1.5, 1.0], [1.0, 0.5]]]).log()
    reference = logp - torch.tensor([[[2.0, 1.0], [1.0, 1.0]]]).log()
    loss = grpo_loss(logp, old, reference, torch.tensor([[1.0, -1.0]]), 0.2, 0.1)
    assert float(loss) == pytest.approx(0.1 * (math.log(2) - 0.5) / 4 - 0.1, abs=1e-6)


def test_grpo_gradient_raises_good_rollouts_and_pulls_to_the_reference() -> None:
    start = torch.full((1, 2, 3), -1.0, requires_grad=True)
    grpo_loss(start, start, start, torch.tensor([[1.0, -1.0]]), 0.2, 0.5).backward()
    assert (start.grad[0, 0] < 0).all()  # against it: descent makes the good rollout likelier
    assert (start.grad[0, 1] > 0).all()
    above = torch.full((1, 1, 1), -1.0, requires_grad=True)
    grpo_loss(above, above, torch.full((1, 1, 1), -2.0), torch.zeros(1, 1), 0.2, 0.5).backward()
    assert float(above.grad) == pytest.approx(0.5 * (1 - math.exp(-1.0)))  # likelier than the reference: made less so


def test_grpo_gradient_is_the_numeric_one() -> None:
    generator = torch.Generator().manual_seed(0)
    logp, old, reference = (-torch.rand(3, 4, 2, generator=generator, dtype=torch.float64) - 0.5 for _ in range(3))
    advantage = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    logp.requires_grad_(True)
    assert torch.autograd.gradcheck(lambda x: grpo_loss(x, old, reference, advantage, 0.2, 0.3), (logp,))


def test_sdpo_by_hand() -> None:
    """Margins 2 (0.5, -0.5, 0) = (1, -1, 0): -log(e / (e + 1/e + 1)), the paper's form to the digit."""
    reference = torch.tensor([[-3.0, -2.0, -4.0]])
    loss = sdpo_loss(reference + torch.tensor([[0.5, -0.5, 0.0]]), reference, 2.0)
    paper = -math.log(1 / (1 + math.exp(math.log(math.exp(-1 - 1) + math.exp(0 - 1)))))
    assert float(loss) == pytest.approx(math.log(1 + math.exp(-2) + math.exp(-1)), abs=1e-6)
    assert float(loss) == pytest.approx(paper, abs=1e-6)


def test_sdpo_starts_at_the_logarithm_of_the_candidates() -> None:
    logp = torch.tensor([[-3.0, -2.0, -4.0, -1.0]])
    assert float(sdpo_loss(logp, logp, 1.0)) == pytest.approx(math.log(4))


def test_sdpo_with_one_negative_is_dpo() -> None:
    logp, reference = torch.tensor([[-1.0, -2.5], [-2.0, -0.5]]), torch.tensor([[-1.5, -2.0], [-1.0, -1.0]])
    difference = (logp - reference)[:, 0] - (logp - reference)[:, 1]
    assert float(sdpo_loss(logp, reference, 0.7)) == pytest.approx(
        float(-torch.nn.functional.logsigmoid(0.7 * difference).mean())
    )


def test_sdpo_gradient_weighs_the_hardest_negative_most() -> None:
    """d loss / d logp = beta (softmax(margins) - 1[preferred])."""
    reference = torch.zeros(1, 3)
    logp = torch.tensor([[0.0, 1.0, -1.0]], requires_grad=True)
    sdpo_loss(logp, reference, 0.5).backward()
    weights = torch.tensor([0.0, 0.5, -0.5]).softmax(0)
    assert logp.grad[0].tolist() == pytest.approx((0.5 * (weights - torch.tensor([1.0, 0, 0]))).tolist())
    assert logp.grad[0, 0] < 0 < logp.grad[0, 2] < logp.grad[0, 1]
