"""Sampled SIDs against the distribution that plain forwards give."""

from itertools import product

import numpy as np
import pytest
import torch

from tessera.config import PolicySettings
from tessera.decoding.forward import FusedDecoder, GenericDecoder, Prompts
from tessera.decoding.index import CatalogueIndex
from tessera.decoding.search import CodeHead, sample
from tessera.policy import backbone as backbones
from tessera.policy.data import prompts

SIZE, PROMPTS, COUNT = 3, 100, 200
DRAWS = PROMPTS * COUNT
ALL = np.array(list(product(range(SIZE), repeat=3)))
CODES = ALL[[0, 1, 5, 9, 10, 13, 26]]  # 000 001 012 100 101 111 222
HISTORIES = [np.array([0, 4, 6]), np.array([2])]


@pytest.fixture(scope="module")
def backbone() -> backbones.Backbone:
    settings = PolicySettings(hidden=32, layers=2, heads=2, text_vocabulary=300)
    built = backbones.build(settings, ["words"], 3, SIZE, seed=1)
    built.model.eval()
    with torch.no_grad():
        for parameter in built.model.parameters():
            parameter.mul_(3.0)
    return built


def drawn(
    backbone: backbones.Backbone, count: int, *, temperature: float = 1.0, constrained: bool = True, seed: int = 0,
    decoder: FusedDecoder | GenericDecoder | None = None, repeated: int = 1,
) -> np.ndarray:
    """[histories, repeated * count, levels]"""
    histories = [history for history in HISTORIES for _ in range(repeated)]
    tokens, mask = prompts(histories, CODES, backbone.sid_tokens.numpy(), backbone.bos)
    asked = Prompts(tokens, mask.sum(1), torch.zeros(len(tokens), dtype=torch.int64))
    codes = sample(
        decoder or FusedDecoder(backbone.model), CodeHead.of(backbone),
        CatalogueIndex.build(CODES, SIZE), asked, count=count, temperature=temperature, constrained=constrained,
        generator=torch.Generator().manual_seed(seed),
    )
    return codes.numpy().reshape(len(HISTORIES), -1, 3)


@torch.inference_mode()
def probabilities(
    backbone: backbones.Backbone, history: np.ndarray, allowed: np.ndarray, temperature: float
) -> dict[tuple[int, ...], float]:
    """p of every SID of `allowed`: at each prefix a softmax over the codes that lead to one of them."""
    tokens, out = backbone.sid_tokens, {}
    prompt = [backbone.bos, *tokens[np.arange(3), torch.tensor(CODES[history])].flatten().tolist()]
    for sid in allowed.tolist():
        logits = backbone.model(torch.tensor([prompt + tokens[np.arange(3), sid].tolist()])).logits[0]
        chance = 1.0
        for at in range(3):
            legal = sorted({one[at] for one in allowed.tolist() if one[:at] == sid[:at]})
            p = (logits[len(prompt) - 1 + at][tokens[at][legal]].log_softmax(-1) / temperature).softmax(-1)
            chance *= float(p[legal.index(sid[at])])
        out[tuple(sid)] = chance
    return out


@pytest.mark.parametrize(
    ("constrained", "temperature"), [(True, 1.0), (True, 2.5), (False, 1.0)], ids=["constrained", "hot", "free"]
)
def test_sids_come_as_often_as_they_should(
    backbone: backbones.Backbone, constrained: bool, temperature: float
) -> None:
    """Each share is within four standard errors of its probability, and none is drawn that must not be."""
    allowed = CODES if constrained else ALL
    got = drawn(backbone, COUNT, temperature=temperature, constrained=constrained, repeated=PROMPTS)
    for number, history in enumerate(HISTORIES):
        expected = probabilities(backbone, history, allowed, temperature)
        assert sum(expected.values()) == pytest.approx(1, abs=1e-4)
        found, count = np.unique(got[number], axis=0, return_counts=True)
        share = dict(zip(map(tuple, found.tolist()), count / DRAWS, strict=True))
        assert set(share) <= set(expected)
        for sid, chance in expected.items():
            assert share.get(sid, 0) == pytest.approx(chance, abs=4 * (chance * (1 - chance) / DRAWS) ** 0.5 + 1e-3)


def test_the_seed_decides(backbone: backbones.Backbone) -> None:
    assert np.array_equal(drawn(backbone, 50), drawn(backbone, 50))
    assert not np.array_equal(drawn(backbone, 50), drawn(backbone, 50, seed=1))


def test_both_decoders_draw_the_same(backbone: backbones.Backbone) -> None:
    assert np.array_equal(drawn(backbone, 50), drawn(backbone, 50, decoder=GenericDecoder(backbone.model)))
