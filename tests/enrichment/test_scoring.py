"""QARM's item score against numbers worked by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.enrichment.scoring import quality_score


def test_hand_worked_score() -> None:
    # (0.9*1 + 0.6*0 + 0.3*1) / (0.9 + 0.6 + 0.3) = 1.2 / 1.8
    assert quality_score([1, 0, 1], [0.9, 0.6, 0.3]) == pytest.approx(2 / 3)


def test_equal_weights_where_confidence_is_missing() -> None:
    assert quality_score([1, 0, 1, 1], [None] * 4) == pytest.approx(0.75)
    # One missing is enough: weighting 0.9 against an unknown would be arbitrary.
    assert quality_score([1, 0], [0.9, None]) == pytest.approx(0.5)
    assert quality_score([1, 0], [0.0, 0.0]) == pytest.approx(0.5)


def test_bad_lengths() -> None:
    for labels, confidences in ([], []), ([1], [0.5, 0.5]):
        with pytest.raises(ValueError):
            quality_score(labels, confidences)


@given(st.lists(st.tuples(st.integers(0, 1), st.none() | st.floats(0, 1)), min_size=1, max_size=8))
def test_score_is_a_mean(pairs: list[tuple[int, float | None]]) -> None:
    labels, confidences = [p[0] for p in pairs], [p[1] for p in pairs]
    score = quality_score(labels, confidences)
    assert min(labels) - 1e-9 <= score <= max(labels) + 1e-9
