"""Ragged rows against plain lists."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.policy.ragged import Ragged, join, stack

ROWS = st.lists(st.lists(st.integers(0, 99), max_size=5), max_size=8)


def lists(ragged: Ragged) -> list[list[int]]:
    assert len(ragged.flat) == ragged.lengths.sum()
    return [row.tolist() for row in ragged.rows()]


@given(ROWS, st.data())
@settings(max_examples=100, deadline=None)
def test_rows_are_taken_cut_and_merged_like_lists(rows: list[list[int]], data: st.DataObject) -> None:
    ragged = Ragged.of(rows)
    assert lists(ragged) == rows
    count = data.draw(st.integers(0, 6))
    assert lists(ragged.first(count)) == [row[:count] for row in rows]
    assert lists(ragged.last(count)) == [row[max(0, len(row) - count) :] for row in rows]
    numbers = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=9)) if rows else []
    assert lists(ragged.take(np.array(numbers, dtype=np.int64))) == [rows[n] for n in numbers]
    every = np.arange(len(ragged.flat))
    assert lists(ragged.before(every, count)) == [row[max(0, n - count) : n] for row in rows for n in range(len(row))]
    split = data.draw(st.integers(0, len(rows)))
    merged = ragged.merged(np.array([split, 0, len(rows) - split]))
    parts = rows[:split], [], rows[split:]
    assert lists(merged) == [[element for row in part for element in row] for part in parts]
    assert ragged.owner.tolist() == [n for n, row in enumerate(rows) for _ in row]
    assert ragged.place.tolist() == [place for row in rows for place in range(len(row))]


@given(st.lists(st.tuples(*[st.lists(st.integers(0, 99), max_size=4)] * 3), max_size=6))
@settings(max_examples=100, deadline=None)
def test_join_and_stack(rows: list[tuple[list[int], list[int], list[int]]]) -> None:
    parts = [Ragged.of([row[n] for row in rows]) for n in range(3)]
    assert lists(join(*parts)) == [a + b + c for a, b, c in rows]
    assert lists(stack(parts)) == [row[n] for n in range(3) for row in rows]


def test_a_limit_of_its_own_for_each_row() -> None:
    ragged = Ragged.of([[1, 2, 3], [4, 5], []])
    assert lists(ragged.first(np.array([1, 9, 2]))) == [[1], [4, 5], []]
    assert lists(Ragged.same([7, 8], 2)) == [[7, 8], [7, 8]]


def test_padding_stands_on_the_left() -> None:
    padded, mask = Ragged.of([[1, 2, 3], [], [4, 5]]).left_padded()
    assert padded.tolist() == [[1, 2, 3], [0, 0, 0], [0, 4, 5]]
    assert mask.tolist() == [[True] * 3, [False] * 3, [False, True, True]]
