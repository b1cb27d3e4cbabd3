"""The parts of the chain that are measured at growing sizes do what they are named for, at a small one."""

from pathlib import Path

from benchmarks import scaling
from tessera.catalog.ledger import Ledger
from tessera.schema import read_table

ITEMS = 300


def test_every_part_works_on_what_the_one_before_left(tmp_path: Path) -> None:
    scaling.source(tmp_path, ITEMS)
    for name in ("ingest", "ledger_write", "ledger_read", "tokenize", "append", "index"):
        scaling.PARTS[name](tmp_path)
    assert read_table("items", tmp_path / "catalogue" / "items.parquet").num_rows == ITEMS
    known = Ledger(f"sqlite:///{tmp_path / 'catalogue.db'}")
    assert list(known.lookup("caption", "random", "none", "v1", {"i0000007": "i0000007"})) == ["i0000007"]
    sids = read_table("sids", tmp_path / "sids.parquet")
    assert len(set(sids["sid"].to_pylist())) == ITEMS


def test_a_part_is_measured_in_a_process_of_its_own(tmp_path: Path) -> None:
    seconds, memory = scaling.measured(_nothing, tmp_path)
    assert 0 <= seconds < 60
    assert 0.01 < memory < 10


def _nothing(folder: Path) -> None:
    assert folder.is_dir()
