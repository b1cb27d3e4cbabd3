"""Bounded clusters: an example by hand, the bound as a property, nearness to the optimal assignment."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.config import TokenizerSettings
from tessera.tokenizer.balanced import assign, balanced_codes, balanced_kmeans, capacity, prices
from tessera.tokenizer.bundle import Tokenizer
from tessera.tokenizer.inputs import read_inputs
from tessera.tokenizer.kmeans import kmeans, squared_distances


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_code_takes_the_cheapest_and_the_others_go_on() -> None:
    # Items 0, 1 and 2 all ask code 0, which has room for two: the dearest, item 1, goes to code 1.
    cost = torch.tensor([[1.0, 9.0], [3.0, 9.0], [2.0, 9.0], [9.0, 1.0]])
    assert assign(cost, 2).tolist() == [0, 1, 0, 1]
    assert assign(cost, 3).tolist() == [0, 0, 0, 1]


def test_four_points_in_two_clusters_by_hand() -> None:
    # Free: {0, 1, 2} and {10}. At most two each: {0, 1} and {2, 10}, with means 0.5 and 6.
    x = torch.tensor([[0.0], [1.0], [2.0], [10.0]])
    assert sorted(kmeans(x, 2, generator()).squeeze(1).tolist()) == pytest.approx([1.0, 10.0])
    centres = balanced_kmeans(x, 2, generator())
    assert sorted(centres.squeeze(1).tolist()) == pytest.approx([0.5, 6.0])


def test_prices_make_a_crowded_code_dearer() -> None:
    # Three items at code 0 and one at code 1: code 1 must be discounted against code 0.
    discount = prices(squared_distances(torch.tensor([[0.0], [0.1], [0.2], [1.0]]), torch.tensor([[0.0], [1.0]])))
    assert discount[1] > discount[0]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 60), st.integers(1, 12))
def test_no_code_holds_more_than_its_share(seed: int, items: int, size: int) -> None:
    x = torch.randn(items, 3, generator=generator(seed)).exp()
    codes = balanced_codes(x, kmeans(x, size, generator(seed)))
    assert torch.bincount(codes, minlength=size).max() <= capacity(items, size)


def test_the_assignment_is_near_the_optimal_one() -> None:
    optimize = pytest.importorskip("scipy.optimize")
    x = torch.randn(120, 2, generator=generator(3)).exp()
    centres = kmeans(x, 8, generator(3))
    cost = squared_distances(x, centres)
    rows, columns = optimize.linear_sum_assignment(cost.repeat_interleave(15, 1).numpy())
    best = cost[rows, columns // 15].sum().item()
    found = cost.gather(1, balanced_codes(x, centres)[:, None]).sum().item()
    greedy = cost.gather(1, assign(cost, 15)[:, None]).sum().item()
    assert best <= found * (1 + 1e-5)
    assert found < 1.05 * best
    assert found < greedy


def test_uneven_families_spread_over_all_codes(
    make_embeddings: Callable, fit_table: Callable, small: TokenizerSettings
) -> None:
    """Three of four items are near twins: k-means gives them few first codes, the bound gives them three of four."""
    table = make_embeddings(items=320)
    rows = [row for row in range(320) if row % 8 == 0 or row % 24 == 1]  # 40 of one family, a few of another
    table = table.take(rows)
    free, bounded = (
        fit_table(table, method, replace(small, method=method)) for method in ("rqkmeans", "rqkmeans_balanced")
    )
    assert min(bounded["perplexity"]) > 7.5
    assert free["perplexity"][0] < bounded["perplexity"][0]
    tokenizer: Any = Tokenizer.load(bounded["bundle"])
    placed = tokenizer.place(read_inputs(table))
    assert max(np.bincount(level).max() for level in placed.T) <= capacity(len(rows), 8)
