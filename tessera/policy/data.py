"""Purchase histories as packed training rows, and as prompts."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

IGNORE = -1


@dataclass(frozen=True)
class Packed:
    """Several histories a row, none split over two rows.

    tokens, positions, segments: [rows, T] int64; positions restart with each history; segments number the histories,
    0 is padding. targets: [rows, T] int64, the code that follows, IGNORE where none does. levels: [rows, T], the level
    of that code.
    """

    tokens: Tensor
    positions: Tensor
    segments: Tensor
    targets: Tensor
    levels: Tensor


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


def pack(
    histories: Sequence[np.ndarray], codes: np.ndarray, sid_tokens: np.ndarray, bos: int, row_length: int
) -> Packed:
    """Pack histories, in the order given, into rows of `row_length` tokens.

    Args:
        histories: item numbers a history; codes: [items, L]; sid_tokens: [L, K] token ids.
    """
    depth = codes.shape[1]
    lengths = np.array([len(h) * depth + 1 for h in histories])
    row_of, start_of = _place(lengths, row_length)
    shape = (int(row_of[-1]) + 1, row_length)
    flat = np.concatenate(histories)
    item_codes = codes[flat]
    item_tokens = sid_tokens[np.arange(depth), item_codes]

    owner = np.repeat(np.arange(len(lengths)), lengths)
    position = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    row, column = row_of[owner], start_of[owner] + position
    is_code = position > 0
    tokens, segments = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    positions, levels = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    targets = np.full(shape, IGNORE, np.int64)
    tokens[row, column] = bos
    tokens[row[is_code], column[is_code]] = item_tokens.ravel()
    targets[row[is_code], column[is_code] - 1] = item_codes.ravel()
    positions[row, column] = position
    levels[row, column] = position % depth
    segments[row, column] = owner + 1
    return Packed(*map(torch.from_numpy, (tokens, positions, segments, targets, levels)))


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
    """Prompts that ask for the next item: the opening token, then the codes of each history.

    Returns:
        tokens [batch, T] padded on the left, and mask [batch, T], False on padding.
    """
    depth = codes.shape[1]
    lengths = np.array([len(h) * depth + 1 for h in histories])
    width = int(lengths.max())
    mask = np.arange(width)[None, :] >= (width - lengths)[:, None]
    tokens = np.full(mask.shape, bos, np.int64)
    is_code = mask.copy()
    is_code[np.arange(len(lengths)), width - lengths] = False
    item_codes = codes[np.concatenate(histories)] if lengths.sum() > len(lengths) else np.empty((0, depth), np.int64)
    tokens[is_code] = sid_tokens[np.arange(depth), item_codes].ravel()
    return torch.from_numpy(tokens), torch.from_numpy(mask)
