"""Reuse of prompts: the same answers as from scratch, within the budget."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.decoding.prefixes import PrefixCache
from tessera.decoding.recommender import Recommender

ITEM = st.integers(0, 39)


@pytest.fixture(scope="module")
def scratch(policy_bundle: Path) -> Recommender:
    return Recommender.load(policy_bundle)


@pytest.fixture(scope="module")
def reusing(policy_bundle: Path) -> Recommender:
    return Recommender.load(policy_bundle, prefix_cache_mb=1)


@given(st.lists(st.lists(ITEM, min_size=1, max_size=8), min_size=1, max_size=4), st.integers(0, 3))
@settings(max_examples=150, deadline=None)
def test_the_answer_is_that_from_scratch(
    scratch: Recommender, reusing: Recommender, drawn: list[list[int]], grown: int
) -> None:
    """Batches of new, known, grown and repeated histories, some longer than what the policy reads."""
    histories = [np.array(one) for one in drawn]
    histories += [np.append(histories[0], np.arange(grown)), histories[0]]
    for batch in (histories[:1], histories):
        expected, found = scratch.rank(batch, 10, 20), reusing.rank(batch, 10, 20)
        assert found.scores.numpy() == pytest.approx(expected.scores.numpy(), abs=1e-5)
        gaps = np.diff(expected.scores.numpy(), axis=1) < -1e-4
        clear = np.pad(gaps, ((0, 0), (1, 0)), constant_values=True) & np.pad(gaps, ((0, 0), (0, 1)))
        assert (found.rows.numpy() == expected.rows.numpy())[clear].all()


def test_hits_and_misses_are_counted(policy_bundle: Path) -> None:
    recommender = Recommender.load(policy_bundle, prefix_cache_mb=1)
    for history in ([1, 2], [1, 2, 3], [1, 2, 3], [4], [2, 3]):
        recommender.rank([np.array(history)], 5, 5)
    stats = recommender.statistics
    assert (stats.prefix_hits, stats.prefix_misses) == (2, 3)
    assert (stats.requests, stats.decodes, stats.beams, stats.invalid) == (5, 5, 25, 0)
    assert stats.decode_s > 0


def test_the_least_recently_used_go_first(policy_bundle: Path) -> None:
    recommender = Recommender.load(policy_bundle, prefix_cache_mb=1)
    recommender.rank([np.array([1])], 5, 5)
    cache = recommender._prefixes
    size = cache.used
    cache.budget = 3 * size
    for item in (2, 3):
        recommender.rank([np.array([item])], 5, 5)
    recommender.rank([np.array([1])], 5, 5)  # 2 is now the oldest
    recommender.rank([np.array([4])], 5, 5)
    assert len(cache) == 3
    assert cache.used == 3 * size
    held = [cache.find([np.array([item])])[0] is not None for item in (1, 2, 3, 4)]
    assert held == [True, False, True, True]


def test_without_a_budget_nothing_is_kept(policy_bundle: Path) -> None:
    recommender = Recommender.load(policy_bundle)
    recommender.rank([np.array([1, 2])], 5, 5)
    assert len(recommender._prefixes) == 0
    assert recommender.statistics.prefix_misses == 0
    assert isinstance(recommender._prefixes, PrefixCache)


def test_threads_that_share_a_recommender_get_the_answers_of_one(policy_bundle: Path, scratch: Recommender) -> None:
    shared = Recommender.load(policy_bundle, prefix_cache_mb=1)
    shared._prefixes.budget = 20_000  # a few prompts: the threads drop each other's
    rng = np.random.default_rng(0)
    asked = [rng.choice(scratch.item_ids, rng.integers(1, 6)).tolist() for _ in range(200)]
    wanted = [scratch.recommend([history], 5)[0] for history in asked]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda history: shared.recommend([history], 5)[0], asked))
    assert [[one.item_id for one in answer] for answer in found] == [[one.item_id for one in one] for one in wanted]
    assert shared.statistics.requests == shared.statistics.decodes == 200
    assert shared._prefixes.used == sum(one.both.nbytes for one in shared._prefixes._entries.values()) <= 20_000
