"""Hybrid tokens: who gets which, what a new item starts from, and that starting rows keep the vectors' geometry."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.errors import InputError
from tessera.schema import SCHEMAS, conform
from tessera.tokenizer.hybrid import hybrid_table, hybrid_tokens, initial_rows, mates_mean, tokens_of


def table(codes: dict[str, list[int]]) -> pa.Table:
    fixed = {"moved": False, "tokenizer_version": "tok-1"}
    rows = [{"item_id": i, "sid": "_".join(map(str, c)), "codes": c, **fixed} for i, c in codes.items()]
    return pa.Table.from_pylist(rows, SCHEMAS["sids"])


def test_an_item_has_a_token_of_its_own_behind_its_prefix() -> None:
    """Tokens follow the ids, rows and published names stay as they are."""
    sids = table({"c": [1, 2, 3], "a": [1, 2, 0], "b": [0, 5, 7]})
    tokens = hybrid_tokens(sids, 2)
    assert tokens.item_ids == ["a", "b", "c"]
    assert tokens.prefix.tolist() == [[1, 2], [0, 5], [1, 2]]
    hybrid = conform("sids", hybrid_table(sids, tokens))
    assert hybrid["codes"].to_pylist() == [[1, 2, 2], [1, 2, 0], [0, 5, 1]]
    assert hybrid.drop_columns("codes").equals(sids.drop_columns("codes"))
    again = tokens_of(hybrid)
    assert again.item_ids == tokens.item_ids
    assert again.prefix.tolist() == tokens.prefix.tolist()


def test_known_items_keep_their_tokens() -> None:
    """"c" is gone and keeps its number; "aa" is new and comes last, though its id sorts second."""
    before = hybrid_tokens(table({"a": [1, 2, 0], "b": [0, 5, 7], "c": [1, 2, 3]}), 2)
    newer = table({"a": [1, 2, 0], "aa": [3, 3, 3], "b": [0, 5, 7]})
    tokens = hybrid_tokens(newer, 2, before)
    assert tokens.item_ids == ["a", "b", "c", "aa"]
    assert hybrid_table(newer, tokens)["codes"].to_pylist() == [[1, 2, 0], [3, 3, 3], [0, 5, 1]]


@pytest.mark.parametrize("depth", [0, 4])
def test_a_prefix_that_sids_do_not_have_is_refused(depth: int) -> None:
    with pytest.raises(InputError, match=f"a prefix of 1 to 3 codes, not {depth}"):
        hybrid_tokens(table({"a": [1, 2, 0]}), depth)
    before = hybrid_tokens(table({"a": [1, 2, 0]}), 1)
    with pytest.raises(InputError, match="prefixes of 1 codes, not 2"):
        hybrid_tokens(table({"a": [1, 2, 0]}), 2, before)


def test_a_new_item_starts_as_the_mean_of_its_nearest_mates() -> None:
    """Known rows 1, 3, 8; new: with both of prefix (0, 0), with all of (0, .), with nobody (the mean of all)."""
    prefix = np.array([[0, 0], [0, 0], [0, 1], [0, 0], [0, 2], [4, 0]])
    assert mates_mean(prefix, np.array([[1.0], [3.0], [8.0]])).tolist() == [[2.0], [4.0], [4.0]]
    assert mates_mean(prefix[:3], np.array([[1.0], [3.0], [8.0]])).shape == (0, 1)


@given(st.integers(1, 6), st.integers(1, 9), st.integers(0, 5))
@settings(max_examples=30, deadline=None)
def test_starting_rows_have_the_spread_and_the_geometry(dim: int, more: int, seed: int) -> None:
    """Where the backbone is at least as wide as the vectors, distances keep their ratios exactly."""
    vectors = np.random.default_rng(seed).normal(size=(12, dim))
    rows = initial_rows(vectors, dim + more - 1, 0.02, seed)
    assert np.sqrt(np.square(rows).mean()) == pytest.approx(0.02, rel=1e-5)
    apart, before = (np.linalg.norm(x[:, None] - x[None], axis=-1) for x in (rows, vectors))
    assert apart / apart.max() == pytest.approx(before / before.max(), abs=1e-5)


def test_starting_rows_of_vectors_that_do_not_differ_are_zero() -> None:
    assert not initial_rows(np.ones((3, 4)), 2, 0.02, 0).any()
