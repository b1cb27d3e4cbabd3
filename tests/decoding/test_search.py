"""Constrained beam search against exhaustive scoring with plain forwards."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.config import PolicySettings
from tessera.decoding.index import CatalogueIndex
from tessera.decoding.search import ItemFilter, beam_search
from tessera.policy import backbone as backbones
from tessera.policy.data import prompts

SIZE = 6
SETTINGS = PolicySettings(hidden=32, layers=2, heads=2, text_vocabulary=300)


@pytest.fixture(scope="module")
def backbone() -> backbones.Backbone:
    built = backbones.build(SETTINGS, ["words"], 3, SIZE, seed=1)
    built.model.eval()
    with torch.no_grad():  # larger weights than at the start of training, so that scores differ clearly
        for parameter in built.model.parameters():
            parameter.mul_(3.0)
    return built


@torch.inference_mode()
def exhaustive(backbone: backbones.Backbone, history: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """log p of every item by one whole forward each: no cache, no mask, no trie."""
    tokens = backbone.sid_tokens
    scores = np.zeros(len(codes))
    start = [backbone.bos] + tokens[np.arange(3), torch.tensor(codes[history])].flatten().tolist()
    for item, code in enumerate(codes):
        ids = torch.tensor([start + tokens[np.arange(3), torch.tensor(code)].tolist()])
        logits = backbone.model(ids).logits[0]
        for level in range(3):
            logp = logits[len(start) - 1 + level][tokens[level]].float().log_softmax(-1)
            scores[item] += float(logp[code[level]])
    return scores


def search(backbone, codes, histories, k, beams, exclude=None, allow=None):
    index = CatalogueIndex.build(codes, SIZE)
    keep = None
    if exclude is not None or allow is not None:
        none = np.empty(0, np.int64)
        keep = ItemFilter.build(index, exclude or [none] * len(histories), allow or [None] * len(histories))
    tokens, mask = prompts(histories, codes, backbone.sid_tokens.numpy(), backbone.bos)
    return beam_search(backbone.model, backbone.sid_tokens, index, tokens, mask, k=k, beams=beams, keep=keep)


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_a_beam_as_wide_as_the_catalogue_equals_the_oracle(backbone: backbones.Backbone, data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.integers(0, SIZE**3 - 1), min_size=1, max_size=12, unique=True))
    codes = np.stack(np.unravel_index(rows, (SIZE,) * 3), axis=1)
    item = st.integers(0, len(codes) - 1)
    drawn = data.draw(st.lists(st.lists(item, min_size=1, max_size=4), min_size=1, max_size=3))
    histories = [np.array(h) for h in drawn]
    exclude = [np.array(sorted(data.draw(st.sets(item))), dtype=np.int64) for _ in histories]
    restrict = [data.draw(st.none() | st.sets(item)) for _ in histories]
    allow = [
        np.setdiff1d(np.array(sorted(a), dtype=np.int64), e) if a is not None else None
        for a, e in zip(restrict, exclude, strict=True)
    ]
    found = search(backbone, codes, histories, len(codes), len(codes), exclude, allow)
    for number, history in enumerate(histories):
        scores = exhaustive(backbone, history, codes)
        only = allow[number]
        candidates = only if only is not None else np.setdiff1d(np.arange(len(codes)), exclude[number])
        expected = sorted(candidates.tolist(), key=lambda i: -scores[i])
        got = [r for r in found.rows[number].tolist() if r >= 0]
        assert sorted(got) == sorted(expected)
        assert found.scores[number][: len(got)].tolist() == pytest.approx([scores[i] for i in got], abs=2e-4)
        assert [scores[i] for i in got] == pytest.approx([scores[i] for i in expected], abs=2e-4)


def test_a_filtered_user_still_gets_k_items(backbone: backbones.Backbone) -> None:
    codes = np.stack(np.unravel_index(np.arange(0, SIZE**3, 2), (SIZE,) * 3), axis=1)
    everything = search(backbone, codes, [np.array([0])], len(codes), len(codes)).rows[0].numpy()
    best = everything[:60]
    found = search(backbone, codes, [np.array([0])], 10, 10, exclude=[np.sort(best)])
    rows = found.rows[0].numpy()
    assert (rows >= 0).all()
    assert not set(rows) & set(best)


def test_nothing_is_left_when_the_filter_leaves_nothing(backbone: backbones.Backbone) -> None:
    codes = np.array([[0, 0, 0], [1, 1, 1]])
    found = search(backbone, codes, [np.array([0])], 2, 2, exclude=[np.array([0, 1])])
    assert (found.rows == -1).all()


def test_equal_scores_keep_the_order_of_codes() -> None:
    flat = backbones.build(SETTINGS, ["words"], 3, SIZE, seed=1)
    with torch.no_grad():
        flat.model.get_input_embeddings().weight.zero_()
    codes = np.array([[4, 0, 0], [1, 5, 2], [1, 2, 3], [0, 0, 1]])
    found = search(flat, codes, [np.array([0])], 4, 4)
    assert found.rows[0].tolist() == [3, 2, 1, 0]
    assert found.scores[0].tolist() == pytest.approx([-3 * np.log(SIZE)] * 4, abs=1e-5)


def test_a_batch_of_unequal_histories_equals_one_by_one(backbone: backbones.Backbone) -> None:
    codes = np.stack(np.unravel_index(np.arange(0, SIZE**3, 5), (SIZE,) * 3), axis=1)
    histories = [np.array([1]), np.array([2, 3, 4, 5]), np.array([6, 7])]
    together = search(backbone, codes, histories, 10, 10)
    for number, history in enumerate(histories):
        alone = search(backbone, codes, [history], 10, 10)
        assert together.rows[number].tolist() == alone.rows[0].tolist()
        assert together.scores[number].tolist() == pytest.approx(alone.scores[0].tolist(), abs=1e-4)
