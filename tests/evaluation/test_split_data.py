"""The split as arrays."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tessera.errors import InputError
from tessera.evaluation.data import ABSENT, UNKNOWN, read_split
from tessera.schema import SCHEMAS, write_table

ITEMS = ["a", "b", "c", "d", "e"]


def split_file(path: Path, *rows: tuple[list[str], str | None, str | None]) -> Path:
    users: list[dict[str, Any]] = [
        {"user_id": f"u{n}", "train": train, "validation": validation, "test": test}
        for n, (train, validation, test) in enumerate(rows)
    ]
    write_table("splits", pa.Table.from_pylist(users, SCHEMAS["splits"]), path / "splits.parquet")
    return path / "splits.parquet"


def test_numbers_and_cases(tmp_path: Path) -> None:
    """u1 is too short to hold anything out; the test history ends with the validation item, validation's does not."""
    path = split_file(tmp_path, (["a", "c"], "b", "e"), (["d", "a"], None, None), (["e"], "d", "a"))
    split = read_split(path, ITEMS)
    assert split.users == ["u0", "u1", "u2"]
    assert [h.tolist() for h in split.train] == [[0, 2], [3, 0], [4]]
    assert split.validation.tolist() == [1, ABSENT, 3]
    assert split.test.tolist() == [4, ABSENT, 0]
    histories, targets = split.validation_cases()
    assert ([h.tolist() for h in histories], targets.tolist()) == ([[0, 2], [4]], [1, 3])
    histories, targets = split.test_cases()
    assert ([h.tolist() for h in histories], targets.tolist()) == ([[0, 2, 1], [4, 3]], [4, 0])


@pytest.mark.parametrize(
    "row", [(["a", "gone"], "b", "c"), (["a"], "gone", "c"), (["a"], "b", "gone")], ids=["train", "validation", "test"]
)
def test_an_item_without_a_sid_is_refused_or_passed_over(
    row: tuple[list[str], str, str], tmp_path: Path
) -> None:
    path = split_file(tmp_path, (["a", "b"], "c", "d"), row, (["e"], None, None))
    with pytest.raises(InputError, match=r"item 'gone' has no SID; tokenize the catalogue that was split"):
        read_split(path, ITEMS)
    split = read_split(path, ITEMS, allow_unknown=True)
    assert [h.tolist() for h in split.train] == [[0, 1], [0], [4]]
    assert split.validation.tolist() == [2, UNKNOWN if row[1] == "gone" else 1, ABSENT]
    assert split.test.tolist() == [3, UNKNOWN if row[2] == "gone" else 2, ABSENT]
    last = [0] if row[1] == "gone" else [0, 1]  # an unknown validation item does not join the history
    assert [h.tolist() for h in split.test_cases()[0]] == [[0, 1, 2], last]


def test_a_history_of_unknown_items_only_is_empty(tmp_path: Path) -> None:
    path = split_file(tmp_path, (["gone", "lost"], "a", "b"))
    split = read_split(path, ITEMS, allow_unknown=True)
    assert [len(history) for history in split.train] == [0]
    assert [h.tolist() for h in split.test_cases()[0]] == [[0]]


@pytest.mark.parametrize("rows", [[], [(["a", "b"], None, None)]])
def test_nobody_to_evaluate_on(rows: list[Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no user with three or more interactions"):
        read_split(split_file(tmp_path, *rows), ITEMS)
