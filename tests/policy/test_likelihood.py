"""Log-probabilities of groups of SIDs against plain forwards of each prompt and SID alone."""

import numpy as np
import pytest
import torch

from tessera.config import PolicySettings
from tessera.policy import backbone as backbones
from tessera.policy.data import prompts
from tessera.policy.likelihood import log_probabilities

SIZE = 5
SETTINGS = PolicySettings(hidden=32, layers=2, heads=2, text_vocabulary=300, dropout=0.3)
CODES = np.stack(np.unravel_index(np.random.default_rng(0).choice(SIZE**3, 20, replace=False), (SIZE,) * 3), axis=1)
HISTORIES = [np.array([0, 1, 2]), np.array([3]), np.empty(0, np.int64)]


@pytest.fixture
def sharp() -> backbones.Backbone:
    built = backbones.build(SETTINGS, ["words"], 3, SIZE, seed=1)
    built.model.eval()
    with torch.no_grad():
        for parameter in built.model.parameters():
            parameter.mul_(3.0)
    return built


def plain(backbone: backbones.Backbone, history: np.ndarray, sid: list[int]) -> list[torch.Tensor]:
    """One whole forward of prompt and SID, nothing shared, nothing padded."""
    tokens = backbone.sid_tokens
    prompt = [backbone.bos, *tokens[np.arange(3), torch.tensor(CODES[history])].flatten().tolist()]
    logits = backbone.model(torch.tensor([prompt + tokens[np.arange(3), sid].tolist()])).logits[0]
    return [logits[len(prompt) - 1 + at][tokens[at]].log_softmax(-1)[code] for at, code in enumerate(sid)]


def test_groups_equal_plain_forwards_in_value_and_gradient(sharp: backbones.Backbone) -> None:
    """Prompts of three lengths, the empty one too, and groups in which SIDs share prefixes and repeat."""
    codes = torch.tensor([[[0, 1, 2], [0, 1, 3], [4, 4, 4], [0, 1, 2]]] * 3)
    tokens, mask = prompts(HISTORIES, CODES, sharp.sid_tokens.numpy(), sharp.bos)
    got = log_probabilities(sharp, tokens, mask, codes)
    expected = torch.stack([
        torch.stack([torch.stack(plain(sharp, history, sid)) for sid in codes[n].tolist()])
        for n, history in enumerate(HISTORIES)
    ])
    assert got.detach().numpy() == pytest.approx(expected.detach().numpy(), abs=2e-5)
    weights = torch.randn(got.shape, generator=torch.Generator().manual_seed(0))
    parameters = [p for p in sharp.model.parameters() if p.requires_grad]
    mine = torch.autograd.grad((got * weights).sum(), parameters)
    theirs = torch.autograd.grad((expected * weights).sum(), parameters)
    for a, b in zip(mine, theirs, strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-3 * float(b.abs().max()) + 1e-6)


def test_sids_of_a_single_level() -> None:
    built = backbones.build(SETTINGS, ["words"], 1, SIZE, seed=1)
    built.model.eval()
    tokens, mask = torch.tensor([[built.bos]]), torch.ones(1, 1, dtype=torch.bool)
    got = log_probabilities(built, tokens, mask, torch.arange(SIZE)[None, :, None])
    assert float(got.exp().sum()) == pytest.approx(1.0, abs=1e-5)
