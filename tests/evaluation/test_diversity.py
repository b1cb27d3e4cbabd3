"""Diversity measures, each worked out by hand on a catalogue of four items."""

import numpy as np
import pytest

from tessera.evaluation.diversity import categories_per_list, category_coverage, gini, head_share, popularity_share

ROWS = np.array([[0, 1, 2], [0, 1, -1]])
CATEGORY = np.array([0, 0, 1, -1])


def test_the_head_is_what_was_bought_most() -> None:
    head = popularity_share([np.array([3, 3, 1]), np.array([3, 0])], items=4, share=0.5)
    assert head.tolist() == [True, False, False, True]  # of 0 and 1, bought once each, the first


def test_head_share_counts_places() -> None:
    assert head_share(ROWS, np.array([True, False, False, False])) == pytest.approx(2 / 5)
    assert head_share(ROWS, np.array([False, True, False, False]), k=1) == 0


def test_gini_of_equal_and_of_single() -> None:
    assert gini(np.array([[0, 1], [2, 3]]), items=4) == pytest.approx(0)
    assert gini(np.array([[0], [0]]), items=4) == pytest.approx(3 / 4)


def test_gini_by_hand() -> None:
    """Counts 0, 1, 2, 2: (-3 * 0 - 1 * 1 + 1 * 2 + 3 * 2) / (4 * 5) = 7 / 20."""
    assert gini(ROWS, items=4) == pytest.approx(7 / 20)


def test_categories_of_a_list_and_of_all() -> None:
    assert categories_per_list(ROWS, CATEGORY) == pytest.approx((2 + 1) / 2)
    assert category_coverage(ROWS, CATEGORY) == 1
    assert category_coverage(ROWS, CATEGORY, k=2) == 1 / 2


def test_items_of_no_category_count_for_none() -> None:
    assert categories_per_list(np.array([[3, 0]]), CATEGORY) == 1
    assert category_coverage(np.array([[3]]), CATEGORY) == 0
