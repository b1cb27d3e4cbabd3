"""The catalogue index."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.decoding.index import CatalogueIndex
from tessera.errors import InputError

# Sorted: (0,1,2) (0,1,5) (0,3,0) (2,0,7); the rows below are shuffled so that numbers and leaves differ.
CODES = np.array([[0, 3, 0], [0, 1, 5], [2, 0, 7], [0, 1, 2]])


def codes_of(index: CatalogueIndex, depth: int, node: int) -> dict[int, int]:
    allowed, child = index.children(depth, torch.tensor([node]))
    return {int(c): int(child[0, c]) for c in allowed[0].nonzero().flatten()}


def test_children_of_a_hand_made_catalogue() -> None:
    index = CatalogueIndex.build(CODES, 8)
    assert codes_of(index, 0, 0) == {0: 0, 2: 1}
    assert codes_of(index, 1, 0) == {1: 0, 3: 1}
    assert codes_of(index, 1, 1) == {0: 2}
    assert codes_of(index, 2, 0) == {2: 0, 5: 1}
    assert codes_of(index, 2, 1) == {0: 2}
    assert index.rows.tolist() == [3, 1, 0, 2]
    assert index.leaves_of(np.array([2, 0])).tolist() == [2, 3]


def test_leaf_counts_below_nodes() -> None:
    index = CatalogueIndex.build(CODES, 8)
    inside, total = index.count_in(1, torch.tensor([[0, 1]]), torch.tensor([[1, 3, 4, 4]]))
    assert inside.tolist() == [[1, 1]]
    assert total.tolist() == [[3, 1]]


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
    walked = {prefix: int(index.rows[leaf]) for prefix, leaf in frontier.items()}
    assert walked == {tuple(row): number for number, row in enumerate(codes.tolist())}


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
