"""The paired bootstrap against what can be worked out by hand."""

import numpy as np
import pytest

from tessera.evaluation.significance import paired_bootstrap


def test_a_system_is_not_better_than_itself() -> None:
    scores = np.array([1.0, 0.0, 0.5])
    same = paired_bootstrap(scores, scores)
    assert (same.difference, same.low, same.high, same.p) == (0.0, 0.0, 0.0, 1.0)


def test_better_in_every_case_is_as_sure_as_the_draws_allow() -> None:
    found = paired_bootstrap(np.full(50, 0.7), np.full(50, 0.2), draws=999)
    assert found.difference == pytest.approx(0.5)
    assert found.low == pytest.approx(0.5)
    assert found.p == pytest.approx(2 / 1000)


def test_deviation_is_that_of_the_mean() -> None:
    """100 cases of +1 and 60 of -1: the mean is 0.25 and its deviation sqrt((1 - 0.25^2) / 160)."""
    difference = np.r_[np.ones(100), -np.ones(60)]
    found = paired_bootstrap(difference, np.zeros(160), draws=20_000)
    deviation = np.sqrt((1 - 0.25**2) / 160)
    assert found.difference == pytest.approx(0.25)
    assert (found.low, found.high) == pytest.approx((0.25 - 1.96 * deviation, 0.25 + 1.96 * deviation), abs=0.01)
    assert 0.0005 < found.p < 0.004  # z = 3.26


def test_sides_are_exchangeable() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random(80), rng.random(80)
    one, other = paired_bootstrap(a, b), paired_bootstrap(b, a)
    assert one.difference == pytest.approx(-other.difference)
    assert one.p == pytest.approx(other.p, abs=0.03)


def test_pairing_sees_what_unpaired_scores_hide() -> None:
    """A small gain in every case is certain, however much the cases differ among themselves."""
    b = np.random.default_rng(1).normal(0, 10, 200)
    assert paired_bootstrap(b + 0.01, b).p < 0.001


def test_no_difference_is_found_where_there_is_none() -> None:
    """Under the null, p below 0.05 is as rare as it says."""
    rng = np.random.default_rng(2)
    found = [paired_bootstrap(rng.normal(size=60), rng.normal(size=60), draws=500, seed=s).p for s in range(200)]
    assert np.mean(np.array(found) < 0.05) < 0.11


@pytest.mark.parametrize(("a", "b"), [(np.zeros(0), np.zeros(0)), (np.zeros(2), np.zeros(3))])
def test_other_cases_cannot_be_compared(a: np.ndarray, b: np.ndarray) -> None:
    with pytest.raises(ValueError, match="same cases"):
        paired_bootstrap(a, b)
