"""Cases, their batches, and rollouts: which items come, from which prompts, at what cost."""

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tessera.config import PolicySettings
from tessera.decoding.forward import FusedDecoder, Prompts
from tessera.decoding.index import CatalogueIndex
from tessera.decoding.recommender import Recommender
from tessera.policy import backbone as backbones
from tessera.policy.cases import NextItemCases, next_item_cases
from tessera.policy.ragged import Ragged
from tessera.policy.rollouts import roll_out, rows_of

SIZE = 6
CODES = np.stack(np.unravel_index(np.random.default_rng(0).choice(SIZE**3, 20, replace=False), (SIZE,) * 3), axis=1)
INDEX = CatalogueIndex.build(CODES, SIZE)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def backbone() -> backbones.Backbone:
    built = backbones.build(PolicySettings(hidden=32, layers=2, heads=2, text_vocabulary=300), ["w"], 3, SIZE, seed=1)
    built.model.eval()
    with torch.no_grad():
        for parameter in built.model.parameters():
            parameter.mul_(3.0)
    return built


def test_next_item_cases_by_hand() -> None:
    """Items 0 and 1 have tokens (10, 20) and (11, 21); 7 opens; of a longer history the last two items are read."""
    codes, tokens = np.array([[0, 0], [1, 1]]), np.array([[10, 11], [20, 21]])
    cases = next_item_cases([np.array([0, 1, 1, 0]), np.array([1])], codes, tokens, 7, 2)
    assert [prompt.tolist() for prompt in cases.prompts.rows()] == [
        [7, 10, 20], [7, 10, 20, 11, 21], [7, 11, 21, 11, 21],
    ]
    assert cases.targets.tolist() == [1, 1, 0]


def test_a_batch_is_padded_on_the_left() -> None:
    cases = NextItemCases(Ragged.of([[7, 1, 2], [7], [7, 3]]), np.array([4, 5, 6]))
    tokens, mask, targets = cases.batch(np.array([2, 0]), CPU)
    assert tokens.tolist() == [[0, 7, 3], [7, 1, 2]]
    assert mask.tolist() == [[False, True, True], [True, True, True]]
    assert targets.tolist() == [6, 4]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=60), st.integers(1, 3), st.integers(0, 70), st.integers(1, 7))
def test_every_pass_takes_each_case_once(lengths: list[int], epochs: int, count: int, batch: int) -> None:
    cases = NextItemCases(Ragged.of([[0] * n for n in lengths]), np.zeros(len(lengths), np.int64))
    order = cases.order(epochs, count, batch, seed=0)
    taken = min(count, len(lengths)) or len(lengths)
    assert all(1 <= len(one) <= batch for one in order)
    steps = len(order) // epochs
    assert steps == -(-taken // batch)
    for start in range(0, len(order), steps):
        one_pass = np.concatenate(order[start : start + steps])
        assert len(one_pass) == len(set(one_pass.tolist())) == taken


def test_batches_hold_prompts_of_like_length_in_any_order() -> None:
    lengths = np.random.default_rng(0).integers(1, 60, 4000)
    cases = NextItemCases(Ragged.of([[0] * n for n in lengths]), np.zeros(4000, np.int64))
    order = cases.order(1, 0, 16, seed=0)
    assert np.mean([np.ptp(lengths[one]) for one in order]) < 10  # of 59
    assert abs(np.corrcoef([lengths[one].mean() for one in order], np.arange(len(order)))[0, 1]) < 0.2
    assert not np.array_equal(order[0], cases.order(1, 0, 16, seed=1)[0])


def test_rows_of_all_sids_there_could_be() -> None:
    every = torch.tensor(list(product(range(SIZE), repeat=3)))
    row = {tuple(codes): n for n, codes in enumerate(CODES.tolist())}
    assert rows_of(INDEX, every).tolist() == [row.get(tuple(codes), -1) for codes in every.tolist()]


def asked(backbone: backbones.Backbone) -> tuple[torch.Tensor, torch.Tensor]:
    histories = [np.array([0, 1, 2, 3]), np.array([5, 6])]
    cases = next_item_cases(histories, CODES, backbone.sid_tokens.numpy(), backbone.bos, 9)
    return cases.batch(np.arange(4), CPU)[:2]


def test_beam_rollouts_are_what_the_policy_recommends(backbone: backbones.Backbone, make_sids) -> None:
    tokens, mask = asked(backbone)
    got = roll_out(backbone, INDEX, tokens, mask, 5, "beam", 1.0, torch.Generator())
    histories = [np.array([0]), np.array([0, 1]), np.array([0, 1, 2]), np.array([5])]
    expected = Recommender(backbone, make_sids(CODES), SIZE, 9).rank(histories, 5, 5).rows
    assert torch.equal(got.rows, expected)
    assert torch.equal(got.codes, torch.from_numpy(CODES)[expected])


def test_a_beam_has_no_more_rollouts_than_items(backbone: backbones.Backbone) -> None:
    got = roll_out(backbone, INDEX, *asked(backbone), 50, "beam", 1.0, torch.Generator())
    assert sorted(got.rows[0].tolist()) == list(range(20))


@pytest.mark.parametrize("kind", ["sampled", "unconstrained"])
def test_sampled_rollouts_name_the_items_of_their_codes(backbone: backbones.Backbone, kind) -> None:
    """Constrained ones are always items; most of 216 SIDs are not among 20, so unconstrained ones also miss."""
    got = roll_out(backbone, INDEX, *asked(backbone), 200, kind, 3.0, torch.Generator().manual_seed(0))
    item = got.rows >= 0
    assert torch.equal(got.codes[item], torch.from_numpy(CODES)[got.rows[item]])
    assert item.all() == (kind == "sampled")
    assert item.any()
    assert torch.equal(rows_of(INDEX, got.codes), got.rows)


@pytest.mark.parametrize("kind", ["beam", "sampled", "unconstrained"])
def test_a_prompt_runs_once_for_its_group(backbone: backbones.Backbone, monkeypatch, kind) -> None:
    seen = []
    prefill = FusedDecoder.prefill

    def counted(self: FusedDecoder, prompts: Prompts, cache) -> torch.Tensor:
        seen.append(prompts.tokens.shape)
        return prefill(self, prompts, cache)

    monkeypatch.setattr(FusedDecoder, "prefill", counted)
    tokens, mask = asked(backbone)
    roll_out(backbone, INDEX, tokens, mask, 16, kind, 1.0, torch.Generator())
    assert seen == [tokens.shape]
