"""Rows of unequal length as two flat arrays, so that thousands of prompts are put together without a loop over them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Ragged:
    """flat: [sum of lengths] int64, the rows one behind the other; lengths: [rows] int64."""

    flat: Ints
    lengths: Ints

    @classmethod
    def of(cls, rows: Iterable[Sequence[int] | NDArray[Any]]) -> "Ragged":
        """From a sequence of rows."""
        arrays = [np.asarray(row, dtype=np.int64) for row in rows]
        flat = np.concatenate(arrays) if arrays else np.empty(0, np.int64)
        return cls(flat, np.array([len(row) for row in arrays], dtype=np.int64))

    @classmethod
    def same(cls, row: Sequence[int], rows: int) -> "Ragged":
        """One row, `rows` times."""
        return cls(np.tile(np.asarray(row, dtype=np.int64), rows), np.full(rows, len(row), dtype=np.int64))

    def __len__(self) -> int:
        return len(self.lengths)

    @cached_property  # small batches are taken from many rows, again and again
    def starts(self) -> Ints:
        """[rows] where each row begins."""
        return np.cumsum(self.lengths) - self.lengths

    @property
    def owner(self) -> Ints:
        """[sum of lengths] the row that each element is of."""
        return np.repeat(np.arange(len(self)), self.lengths)

    @property
    def place(self) -> Ints:
        """[sum of lengths] each element's place in its row."""
        return np.arange(len(self.flat)) - np.repeat(self.starts, self.lengths)

    def rows(self) -> list[Ints]:
        """The rows as arrays of their own."""
        return np.split(self.flat, np.cumsum(self.lengths)[:-1]) if len(self) else []

    def take(self, rows: Ints) -> "Ragged":
        """The rows of these numbers, in their order."""
        return _cut(self.flat, self.starts[rows], self.lengths[rows])

    def first(self, count: int | Ints) -> "Ragged":
        """At most `count` elements of each row, from its beginning."""
        return _cut(self.flat, self.starts, np.minimum(self.lengths, count))

    def last(self, count: int | Ints) -> "Ragged":
        """At most `count` elements of each row, up to its end."""
        kept = np.minimum(self.lengths, count)
        return _cut(self.flat, self.starts + self.lengths - kept, kept)

    def before(self, elements: Ints, count: int) -> "Ragged":
        """For each of these elements, numbers into `flat`, the at most `count` in front of it in its row."""
        kept = np.minimum(self.place[elements], count)
        return _cut(self.flat, elements - kept, kept)

    def merged(self, counts: Ints) -> "Ragged":
        """Fewer, longer rows: the first counts[0] rows make the first, and so on; counts add up to the rows."""
        ends = np.cumsum(counts)
        total = np.concatenate([[0], np.cumsum(self.lengths)])
        return Ragged(self.flat, total[ends] - total[ends - counts])

    def left_padded(self) -> tuple[Tensor, Tensor]:
        """[rows, T] int64, zeros in front of the shorter rows, and mask [rows, T], False on them."""
        width = int(self.lengths.max())
        mask = np.arange(width) >= (width - self.lengths)[:, None]
        padded = np.zeros(mask.shape, np.int64)
        padded[mask] = self.flat
        return torch.from_numpy(padded), torch.from_numpy(mask)


def join(*parts: Ragged) -> Ragged:
    """Row i of the result is row i of each part, one behind the other; all have as many rows."""
    lengths = np.sum([part.lengths for part in parts], axis=0)
    flat = np.empty(int(lengths.sum()), dtype=np.int64)
    begin = np.cumsum(lengths) - lengths
    for part in parts:
        flat[np.repeat(begin, part.lengths) + part.place] = part.flat
        begin = begin + part.lengths
    return Ragged(flat, lengths)


def stack(parts: Sequence[Ragged]) -> Ragged:
    """The rows of the parts, below each other."""
    return Ragged(np.concatenate([p.flat for p in parts]), np.concatenate([p.lengths for p in parts]))


def _cut(flat: Ints, starts: Ints, lengths: Ints) -> Ragged:
    place = np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return Ragged(flat[np.repeat(starts, lengths) + place], lengths)
