"""The catalogue index."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.decoding.index import CatalogueIndex
from tessera.errors import BundleError, InputError

# Sorted: (0,1,2) (0,1,5) (0,3,0) (2,0,7); the rows below are shuffled so that numbers and leaves differ.
CODES = np.array([[0, 3, 0], [0, 1, 5], [2, 0, 7], [0, 1, 2]])


def codes_of(index: CatalogueIndex, depth: int, node: int) -> dict[int, int]:
    codes, child, missing = index.children(depth, torch.tensor([node]))
    allowed = ~missing
    assert codes[0][allowed[0]].tolist() == sorted(codes[0][allowed[0]].tolist())
    return dict(zip(codes[0][allowed[0]].tolist(), child[0][allowed[0]].tolist(), strict=True))


def test_children_of_a_hand_made_catalogue() -> None:
    index = CatalogueIndex.build(CODES, 8)
    assert codes_of(index, 0, 0) == {0: 0, 2: 1}
    assert codes_of(index, 1, 0) == {1: 0, 3: 1}
    assert codes_of(index, 1, 1) == {0: 2}
    assert codes_of(index, 2, 0) == {2: 0, 5: 1}
    assert codes_of(index, 2, 1) == {0: 2}
    assert index.item.tolist() == [3, 1, 0, 2]
    assert index.leaf[torch.tensor([2, 0])].tolist() == [3, 2]
    assert [index.nodes(depth) for depth in range(4)] == [1, 2, 3, 4]


def test_constrained_log_probabilities_of_a_hand_made_catalogue() -> None:
    index = CatalogueIndex.build(CODES, 8)
    logp = torch.arange(16.0).view(1, 2, 8)
    found, codes, child = index.constrain(1, torch.tensor([[0, 1]]), logp)
    gone = -torch.inf
    assert found.tolist() == [[[gone, 1.0, gone, 3.0, gone, gone, gone, gone], [8.0, *[gone] * 7]]]
    assert codes[0, 0].tolist() == list(range(8))
    assert child[0, 0, [1, 3]].tolist() == [0, 1]
    assert child[0, 1, 0] == 2


def test_deep_nodes_list_their_children_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tessera.decoding.index.DENSE", 0)
    index = CatalogueIndex.build(CODES, 8)
    found, codes, child = index.constrain(1, torch.tensor([[0, 1]]), torch.arange(16.0).view(1, 2, 8))
    assert found.tolist() == [[[1.0, 3.0], [8.0, -torch.inf]]]
    assert codes[0, 0].tolist() == [1, 3]
    assert child[0, :, 0].tolist() == [0, 2]


def test_a_table_below_a_depth_without_one_is_that_depths() -> None:
    """401 first codes of 1,024 second ones are too many entries for a table; 500 prefixes of 500 own tokens are not."""
    sizes, rows = (1024, 1024, 500), np.arange(500)
    index = CatalogueIndex.build(np.stack([rows % 401, rows * 2, rows], axis=1), sizes)
    logp = torch.randn(1, 2, 1024, generator=torch.Generator().manual_seed(0))
    nodes = torch.tensor([[0, 400]])
    codes, child, missing = index.children(1, nodes)
    found = index.constrain(1, nodes, logp.clone())
    assert torch.equal(found[0], logp.gather(2, codes).masked_fill(missing, -torch.inf))
    assert torch.equal(found[1], codes)
    assert torch.equal(found[2], child)
    deep = index.constrain(2, torch.tensor([[0, 499]]), torch.zeros(1, 2, 500))
    assert [row.isfinite().nonzero().flatten().tolist() for row in deep[0][0]] == [[0], [400]]


def test_nodes_above_leaves_and_leaves_below_nodes() -> None:
    index = CatalogueIndex.build(CODES, 8)
    assert index.ancestors(1, np.arange(4)).tolist() == [0, 0, 0, 1]
    assert index.ancestors(2, np.arange(4)).tolist() == [0, 0, 1, 2]
    assert index.leaf_count(1, np.array([0, 1])).tolist() == [3, 1]
    assert index.leaf_count(2, np.array([0, 1, 2])).tolist() == [2, 1, 1]
    assert index.leaf_count(3, np.array([3])).tolist() == [1]


@given(st.integers(1, 4), st.integers(2, 20), st.data())
@settings(max_examples=60, deadline=None)
def test_exactly_the_catalogue_can_be_walked(levels: int, size: int, data: st.DataObject) -> None:
    codes = data.draw(
        st.lists(st.tuples(*[st.integers(0, size - 1)] * levels), min_size=1, max_size=60, unique=True).map(np.array)
    )
    index = CatalogueIndex.build(codes, size)
    frontier = {(): 0}
    for depth in range(levels):
        frontier = {
            (*prefix, code): child
            for prefix, node in frontier.items()
            for code, child in codes_of(index, depth, node).items()
        }
    walked = {prefix: int(index.item[leaf]) for prefix, leaf in frontier.items()}
    assert walked == {tuple(row): number for number, row in enumerate(codes.tolist())}


def same(one: CatalogueIndex, other: CatalogueIndex) -> bool:
    flat = zip([one.codes, one.leaf, one.item, *one.code, *one.first],
               [other.codes, other.leaf, other.item, *other.code, *other.first], strict=True)  # fmt: skip
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in flat)


@given(st.integers(1, 4), st.sampled_from([2, 7, 256, 300]), st.data())
@settings(max_examples=60, deadline=None)
def test_an_extended_index_is_the_index_built_at_once(levels: int, size: int, data: st.DataObject) -> None:
    drawn = st.tuples(*[st.integers(0, size - 1)] * levels)
    codes = data.draw(st.lists(drawn, min_size=1, max_size=40, unique=True).map(np.array))
    old = data.draw(st.integers(1, len(codes)))
    extended = CatalogueIndex.build(codes[:old], size).extended(codes[old:])
    assert same(extended, CatalogueIndex.build(codes, size))


def test_a_new_item_must_not_take_a_published_sid() -> None:
    with pytest.raises(InputError, match="0_1_5"):
        CatalogueIndex.build(CODES, 8).extended(np.array([[7, 7, 7], [0, 1, 5]]))


def test_a_saved_index_comes_back(tmp_path: Path) -> None:
    index = CatalogueIndex.build(CODES, 8)
    index.save(tmp_path / "index.safetensors")
    assert same(CatalogueIndex.load(tmp_path / "index.safetensors", 8), index)


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "index.safetensors").write_bytes(b"no index")
    with pytest.raises(BundleError, match="not a saved catalogue index"):
        CatalogueIndex.load(tmp_path / "index.safetensors", 8)


def test_too_deep_for_a_key() -> None:
    with pytest.raises(InputError, match="do not fit an index key"):
        CatalogueIndex.build(np.zeros((1, 8), int), 256)


@pytest.mark.parametrize(
    ("codes", "says"),
    [
        (np.empty((0, 3), int), "at least one item"),
        (np.array([[0, 8]]), "0..7"),
        (np.array([[-1, 0]]), "0..7"),
        (np.array([[1, 2], [1, 2]]), "1_2"),
    ],
)
def test_bad_sids_are_refused(codes: np.ndarray, says: str) -> None:
    with pytest.raises(InputError, match=says):
        CatalogueIndex.build(codes, 8)
