"""The leave-last-out split as arrays of item numbers."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tessera.errors import InputError
from tessera.schema import read_table

ABSENT, UNKNOWN = -1, -2


@dataclass(frozen=True)
class Split:
    """One row a user, in the order of the splits table.

    train: item numbers in time order; validation, test: [users] item number, ABSENT for users too short to hold one
    out, UNKNOWN for an item that the policy has no SID for.
    """

    users: list[str]
    train: list[np.ndarray]
    validation: np.ndarray
    test: np.ndarray

    def validation_cases(self) -> tuple[list[np.ndarray], np.ndarray]:
        """Histories and held-out items for validation: the training items predict the item after them."""
        chosen = np.flatnonzero(self.validation != ABSENT)
        return [self.train[i] for i in chosen], self.validation[chosen]

    def test_cases(self) -> tuple[list[np.ndarray], np.ndarray]:
        """Histories and held-out items for the test: the validation item joins the history."""
        chosen = np.flatnonzero(self.test != ABSENT)
        last = self.validation
        return [np.append(self.train[i], last[i : i + 1][last[i : i + 1] >= 0]) for i in chosen], self.test[chosen]


def read_split(path: Path, item_ids: list[str], *, allow_unknown: bool = False) -> Split:
    """Read a splits table and number its items as `item_ids` does.

    Args:
        allow_unknown: pass over items without a number in histories and keep them as UNKNOWN targets, which no ranking
            hits: the way to measure an older policy on a newer catalogue.

    Raises:
        InputError: an item that has no SID, or no user to hold an item out for.
    """
    table = read_table("splits", path).combine_chunks()
    numbers = pa.array(item_ids, pa.string())
    train = table["train"].combine_chunks()
    lengths = pc.list_value_length(train).to_numpy(zero_copy_only=False).astype(np.int64)
    flat = _numbered(train.flatten(), numbers)
    validation, test = (_numbered(table[name].combine_chunks(), numbers) for name in ("validation", "test"))
    if not allow_unknown:
        for column, values in ((train.flatten(), flat), (table["validation"], validation), (table["test"], test)):
            if (values == UNKNOWN).any():
                item = column[int(np.argmax(values == UNKNOWN))].as_py()
                raise InputError(f"{path}: item '{item}' has no SID; tokenize the catalogue that was split.")
    if not (test != ABSENT).any():
        raise InputError(f"{path} holds no user with three or more interactions; nothing can be evaluated on it.")
    histories = [one[one >= 0] for one in np.split(flat, np.cumsum(lengths)[:-1])]
    return Split(table["user_id"].to_pylist(), histories, validation, test)


def _numbered(ids: pa.Array, numbers: pa.Array) -> np.ndarray:
    found = pc.index_in(ids, numbers).fill_null(UNKNOWN)
    return pc.if_else(ids.is_valid(), found, ABSENT).to_numpy(zero_copy_only=False).astype(np.int64)
