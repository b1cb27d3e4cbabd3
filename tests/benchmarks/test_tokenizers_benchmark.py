"""Published SIDs are read as they are written, and items are matched to them by number."""

import gzip
import json
from pathlib import Path

from benchmarks.tokenizers import published


def test_published_sids_by_hand(tmp_path: Path) -> None:
    index = {"0": ["<a_7>", "<b_255>"], "1": ["<a_0>", "<b_12>"], "10": ["<a_3>", "<b_4>"]}
    (tmp_path / "letter.index.json.gz").write_bytes(gzip.compress(json.dumps(index).encode()))
    # Sorted as text, as tables are; ids start at 1, the file at 0.
    row = published(tmp_path, ["1", "11", "2"])[0]
    assert row.name == "published letter"
    assert row.codes.tolist() == [[7, 255], [3, 4], [0, 12]]
    assert row.codebook_size == 256
    assert row.fit_seconds is None
    assert published(tmp_path / "none", ["1"]) == []
