"""The report's numbers, by hand."""

import math

import numpy as np
import pytest

from tessera.tokenizer.report import collision_rate, mean_cosine, perplexity, utilisation

CODES = np.array([[0, 0], [0, 0], [1, 0], [1, 1]])


def test_utilisation_is_the_share_of_used_codes() -> None:
    assert utilisation(CODES, 8) == [0.25, 0.25]


def test_perplexity_is_the_exponential_of_the_entropy() -> None:
    # Level 1: two codes, a half each: 2. Level 2: 3/4 and 1/4: exp(0.75 ln(4/3) + 0.25 ln 4) = 1.7548.
    uniform, skewed = perplexity(CODES)
    assert uniform == pytest.approx(2.0)
    assert skewed == pytest.approx(math.exp(0.75 * math.log(4 / 3) + 0.25 * math.log(4)))
    assert skewed == pytest.approx(1.7548, abs=1e-4)
    assert perplexity(np.zeros((5, 1), int)) == [1.0]


def test_collision_rate_counts_every_item_that_shares() -> None:
    # 0_0 twice: two of four items share a SID (and not one of four, as counting repeats would say).
    assert collision_rate(CODES) == 0.5
    assert collision_rate(np.array([[0, 1], [1, 0]])) == 0.0
    assert collision_rate(np.array([[0, 1]] * 3)) == 1.0


def test_mean_cosine() -> None:
    x, y = np.array([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]]), np.array([[3.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    assert mean_cosine(x, y) == pytest.approx((1 + 0 + 0) / 3)
