"""Adaptive probabilistic fusion: the formula by hand, its ends, and what the dial does to answers."""

import math
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.config import PolicySettings
from tessera.decoding.fusion import HOTTEST, fused, inverse_temperature
from tessera.decoding.recommender import Recommender
from tessera.errors import InputError
from tessera.evaluation.diversity import category_coverage
from tessera.evaluation.metrics import hit_rate, ranks
from tessera.policy import backbone as backbones
from tessera.policy.data import pack
from tessera.policy.sft import sid_loss
from tessera.schema import SCHEMAS

NEVER = -math.inf


def test_by_hand() -> None:
    """Prefixes A with items of -1.5 and -2.5, B with -3.5 and -3.6: worth -1.5 and -3.5, which spread by 1.

    At the middle T = 1 + 1 x 0.5 / 0.5 = 2 makes -0.75 and -1.75 of them, and with the softmax -0.313 and -1.313. At
    the diversity end both come near -0.693, so that B's second item, 0.1 behind its first, passes A's, 1 behind.
    """
    scores = torch.tensor([[[-1.5, -2.5, NEVER], [-3.5, NEVER, -3.6], [NEVER, NEVER, NEVER]]])
    middle = fused(scores, torch.tensor([0.5]))[0]
    assert middle[:2].flatten().tolist() == pytest.approx(
        [-0.313262, -1.313262, NEVER, -1.313262, NEVER, -1.413262], abs=1e-5
    )
    end = fused(scores, torch.tensor([1.0]))[0]
    assert end[:2].flatten().tolist() == pytest.approx(
        [-0.692148, -1.692148, NEVER, -0.694148, NEVER, -0.794148], abs=1e-5
    )
    assert (end[2] == NEVER).all()


def test_temperature_by_hand() -> None:
    """Prefixes of -2 and -8 spread by 3: T = 1 + 3 x 0.5 / 0.5 = 4, and 1 + 3 x 0.2 / 0.8 = 1.75."""
    prefix = torch.tensor([[-2.0, -8.0, NEVER]]).expand(3, -1)
    got = inverse_temperature(prefix, torch.tensor([0.0, 0.5, 0.2]))
    assert got.tolist() == pytest.approx([1.0, 1 / 4, 1 / 1.75])
    assert inverse_temperature(prefix, torch.ones(3)).tolist() == pytest.approx([1 / HOTTEST] * 3)
    assert inverse_temperature(prefix[:, :1], torch.tensor([0.0, 0.5, 1.0])).tolist() == [1.0, 1.0, 1.0]


LOG_P = st.lists(st.lists(st.floats(-60, -1, width=16), min_size=2, max_size=2), min_size=1, max_size=8)


@given(LOG_P, st.floats(0, 1), st.floats(0, 1))
@settings(max_examples=100, deadline=None)
def test_the_dial_flattens_prefixes_and_nothing_within(values: list[list[float]], one: float, other: float) -> None:
    scores = torch.tensor([values])
    assert fused(scores, torch.zeros(1)).equal(scores)  # exactly
    little, much = (fused(scores, torch.tensor([dial]))[0] for dial in sorted((one, other)))
    spans = [float(got.amax(1).max() - got.amax(1).min()) for got in (scores[0], little, much)]
    assert spans[2] <= spans[1] + 1e-3 <= spans[0] + 2e-3
    for got in (little, much):
        assert (got[:, 0] - got[:, 1]).tolist() == pytest.approx((scores[0, :, 0] - scores[0, :, 1]).tolist(), abs=1e-3)


def test_what_no_beam_found_stays_unfound() -> None:
    scores = torch.tensor([[[NEVER, NEVER], [NEVER, NEVER]], [[NEVER, -1.0], [NEVER, NEVER]]])
    for dial in (0.0, 0.5, 1.0):
        got = fused(scores, torch.full((2,), dial))
        assert not got.isnan().any()
        assert (got == NEVER).tolist() == (scores == NEVER).tolist()


@pytest.fixture(scope="module")
def shop() -> tuple[Recommender, list[np.ndarray], np.ndarray]:
    """A policy that was trained for a moment on users who keep to the items of one first code, mostly."""
    rng = np.random.default_rng(0)
    codes = np.stack(np.unravel_index(rng.choice(6**3, 60, replace=False), (6, 6, 6)), axis=1)
    own = [np.flatnonzero(codes[:, 0] == first) for first in range(6)]
    taste = rng.integers(0, 6, 1000)
    histories = [
        np.array([rng.choice(own[t]) if rng.random() < 0.9 else rng.integers(60) for _ in range(6)]) for t in taste
    ]
    plain = PolicySettings(hidden=32, layers=2, heads=2, text_vocabulary=300, dropout=0.0)
    backbone = backbones.build(plain, ["words"], 3, 6, 0)
    packed = pack(histories[:160], codes, backbone.sid_tokens.numpy(), backbone.bos, 114)
    optimizer = torch.optim.AdamW(backbone.model.parameters(), lr=3e-3)
    for _ in range(40):
        optimizer.zero_grad()
        sid_loss(backbone, packed).backward()
        optimizer.step()
    backbone.model.eval()
    fixed = {"moved": False, "tokenizer_version": "tok-1"}
    rows = [{"item_id": f"item-{n}", "sid": str(c), "codes": c, **fixed} for n, c in enumerate(codes.tolist())]
    recommender = Recommender(backbone, pa.Table.from_pylist(rows, SCHEMAS["sids"]), 6, 20)
    return recommender, [h[:-1] for h in histories[160:]], np.array([h[-1] for h in histories[160:]])


def test_from_accuracy_to_diversity(shop: tuple[Recommender, list[np.ndarray], np.ndarray]) -> None:
    """Along the dial hits fall and lists hold more of the categories, here the first codes."""
    recommender, histories, targets = shop
    category = recommender.codes[:, 0].astype(np.int64)
    hits, different, covered = [], [], []
    for dial in (0.0, 0.25, 0.5, 0.75, 1.0):
        rows = recommender.rank_all(histories, 5, 60, 64, diversity=dial)
        assert len(np.unique(rows[0])) == 5
        hits.append(hit_rate(ranks(rows, targets), 5))
        different.append(float(np.mean([len(np.unique(category[row])) for row in rows])))
        # All lists together hold every category at any dial; those of a few users do not.
        covered.append(float(np.mean([category_coverage(rows[i : i + 3], category, 5) for i in range(0, 300, 3)])))
    # Neighbouring settings may differ by chance, two hits of 840, and by how a processor rounds.
    assert all(later <= earlier + 2.5 / len(targets) for earlier, later in pairwise(hits))
    assert hits[0] > hits[-1]
    for varied in (different, covered):
        assert varied == sorted(varied)
        assert varied[-1] > varied[0]


def test_the_accuracy_end_is_the_plain_search(shop: tuple[Recommender, list[np.ndarray], np.ndarray]) -> None:
    """Bit for bit, and the neighbours in a batch keep their own dial."""
    recommender, histories, _ = shop
    ids = [[recommender.item_ids[row] for row in history] for history in histories[:4]]
    plain = recommender.recommend(ids, 8)
    mixed = recommender.recommend(ids, 8, diversity=[0.0, 0.9, 0.0, 1.0])
    assert [mixed[0], mixed[2]] == [plain[0], plain[2]]
    assert mixed[3] == recommender.recommend(ids, 8, diversity=1.0)[3] != plain[3]


def test_a_filter_holds_at_every_dial(shop: tuple[Recommender, list[np.ndarray], np.ndarray]) -> None:
    recommender, _, _ = shop
    only = recommender.item_ids[10:13]
    found = recommender.recommend([[recommender.item_ids[0]]], 5, allow=[only], diversity=1.0)[0]
    assert {one.item_id for one in found} == set(only)
    assert all(math.isfinite(one.score) for one in found)


@pytest.mark.parametrize(
    ("dial", "says"), [(1.1, "between 0"), (-0.1, "between 0"), (math.nan, "between 0"), ([0.1, 0.2], "2 values of")]
)
def test_a_dial_outside_is_refused(shop: tuple[Recommender, list[np.ndarray], np.ndarray], dial, says: str) -> None:
    recommender, _, _ = shop
    with pytest.raises(InputError, match=says):
        recommender.recommend([[recommender.item_ids[0]]], 5, diversity=dial)
