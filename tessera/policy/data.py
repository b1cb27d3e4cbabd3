"""Purchase histories and task examples as packed training rows, and as prompts."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tessera.policy.ragged import Ints, Ragged, join, stack

IGNORE = -1
TEXT = -1


@dataclass(frozen=True)
class Packed:
    """Several examples a row, none split over two rows.

    tokens, positions, segments: [rows, T] int64; positions restart with each example; segments number the examples,
    0 is padding. targets: [rows, T] int64, what follows: a code, or the token id of a piece of text; IGNORE where
    nothing is to be learned. levels: [rows, T], the level of that code, TEXT for text. tasks: [rows, T], the number of
    the example's task.
    """

    tokens: Tensor
    positions: Tensor
    segments: Tensor
    targets: Tensor
    levels: Tensor
    tasks: Tensor


@dataclass(frozen=True)
class Examples:
    """Whole sequences of tokens, of which the first prompt[i] >= 1 are given and the others are to be written.

    tokens: [n] rows; prompt: [n] int64; task: [n] int64, the number of each example's task in its mixture.
    """

    tokens: Ragged
    prompt: Ints
    task: Ints

    def __len__(self) -> int:
        return len(self.prompt)

    def take(self, rows: Ints) -> "Examples":
        """The examples of these numbers, in their order."""
        return Examples(self.tokens.take(rows), self.prompt[rows], self.task[rows])

    @classmethod
    def stacked(cls, parts: Sequence["Examples"]) -> "Examples":
        """All examples of all parts."""
        tokens = stack([part.tokens for part in parts])
        return cls(tokens, np.concatenate([p.prompt for p in parts]), np.concatenate([p.task for p in parts]))


def windows(histories: Sequence[np.ndarray], longest: int) -> list[np.ndarray]:
    """Cut histories of item numbers into windows of at most `longest`, from the newest backwards.

    A left-over of one item is dropped: without context it would only repeat the prior.
    """
    out = []
    for history in histories:
        for end in range(len(history), 0, -longest):
            window = history[max(0, end - longest) : end]
            if len(window) > 1 or len(history) == 1:
                out.append(window)
    return out


def sid_rows(codes: np.ndarray, sid_tokens: np.ndarray) -> Ragged:
    """One row an item: the tokens of its SID.

    Args:
        codes: [items, L]; sid_tokens: [L, K] token ids, -1 where a level has no such code.
    """
    depth = codes.shape[1]
    return Ragged(sid_tokens[np.arange(depth), codes].ravel().astype(np.int64), np.full(len(codes), depth))


def sequences(histories: Sequence[np.ndarray], sids: Ragged, bos: int) -> Examples:
    """Histories of item numbers as examples of task 0: only the opening token is given, every code is to be written."""
    items = Ragged.of(histories)
    tokens = join(Ragged.same([bos], len(items)), sids.take(items.flat).merged(items.lengths))
    return Examples(tokens, np.ones(len(items), np.int64), np.zeros(len(items), np.int64))


def pack(
    histories: Sequence[np.ndarray], codes: np.ndarray, sid_tokens: np.ndarray, bos: int, row_length: int
) -> Packed:
    """Pack histories, in the order given, into rows of `row_length` tokens.

    Args:
        histories: item numbers a history; codes: [items, L]; sid_tokens: [L, K] token ids.
    """
    return pack_examples(sequences(histories, sid_rows(codes, sid_tokens), bos), sid_tokens, row_length)


def pack_examples(examples: Examples, sid_tokens: np.ndarray, row_length: int) -> Packed:
    """Pack examples, in the order given, into rows of `row_length` tokens; none may be longer.

    Args:
        sid_tokens: [L, K] token ids; any other token of a target is text.
    """
    lengths, flat, owner, position = (
        examples.tokens.lengths, examples.tokens.flat, examples.tokens.owner, examples.tokens.place,
    )
    row_of, start_of = _place(lengths, row_length)
    row, column = row_of[owner], start_of[owner] + position
    shape = (int(row_of[-1]) + 1, row_length)
    tokens, positions, segments, levels, tasks = (np.zeros(shape, np.int64) for _ in range(5))
    targets = np.full(shape, IGNORE, np.int64)
    tokens[row, column], positions[row, column] = flat, position
    segments[row, column], tasks[row, column] = owner + 1, examples.task[owner]
    level, value = _meanings(max(int(flat.max()), int(sid_tokens.max())) + 1, sid_tokens)
    wanted = position >= examples.prompt[owner]
    before = row[wanted], column[wanted] - 1  # the token in front of a target is where it is predicted
    targets[before], levels[before] = value[flat[wanted]], level[flat[wanted]]
    return Packed(*map(torch.from_numpy, (tokens, positions, segments, targets, levels, tasks)))


def _meanings(vocabulary: int, sid_tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each token id its level (TEXT for text), and its code (of text, the id itself)."""
    level, value = np.full(vocabulary, TEXT, np.int64), np.arange(vocabulary)
    levels, codes = np.nonzero(sid_tokens >= 0)
    tokens = sid_tokens[levels, codes]
    level[tokens], value[tokens] = levels, codes
    return level, value


def _place(lengths: np.ndarray, row_length: int) -> tuple[np.ndarray, np.ndarray]:
    """Next-fit: the row and the first column of each history."""
    row_of, start_of = np.empty(len(lengths), np.int64), np.empty(len(lengths), np.int64)
    row = used = 0
    for number, length in enumerate(lengths.tolist()):
        if used + length > row_length:
            row, used = row + 1, 0
        row_of[number], start_of[number] = row, used
        used += length
    return row_of, start_of


def prompts(
    histories: Sequence[np.ndarray], codes: np.ndarray, sid_tokens: np.ndarray, bos: int
) -> tuple[Tensor, Tensor]:
    """`prompt_rows` as a batch: tokens [batch, T] padded on the left, and mask [batch, T], False on padding."""
    return prompt_rows(Ragged.of(histories), codes, sid_tokens, bos).left_padded()


def prompt_rows(histories: Ragged, codes: np.ndarray, sid_tokens: np.ndarray, bos: int) -> Ragged:
    """One row a history: the prompt that asks for its next item, the opening token and then the SID of each item.

    Args:
        histories: rows of item numbers; codes: [items, L]; sid_tokens: [L, K] token ids.
    """
    sids = sid_rows(codes[histories.flat], sid_tokens)  # of these items alone, for a request comes with few
    return join(Ragged.same([bos], len(histories)), sids.merged(histories.lengths))
