import math
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_repo.tables import VIEWS, snapshot
from tessera.errors import InputError
from tessera.schema import SCHEMAS


def rows(view: str, tables: dict[str, Path]) -> dict[str, dict]:
    table = snapshot(**tables)[view]
    return {row[table.column_names[0]]: row for row in table.to_pylist()}


def test_enrichment_is_joined_by_item_and_leaves_out_what_failed(make_run: Callable) -> None:
    found = rows("item_enrichment", make_run())
    assert found["b1"]["title"] == "Ball size 4"
    assert found["b1"]["caption"] == "A photo of b1"
    assert found["b1"]["descriptors"] == ["b1 for gardens", "gift"]
    assert found["b1"]["confidences"][0] == 0.5
    assert math.isnan(found["b1"]["confidences"][1])
    assert found["l1"]["caption"] is None
    assert found["l1"]["descriptors"] == ["l1 for gardens", "gift"]
    assert found["b2"]["caption"] == "A photo of b2"
    assert (found["b2"]["descriptors"], found["b2"]["motives"], found["b2"]["quality_score"]) == (None, None, None)


def test_a_history_holds_the_held_out_purchases_too(make_run: Callable) -> None:
    found = rows("user_history", make_run())
    assert found["ann"]["item_ids"] == ["b1", "l1", "b2"]
    assert found["bob"]["item_ids"] == ["l1", "b1", "b2", "l1"]


def test_items_of_one_sid_are_listed_together(make_run: Callable) -> None:
    found = rows("sid_items", make_run(sids={"b2": "1_2_3", "b1": "1_2_3", "l1": "7_0_5"}))
    assert {sid: row["item_ids"] for sid, row in found.items()} == {"1_2_3": ["b1", "b2"], "7_0_5": ["l1"]}


def test_every_view_has_the_types_of_the_declared_tables() -> None:
    assert VIEWS["item_sid"].field("codes").type == SCHEMAS["sids"].field("codes").type
    assert VIEWS["item_enrichment"].field("quality_score").type == SCHEMAS["quality"].field("score").type


@pytest.mark.parametrize(
    ("table", "change", "says"),
    [
        ("items", lambda t: pa.concat_tables([t, t.slice(0, 1)]), "'b1' occurs more than once"),
        ("captions", lambda t: pa.concat_tables([t, t.slice(1, 1)]), "'b2' occurs more than once"),
        ("splits", lambda t: pa.concat_tables([t, t.slice(0, 1)]), "'ann' occurs more than once"),
        ("items", lambda t: t.slice(0, 2), "SIDs of 1 items that are not in"),
        ("sids", lambda t: t.slice(0, 0), "0 tokenizer versions"),
        (
            "sids",
            lambda t: t.set_column(4, t.schema.field(4), pa.array(["tok-1", "tok-2", "tok-1"])),
            "2 tokenizer versions",
        ),
        ("quality", lambda t: t.drop_columns(["score"]), "'score' is missing"),
    ],
)
def test_tables_that_do_not_fit_are_refused(make_run: Callable, table: str, change: Callable, says: str) -> None:
    tables = make_run()
    pq.write_table(change(pq.read_table(tables[table])), tables[table])
    with pytest.raises(InputError, match=says):
        snapshot(**tables)


def test_a_missing_table_is_named(make_run: Callable) -> None:
    tables = make_run()
    tables["quality"].unlink()
    with pytest.raises(InputError, match=r"quality\.parquet does not exist"):
        snapshot(**tables)
