"""Histories as training rows and prompts, worked by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.policy.data import IGNORE, pack, prompts, windows

# Two levels of three codes; token ids chosen so that a token tells its level and code.
SID_TOKENS = np.array([[10, 11, 12], [20, 21, 22]])
CODES = np.array([[1, 0], [0, 2], [2, 1]])
BOS = 5


def test_two_histories_in_one_row() -> None:
    packed = pack([np.array([0, 1]), np.array([2])], CODES, SID_TOKENS, BOS, row_length=9)
    assert packed.tokens.tolist() == [[5, 11, 20, 10, 22, 5, 12, 21, 0]]
    assert packed.positions.tolist() == [[0, 1, 2, 3, 4, 0, 1, 2, 0]]
    assert packed.segments.tolist() == [[1, 1, 1, 1, 1, 2, 2, 2, 0]]
    assert packed.targets.tolist() == [[1, 0, 0, 2, IGNORE, 2, 1, IGNORE, IGNORE]]
    levels, targets = packed.levels[0].numpy(), packed.targets[0].numpy()
    assert levels[targets != IGNORE].tolist() == [0, 1, 0, 1, 0, 1]


def test_next_fit_opens_a_row_and_does_not_go_back() -> None:
    """Lengths 5, 7, 3 and 5 in rows of 8: the third would fit beside the first, but that row is closed."""
    two, three, one = np.array([0, 1]), np.array([0, 1, 2]), np.array([2])
    packed = pack([two, three, one, two], CODES, SID_TOKENS, BOS, row_length=8)
    assert packed.segments.tolist() == [
        [1, 1, 1, 1, 1, 0, 0, 0],
        [2, 2, 2, 2, 2, 2, 2, 0],
        [3, 3, 3, 4, 4, 4, 4, 4],
    ]
    assert packed.tokens[2].tolist() == [5, 12, 21, 5, 11, 20, 10, 22]


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5), min_size=1, max_size=30), st.integers(11, 40))
@settings(max_examples=150, deadline=None)
def test_packing_loses_no_target_and_splits_no_history(histories: list[list[int]], row_length: int) -> None:
    packed = pack([np.array(h) for h in histories], CODES, SID_TOKENS, BOS, row_length)
    segments = packed.segments.numpy()
    for number, history in enumerate(histories, 1):
        row, column = np.nonzero(segments == number)
        codes = CODES[history].ravel().tolist()
        assert len(set(row.tolist())) == 1
        assert column.tolist() == list(range(column[0], column[0] + len(codes) + 1))
        assert packed.positions[row, column].tolist() == list(range(len(codes) + 1))
        assert packed.targets[row, column].tolist() == [*codes, IGNORE]
        assert packed.levels[row, column].tolist()[:-1] == [0, 1] * len(history)
        wanted = [int(SID_TOKENS[place % 2, code]) for place, code in enumerate(codes)]
        assert packed.tokens[row, column].tolist() == [BOS, *wanted]
    assert (packed.targets.numpy()[segments == 0] == IGNORE).all()
    assert int((packed.targets != IGNORE).sum()) == 2 * sum(map(len, histories))


@pytest.mark.parametrize(
    ("length", "longest", "expected"),
    [
        (0, 3, []),
        (1, 3, [[0]]),
        (3, 3, [[0, 1, 2]]),
        (4, 3, [[1, 2, 3]]),  # the left-over of one is dropped
        (5, 3, [[2, 3, 4], [0, 1]]),
        (7, 3, [[4, 5, 6], [1, 2, 3]]),
    ],
)
def test_windows_count_from_the_newest(length: int, longest: int, expected: list[list[int]]) -> None:
    assert [w.tolist() for w in windows([np.arange(length)], longest)] == expected


def test_prompts_are_padded_on_the_left() -> None:
    nothing = np.empty(0, np.int64)
    tokens, mask = prompts([np.array([0, 1]), nothing, np.array([2])], CODES, SID_TOKENS, BOS)
    assert mask.tolist() == [
        [True, True, True, True, True],
        [False, False, False, False, True],
        [False, False, True, True, True],
    ]
    assert [row[seen].tolist() for row, seen in zip(tokens, mask, strict=True)] == [
        [5, 11, 20, 10, 22],
        [5],
        [5, 12, 21],
    ]


def test_prompts_of_empty_histories_alone() -> None:
    tokens, mask = prompts([np.empty(0, np.int64)] * 2, CODES, SID_TOKENS, BOS)
    assert tokens.tolist() == [[BOS], [BOS]]
    assert mask.tolist() == [[True], [True]]
