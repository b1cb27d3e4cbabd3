"""Metrics and baselines, worked by hand."""

import numpy as np
import pytest

from tessera.evaluation.baselines import popularity
from tessera.evaluation.metrics import MISSED, coverage, hit_rate, ndcg, ranking_metrics, ranks, without_bought

ROWS = np.array([[3, 1, 2, 0], [0, 5, 4, 1], [7, -1, -1, -1], [2, 6, 9, 8]])
TARGETS = np.array([3, 4, 5, 8])


def test_ranks() -> None:
    assert ranks(ROWS, TARGETS).tolist() == [0, 2, MISSED, 3]


def test_what_was_bought_is_left_out_and_the_rest_moves_up() -> None:
    """Item 9 of the third history is in no answer; a longer history takes all of an answer."""
    histories = [np.array([1, 3]), np.array([2]), np.array([9, 0]), np.array([9, 8, 6, 2, 6])]
    assert without_bought(ROWS, histories).tolist() == [[2, 0, -1, -1], [0, 5, 4, 1], [7, -1, -1, -1], [-1] * 4]
    assert without_bought(ROWS, [np.empty(0, np.int64)] * 4).tolist() == ROWS.tolist()


def test_an_unknown_item_is_never_found() -> None:
    assert ranks(ROWS, np.array([-2] * 4)).tolist() == [MISSED] * 4


def test_hit_rate_and_ndcg() -> None:
    """Ranks 0, 2, none and 3 contribute 1, 1/log2(4) = 1/2, 0 and 1/log2(5)."""
    rank = ranks(ROWS, TARGETS)
    assert [hit_rate(rank, k) for k in (1, 2, 3, 4)] == [0.25, 0.25, 0.5, 0.75]
    assert ndcg(rank, 1) == pytest.approx(0.25)
    assert ndcg(rank, 3) == pytest.approx(1.5 / 4)
    assert ndcg(rank, 4) == pytest.approx((1.5 + 1 / np.log2(5)) / 4)


def test_a_miss_stays_one_where_k_is_longer_than_the_answers() -> None:
    rank = ranks(ROWS, TARGETS)
    assert hit_rate(rank, 20) == 0.75
    assert ndcg(rank, 20) == ndcg(rank, 4)
    assert ranking_metrics(rank, (4, 20)) == {
        "hr@4": 0.75, "ndcg@4": ndcg(rank, 4), "hr@20": 0.75, "ndcg@20": ndcg(rank, 4)
    }


def test_coverage_counts_items_and_no_empty_places() -> None:
    assert coverage(ROWS, items=10, k=1) == pytest.approx(0.4)  # 3, 0, 7 and 2
    assert coverage(ROWS, items=10, k=2) == pytest.approx(0.7)  # and 1, 5 and 6
    assert coverage(ROWS, items=10) == 1.0


def test_popularity() -> None:
    """Counts 2, 3, 0, 3 and 1; equal ones in the order of their numbers."""
    train = [np.array([1, 3, 1]), np.array([0, 3, 1, 4]), np.array([0, 3]), np.empty(0, np.int64)]
    assert popularity(train, items=5, k=4).tolist() == [1, 3, 0, 4]
    assert popularity(train, items=5, k=5).tolist() == [1, 3, 0, 4, 2]
    many = np.arange(100)[::-1].copy()  # enough for an unstable sort to show
    assert popularity([many, np.array([50])], items=100, k=100).tolist() == [50, *range(50), *range(51, 100)]
