from pathlib import Path

import pyarrow as pa
import pytest

from feature_repo import offline
from feature_repo.tables import VIEWS
from tessera.errors import InputError

SCHEMA = VIEWS["sid_items"]


def view(rows: dict[str, list[str]], version: str) -> pa.Table:
    return pa.Table.from_pylist(
        [{"sid": s, "item_ids": i, "tokenizer_version": version} for s, i in rows.items()], schema=SCHEMA
    )


def test_compare_writes_what_changed_and_buries_what_is_gone() -> None:
    before = view({"1_1": ["a"], "1_2": ["b"], "1_3": ["c"]}, "old")
    now = view({"1_1": ["a"], "1_2": ["x"], "1_4": ["d"]}, "old")
    change = offline.compare(before, now, "old")
    assert change.rows.to_pylist() == [
        {"sid": "1_2", "item_ids": ["x"], "tokenizer_version": "old"},
        {"sid": "1_4", "item_ids": ["d"], "tokenizer_version": "old"},
        {"sid": "1_3", "item_ids": [], "tokenizer_version": "old"},
    ]
    assert change.tombstones == 1


def test_a_tombstone_is_written_once_and_a_key_can_come_back() -> None:
    first, second = view({"1_1": ["a"]}, "old"), view({"2_2": ["a"]}, "new")
    buried = offline.compare(first, second, "new").published
    assert offline.compare(buried, second, "newer").rows.num_rows == 0
    back = offline.compare(buried, first, "old")
    assert {row["sid"]: row["item_ids"] for row in back.rows.to_pylist()} == {"1_1": ["a"], "2_2": []}


def test_missing_confidences_are_not_taken_for_a_change() -> None:
    schema = VIEWS["item_enrichment"]
    row = {"item_id": "a", "title": "t", "brand": "", "categories": [], "confidences": [float("nan")]}
    table = pa.Table.from_pylist([row], schema=schema)
    assert offline.compare(table, table, "v").rows.num_rows == 0


def test_latest_takes_the_later_time_and_then_the_later_row() -> None:
    log = pa.concat_tables([
        offline.stamped(view({"1_1": ["third"]}, "v"), 30),
        offline.stamped(view({"1_1": ["first"], "1_2": ["only"]}, "v"), 10),
        offline.stamped(view({"1_1": ["fourth"]}, "v"), 30),
        offline.stamped(view({"1_1": ["second"]}, "v"), 20),
    ])  # fmt: skip
    found = {row["sid"]: row["item_ids"] for row in offline.latest(log).to_pylist()}
    assert found == {"1_1": ["fourth"], "1_2": ["only"]}


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "offline" / "sid_items.parquet"
    offline.append(path, view({"1_1": ["a"]}, "v"))
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(InputError, match=r"sid_items\.parquet cannot be read"):
        offline.read(path, SCHEMA)
