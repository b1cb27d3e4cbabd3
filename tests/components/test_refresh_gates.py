"""The gates of a refresh: limits are shares of the catalogue that it will publish, not of the few rows that it made."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from kfp.dsl import HTML, Artifact, Dataset

from components.gates.component import gate_captions, gate_intents
from tessera.files import read_json
from tessera.schema import SCHEMAS, write_table

PUBLISHED = 40
MADE_BY = {"provider": "openai", "model": "m", "prompt_version": "v1", "status": "ok", "reason": None}
FAILED = {"status": "failed", "reason": "refused by the endpoint"}
Rows = dict[str, list[dict[str, Any]]]


def good(numbers: range) -> Rows:
    """Rows of every table for some items."""
    rows: Rows = {name: [] for name in ("items", "captions", "intents", "quality")}
    for number in numbers:
        item = {"item_id": f"item-{number:02d}"}
        rows["items"].append(
            item | {"title": f"Ball {number}", "description": "", "brand": "", "categories": ["balls"],
                    "attributes": [], "image": f"{number}.png", "image_status": "ok"}
        )  # fmt: skip
        rows["captions"].append(item | MADE_BY | {"caption": f"A ball with the number {number} on a green lawn."})
        descriptors = [{"text": "ball games", "confidence": 1.0}, {"text": "weekends with friends", "confidence": 1.0}]
        rows["intents"].append(
            item | MADE_BY | {"surface": ["ball"], "motives": ["to play"], "descriptors": descriptors}
        )
        rows["quality"].append(item | MADE_BY | {"labels": [1, 0], "score": 0.5})
    return rows


def ungrounded(rows: Rows, row: int) -> None:
    parts = [{"text": "commuting by tram", "confidence": 1.0}, {"text": "quiet evenings", "confidence": 1.0}]
    rows["intents"][row]["descriptors"] = parts


def failed(rows: Rows, row: int) -> None:
    rows["captions"][row] |= {**FAILED, "caption": None}
    rows["intents"][row] |= {**FAILED, "surface": [], "motives": [], "descriptors": []}
    rows["quality"][row] |= {**FAILED, "labels": [], "score": None}


class Refresh:
    """Published tables, and those of a refresh beside them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.published, self.now = good(range(PUBLISHED)), good(range(0))
        self.gone: set[str] = set()

    def grow(self, rows: Rows) -> Rows:
        """These rows are new, or in place of published ones."""
        self.now = rows
        return rows

    def hold(self) -> list[dict[str, Any]]:
        """Run both gates as the pipeline does; what they found amiss without refusing.

        Raises:
            SystemExit: one refused.
        """
        other = {row["item_id"] for row in self.now["items"]} | self.gone
        source = [row for row in self.published["items"] if row["item_id"] not in other] + self.now["items"]
        for name, rows in {**self.now, "items": source}.items():
            write_table(name, pa.Table.from_pylist(rows, SCHEMAS[name]), self.folder / name)
        for name, rows in self.published.items():
            path = self.folder / "published" / f"{name}.parquet"
            write_table(name, pa.Table.from_pylist(rows, SCHEMAS[name]), path)
        given = {name: Dataset(uri=str(self.folder / name)) for name in self.now}
        given["published"] = Dataset(uri=str(self.folder / "published"))
        made_by_gates = {"docs": HTML(uri=str(self.folder / "docs")), "stats": Artifact(uri=str(self.folder / "stats"))}
        outcomes = []
        for gate, tables in ((gate_captions, ("items", "captions")), (gate_intents, tuple(self.now))):
            gate.python_func(**{name: given[name] for name in (*tables, "published")}, **made_by_gates)
            outcomes += read_json(self.folder / "stats")["expectations"]
        return [outcome for outcome in outcomes if not outcome["success"]]


@pytest.fixture
def refresh(tmp_path: Path) -> Refresh:
    return Refresh(tmp_path)


def test_one_new_item_that_is_ungrounded_passes(refresh: Refresh) -> None:
    ungrounded(refresh.grow(good(range(PUBLISHED, PUBLISHED + 1))), 0)
    assert refresh.hold() == []


def test_an_item_that_keeps_failing_does_not_stop_a_refresh(refresh: Refresh) -> None:
    failed(refresh.published, 7)
    failed(refresh.grow(good(range(7, 8))), 0)
    assert refresh.hold() == []


def test_more_than_training_takes_is_refused(refresh: Refresh, capsys: pytest.CaptureFixture[str]) -> None:
    """Two of forty failed in training, which is all it takes; a third, of one new item, is too much."""
    failed(refresh.published, 7)
    failed(refresh.published, 9)
    failed(refresh.grow(good(range(PUBLISHED, PUBLISHED + 1))), 0)
    with pytest.raises(SystemExit):
        refresh.hold()
    assert "3 of 41 rows (7.3%); rows item-07: failed" in capsys.readouterr().err


def test_what_no_catalogue_may_have_is_refused_of_one_item(
    refresh: Refresh, capsys: pytest.CaptureFixture[str]
) -> None:
    refresh.grow(good(range(PUBLISHED, PUBLISHED + 1)))["captions"][0]["caption"] = "I cannot see the image, sorry."
    with pytest.raises(SystemExit):
        refresh.hold()
    assert "expect_caption_not_to_be_refusal" in capsys.readouterr().err


def test_an_item_without_a_row_is_refused(refresh: Refresh, capsys: pytest.CaptureFixture[str]) -> None:
    refresh.grow(good(range(PUBLISHED, PUBLISHED + 1)))["captions"].clear()
    with pytest.raises(SystemExit):
        refresh.hold()
    assert "expect_item_to_have_one_row (items.captions_rows): 1 of 41 rows" in capsys.readouterr().err


def test_withdrawn_items_are_not_looked_at(refresh: Refresh) -> None:
    for row in (5, 6, 7):  # more than may fail
        failed(refresh.published, row)
    refresh.gone = {"item-05", "item-06", "item-07"}
    refresh.grow(good(range(PUBLISHED, PUBLISHED + 1)))
    assert refresh.hold() == []
