"""Constrained beam search against exhaustive scoring with plain forwards."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.config import PolicySettings
from tessera.decoding.filters import ItemFilter
from tessera.decoding.forward import Decoder, FusedDecoder, GenericDecoder, Prompts
from tessera.decoding.index import CatalogueIndex
from tessera.decoding.search import CodeHead, Found, beam_search
from tessera.policy import backbone as backbones
from tessera.policy.data import prompts
from tessera.schema import Sizes

SIZE = 6
HYBRID = (2, 5, 14)
"""Sizes of a hybrid catalogue: fewer codes, then more, then the items' own tokens."""
SETTINGS = PolicySettings(hidden=32, layers=2, heads=2, text_vocabulary=300)


def made(sizes: Sizes) -> backbones.Backbone:
    built = backbones.build(SETTINGS, ["words"], 3, sizes, seed=1)
    built.model.eval()
    with torch.no_grad():  # larger weights than at the start of training, so that scores differ clearly
        for parameter in built.model.parameters():
            parameter.mul_(3.0)
    return built


@pytest.fixture(scope="module")
def plain() -> backbones.Backbone:
    return made(SIZE)


@pytest.fixture(scope="module")
def hybrid() -> backbones.Backbone:
    return made(HYBRID)


@pytest.fixture(scope="module", params=["plain", "hybrid"])
def backbone(request: pytest.FixtureRequest) -> backbones.Backbone:
    return request.getfixturevalue(request.param)


@torch.inference_mode()
def exhaustive(backbone: backbones.Backbone, history: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Every item's score by a whole forward of each: no cache, no mask, no trie."""
    tokens = backbone.sid_tokens
    start = torch.tensor([backbone.bos, *tokens[np.arange(3), torch.tensor(codes[history])].flatten().tolist()])
    paths = tokens[np.arange(3), torch.tensor(codes)]
    logits = backbone.model(torch.cat([start.expand(len(codes), -1), paths], dim=1)).logits
    scores = torch.zeros(len(codes))
    for level in (2,) if backbone.hybrid else range(3):
        behind = 0 if backbone.hybrid else level
        logp = logits[:, len(start) - 1 + behind][:, backbone.level_tokens(level)].float().log_softmax(-1)
        scores += logp[np.arange(len(codes)), codes[:, level]]
    return scores.numpy()


def search(
    backbone: backbones.Backbone, codes, histories, k, beams, exclude=None, allow=None, decoder: Decoder | None = None,
    diversity: torch.Tensor | None = None,
) -> Found:
    index = CatalogueIndex.build(codes, backbone.sizes)
    keep = None
    if exclude is not None or allow is not None:
        none = np.empty(0, np.int64)
        keep = ItemFilter.build(index, exclude or [none] * len(histories), allow or [None] * len(histories))
    tokens, mask = prompts(histories, codes, backbone.sid_tokens.numpy(), backbone.bos)
    asked = Prompts(tokens, mask.sum(1), torch.zeros(len(tokens), dtype=torch.int64))
    head = CodeHead.of(backbone)
    decoder = decoder or FusedDecoder(backbone.model)
    return beam_search(decoder, head, index, asked, k=k, beams=beams, keep=keep, diversity=diversity)


def cases(data: st.DataObject, sizes: tuple[int, ...]):
    """A catalogue (a full first prefix, lone items, anything), histories and filters, some of which leave nothing."""
    rows = data.draw(st.lists(st.integers(0, int(np.prod(sizes)) - 1), min_size=1, max_size=14, unique=True))
    codes = np.stack(np.unravel_index(rows, sizes), axis=1)
    if sizes == HYBRID:
        codes[:, 2] = data.draw(st.permutations(range(HYBRID[2])))[: len(codes)]  # everybody's own
    item = st.integers(0, len(codes) - 1)
    drawn = data.draw(st.lists(st.lists(item, min_size=1, max_size=4), min_size=1, max_size=3))
    histories = [np.array(h) for h in drawn]
    exclude = [np.array(sorted(data.draw(st.sets(item))), dtype=np.int64) for _ in histories]
    restrict = [data.draw(st.none() | st.sets(item)) for _ in histories]
    allow = [np.array(sorted(a), dtype=np.int64) if a is not None else None for a in restrict]
    return codes, histories, exclude, allow


@given(st.data())
@settings(max_examples=1000, deadline=None)
def test_a_beam_as_wide_as_the_catalogue_equals_the_oracle(plain: backbones.Backbone, data: st.DataObject) -> None:
    """Item by item, score by score, also for beams wider than the catalogue and filters that leave nothing."""
    compare(plain, data)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_own_tokens_equal_the_oracle(hybrid: backbones.Backbone, data: st.DataObject) -> None:
    compare(hybrid, data)


def compare(backbone: backbones.Backbone, data: st.DataObject) -> None:
    codes, histories, exclude, allow = cases(data, backbone.sizes)
    width = len(codes) + data.draw(st.integers(0, 5))
    k = data.draw(st.integers(1, width))
    found = search(backbone, codes, histories, k, width, exclude, allow)
    for number, history in enumerate(histories):
        scores = exhaustive(backbone, history, codes)
        only = allow[number] if allow[number] is not None else np.arange(len(codes))
        expected = sorted(np.setdiff1d(only, exclude[number]).tolist(), key=lambda i: -scores[i])[:k]
        got = [r for r in found.rows[number].tolist() if r >= 0]
        assert len(got) == len(expected)
        assert len(set(got)) == len(got)
        assert set(got) <= set(only) - set(exclude[number])
        assert found.scores[number][: len(got)].tolist() == pytest.approx([scores[i] for i in got], abs=2e-4)
        assert [scores[i] for i in got] == pytest.approx([scores[i] for i in expected], abs=2e-4)


@given(st.data(), st.floats(0.05, 0.95))
@settings(max_examples=60, deadline=None)
def test_fusion_equals_the_formula(backbone: backbones.Backbone, data: st.DataObject, dial: float) -> None:
    """Prefixes flattened by their spread, items behind them as they were, over the oracle's scores."""
    codes, histories, _, allow = cases(data, backbone.sizes)
    none = [np.empty(0, np.int64)] * len(histories)
    found = search(
        backbone, codes, histories, len(codes), len(codes), none, allow, diversity=torch.full((len(histories),), dial)
    )
    for number, history in enumerate(histories):
        only = allow[number] if allow[number] is not None else np.arange(len(codes))
        scores = exhaustive(backbone, history, codes)
        behind: dict[tuple[int, ...], list[int]] = {}
        for item in only.tolist():
            behind.setdefault(tuple(codes[item, :-1]), []).append(item)
        worth = {prefix: max(scores[items]) for prefix, items in behind.items()}
        spread = float(np.std(list(worth.values()))) if worth else 0.0
        cooled = {prefix: value / (1 + spread * dial / (1 - dial)) for prefix, value in worth.items()}
        total = np.log(np.sum(np.exp(list(cooled.values()))))
        expected = {i: cooled[p] - total + scores[i] - worth[p] for p, items in behind.items() for i in items}
        ranked = zip(found.rows[number].tolist(), found.scores[number].tolist(), strict=True)
        got = {row: score for row, score in ranked if row >= 0}
        assert got == pytest.approx(expected, abs=5e-4)
        assert list(got.values()) == sorted(got.values(), reverse=True)


@given(st.data(), st.integers(1, 6))
@settings(max_examples=60, deadline=None)
def test_a_narrow_beam_equals_plain_beams(backbone: backbones.Backbone, data: st.DataObject, beams: int) -> None:
    """Against prefixes kept in dictionaries, scored from the oracle's model: what is pruned is what should be."""
    codes, histories, _, _ = cases(data, backbone.sizes)
    found = search(backbone, codes, histories, beams, beams)
    for number, history in enumerate(histories):
        kept: dict[tuple[int, ...], float] = {(): 0.0}
        for depth in range(3):
            known = {tuple(code[: depth + 1]) for code in codes.tolist()}
            own = backbone.hybrid and depth == 2  # scored alone, its prefix having said where to look
            step = {
                p: _step(backbone, codes, history, p) + (0.0 if own else kept[p[:-1]]) for p in known if p[:-1] in kept
            }
            kept = dict(sorted(step.items(), key=lambda one: -one[1])[:beams])
        got = [tuple(codes[row].tolist()) for row in found.rows[number].tolist() if row >= 0]
        assert sorted(kept[sid] for sid in got) == pytest.approx(sorted(kept.values()), abs=2e-4)


@torch.inference_mode()
def _step(backbone: backbones.Backbone, codes: np.ndarray, history: np.ndarray, prefix: tuple[int, ...]) -> float:
    tokens, level = backbone.sid_tokens, len(prefix) - 1
    start = [backbone.bos, *tokens[np.arange(3), torch.tensor(codes[history])].flatten().tolist()]
    behind = prefix[:-1] if level < 2 or not backbone.hybrid else ()
    ids = torch.tensor([start + [int(tokens[at, c]) for at, c in enumerate(behind)]])
    return float(backbone.model(ids).logits[0, -1][backbone.level_tokens(level)].float().log_softmax(-1)[prefix[-1]])


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_the_generic_decoder_gives_the_same(backbone: backbones.Backbone, data: st.DataObject) -> None:
    codes, histories, exclude, allow = cases(data, backbone.sizes)
    both = [
        search(backbone, codes, histories, 8, 8, exclude, allow, decoder)
        for decoder in (FusedDecoder(backbone.model), GenericDecoder(backbone.model))
    ]
    assert torch.allclose(both[0].scores, both[1].scores, atol=1e-4)
    assert both[0].rows.shape == both[1].rows.shape


def test_a_filtered_user_still_gets_k_items(backbone: backbones.Backbone) -> None:
    codes = np.stack(np.unravel_index(np.arange(0, np.prod(backbone.sizes), 2), backbone.sizes), axis=1)
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
    codes = np.stack(np.unravel_index(np.arange(0, np.prod(backbone.sizes), 5), backbone.sizes), axis=1)
    histories = [np.array([1]), np.array([2, 3, 4, 5]), np.array([6, 7])]
    together = search(backbone, codes, histories, 10, 10)
    for number, history in enumerate(histories):
        alone = search(backbone, codes, [history], 10, 10)
        assert together.rows[number].tolist() == alone.rows[0].tolist()
        assert together.scores[number].tolist() == pytest.approx(alone.scores[0].tolist(), abs=1e-4)
