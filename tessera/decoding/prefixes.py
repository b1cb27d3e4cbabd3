"""Keys and values of recent users' prompts, so that a returning user's prompt costs only the new items.

A prompt is a prefix of the same user's next one as long as the policy still reads the whole history; once the history
is longer than that, its first item falls out, all positions move, and the prompt is computed anew.
"""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from tessera.decoding.forward import KeyValues


@dataclass(frozen=True)
class Entry:
    """Keys and values [layers, tokens, 2 * heads, head size] of one prompt."""

    both: Tensor

    @property
    def tokens(self) -> int:
        """Length of the prompt."""
        return self.both.shape[1]


class PrefixCache:
    """Least recently used prompts within a budget of bytes; may be used by several threads."""

    def __init__(self, budget: int) -> None:
        self.budget, self.used = budget, 0
        self._entries: OrderedDict[bytes, Entry] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, histories: Sequence[np.ndarray]) -> list[Entry | None]:
        """For each history of item numbers the entry of its longest known prefix."""
        with self._lock:
            return [self._longest(np.ascontiguousarray(one, dtype=np.int64)) for one in histories]

    def _longest(self, history: np.ndarray) -> Entry | None:
        key = history.tobytes()
        for end in range(len(key), 0, -history.itemsize):
            if (entry := self._entries.get(key[:end])) is not None:
                self._entries.move_to_end(key[:end])
                return entry
        return None

    def restore(
        self, entries: Sequence[Entry | None], known: Tensor, length: Tensor, width: int, cache: KeyValues
    ) -> None:
        """Write the first `known` tokens of each prompt into a cache whose prompts end at column `width`."""
        for row, (entry, count, tokens) in enumerate(zip(entries, known.tolist(), length.tolist(), strict=True)):
            if entry is not None:
                place = slice(width - tokens, width - tokens + count)
                cache.both[:, row, place] = entry.both[:, :count]

    def store(self, histories: Sequence[np.ndarray], length: Tensor, width: int, cache: KeyValues) -> None:
        """Keep the prompts of a searched cache, dropping the least recently used beyond the budget."""
        for row, (history, tokens) in enumerate(zip(histories, length.tolist(), strict=True)):
            key = np.ascontiguousarray(history, dtype=np.int64).tobytes()
            if not key or key in self._entries:
                continue
            place = slice(width - tokens, width)
            entry = Entry(cache.both[:, row, place].clone())
            with self._lock:
                if key not in self._entries:  # another thread may have answered the same user
                    self._entries[key] = entry
                    self.used += entry.both.nbytes
                while self.used > self.budget:
                    _, old = self._entries.popitem(last=False)
                    self.used -= old.both.nbytes
