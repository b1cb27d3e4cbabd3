"""The gate itself: what it returns, what it refuses, its Data Docs, and that it needs nobody's network."""

import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tessera.errors import GateError, InputError
from tessera.schema import SCHEMAS, write_table
from validation.gate import run
from validation.suites import TABLES, Suite

Rows = dict[str, list[dict[str, Any]]]
Gate = Callable[..., dict[str, Any]]


@pytest.mark.parametrize("suite", TABLES)
def test_good_tables_pass_and_are_documented(rows: Rows, tmp_path: Path, docs: Path, suite: Suite) -> None:
    paths = {name: tmp_path / f"{name}.parquet" for name in TABLES[suite]}
    for name, path in paths.items():
        write_table(name, pa.Table.from_pylist(rows[name], schema=SCHEMAS[name]), path)
    answer = run(suite, paths, docs)
    assert answer["success"]
    assert answer["suite"] == suite
    assert {outcome["table"] for outcome in answer["expectations"]} <= set(TABLES[suite])
    assert [outcome for outcome in answer["expectations"] if not outcome["success"]] == []
    index = Path(answer["data_docs"])
    assert index == docs / "site" / "index.html"
    assert suite in index.read_text()
    for table in {outcome["table"] for outcome in answer["expectations"]}:
        page = suite if table == suite else f"{suite}_{table}"
        assert list((docs / "site" / "validations" / page).rglob("*.html"))


def test_the_columns_checked_are_those_of_the_schema(gate: Gate, rows: Rows) -> None:
    outcomes = gate("sids", rows)["expectations"]
    not_null = {o["column"] for o in outcomes if o["expectation"] == "expect_column_values_to_not_be_null"}
    assert not_null == {field.name for field in SCHEMAS["sids"] if not field.nullable}
    assert any(o["column"] == ", ".join(SCHEMAS["sids"].names) for o in outcomes)


def test_refusal_names_the_check_the_row_and_the_docs_and_a_repaired_run_passes(
    gate: Gate, rows: Rows, tmp_path: Path
) -> None:
    docs, caption = tmp_path / "gx", rows["captions"][7]["caption"]
    rows["captions"][7]["caption"] = "As an AI language model I have no eyes."
    with pytest.raises(GateError) as caught:
        gate("captions", rows, docs=docs)
    text = str(caught.value)
    assert text.startswith("the captions gate refused the data, 1 of ")
    assert "expect_caption_not_to_be_refusal (captions.caption): 1 of 50 rows (2.0%)" in text
    assert "item-07: As an AI language model I have no eyes." in text
    [page] = (docs / "site" / "validations" / "captions").rglob("*.html")
    assert f"See the Data Docs, {page}; correct" in text
    assert "As an AI language model I have no eyes." in page.read_text()
    assert "item-07" in page.read_text()
    rows["captions"][7]["caption"] = caption
    assert gate("captions", rows, docs=docs)["success"]
    assert len(list((docs / "site" / "validations" / "captions").rglob("*.html"))) == 2


def test_a_catalogue_without_photos_passes(gate: Gate, rows: Rows) -> None:
    for item, caption, vector in zip(rows["items"], rows["captions"], rows["embeddings"], strict=True):
        item |= {"image": None, "image_status": "none"}
        caption |= {"caption": None, "reason": "no photo"}
        vector["image"] = None
    for suite in ("catalogue", "captions", "embeddings"):
        assert gate(suite, rows)["success"]


def test_a_catalogue_without_interactions_passes(gate: Gate, rows: Rows) -> None:
    rows["interactions"] = rows["splits"] = []
    assert gate("catalogue", rows)["success"]


def test_a_catalogue_without_items_is_refused(gate: Gate) -> None:
    with pytest.raises(GateError, match=r"expect_table_row_count_to_be_between \(items\): 0"):
        gate("catalogue", {"items": [], "interactions": [], "splits": []})


def test_warnings_are_listed_but_do_not_block(gate: Gate, rows: Rows, caplog: pytest.LogCaptureFixture) -> None:
    for row in rows["quality"][1:]:
        row |= {"labels": [1, 1, 1], "score": 1.0}
    answer = gate("intents", rows)
    assert answer["success"]
    warned = [outcome for outcome in answer["expectations"] if not outcome["success"]]
    assert [(outcome["expectation"], outcome["severity"]) for outcome in warned] == [
        ("expect_labels_to_be_balanced", "warning")
    ]
    assert warned[0]["observed"] == "99.4% of 180 labels are 1"
    assert "expect_labels_to_be_balanced" in caplog.text


def test_of_few_embeddings_shares_are_reported_and_what_is_wrong_with_one_refuses(gate: Gate, rows: Rows) -> None:
    few = {"items": rows["items"][:3], "embeddings": rows["embeddings"][:3]}
    for row in few["embeddings"]:
        row["text"] = rows["embeddings"][0]["text"]
    few["embeddings"][1]["image"] = None
    with pytest.raises(GateError, match=r"embeddings_to_be_distinct[^$]*not_be_null \(embeddings\.image\)"):
        gate("embeddings", few)
    warned = [outcome for outcome in gate("embeddings", few, part=True)["expectations"] if not outcome["success"]]
    assert [(outcome["column"], outcome["severity"]) for outcome in warned] == [
        ("text", "warning"), ("image", "warning"),
    ]  # fmt: skip
    few["embeddings"][2]["text"] = [0.0] * 8
    with pytest.raises(GateError, match=r"refused the data, 1 of .*\n.*embedding_to_have_unit_norm"):
        gate("embeddings", few, part=True)


def test_of_many_embeddings_of_a_part_shares_refuse(gate: Gate, rows: Rows) -> None:
    for row in rows["embeddings"]:  # an encoder that says the same of everything
        row["text"] = rows["embeddings"][0]["text"]
    with pytest.raises(GateError, match="embeddings_to_be_distinct"):
        gate("embeddings", rows, part=True)


def test_many_moved_sids_are_a_warning(gate: Gate, rows: Rows) -> None:
    for row in rows["sids"][:31]:
        row["moved"] = True
    warned = [outcome for outcome in gate("sids", rows)["expectations"] if not outcome["success"]]
    assert [(o["column"], o["severity"], o["unexpected_count"]) for o in warned] == [("moved", "warning", 31)]


def test_a_missing_column_is_the_finding_not_a_crash(gate: Gate, rows: Rows) -> None:
    for row in rows["sids"]:
        del row["codes"]
    with pytest.raises(GateError, match=r"expect_table_columns_to_match_set \(sids\.item_id, sid, .*missing: codes"):
        gate("sids", rows)


def test_failed_rows_are_shown_with_their_reason(gate: Gate, rows: Rows) -> None:
    for row in rows["captions"][2:5]:
        row |= {"status": "failed", "caption": None, "reason": "timeout after 60 s"}
    with pytest.raises(GateError, match=r"3 of 50 rows \(6.0%\); rows item-02: failed \| timeout after 60 s; item-03"):
        gate("captions", rows)


def test_columns_of_another_type_are_named(rows: Rows, gate: Gate, tmp_path: Path, docs: Path) -> None:
    gate("sids", rows)
    table = pq.read_table(tmp_path / "sids.parquet")
    texts = pa.array([str(codes) for codes in table["codes"].to_pylist()])
    spoiled = table.set_column(2, "codes", texts).set_column(3, "moved", pa.array([0] * len(table)))
    pq.write_table(spoiled, tmp_path / "sids.parquet")
    with pytest.raises(GateError) as caught:
        run("sids", {name: tmp_path / f"{name}.parquet" for name in TABLES["sids"]}, docs)
    assert "expect_column_values_to_be_lists (sids.codes): 60 of 60 rows" in str(caught.value)
    assert "expect_column_values_to_be_in_type_list (sids.moved): int64" in str(caught.value)


def test_files_that_are_missing_or_no_tables(tmp_path: Path, docs: Path) -> None:
    broken = tmp_path / "items.parquet"
    broken.write_bytes(b"PAR1 not really")
    with pytest.raises(InputError, match="needs the table items, sids"):
        run("sids", {}, docs)
    with pytest.raises(InputError, match="does not exist"):
        run("sids", {"items": tmp_path / "nothing.parquet", "sids": broken}, docs)
    with pytest.raises(InputError, match="not a readable parquet file"):
        run("sids", {"items": broken, "sids": broken}, docs)


def test_gates_at_once_and_after_a_crash_share_one_site(gate: Gate, rows: Rows, tmp_path: Path) -> None:
    docs = tmp_path / "gx"
    gate("sids", rows, docs=docs)
    for file in (*(docs / "expectations").rglob("*.json"), *(docs / "results").rglob("*.json")):
        file.write_text(file.read_text()[:50])  # as if killed in the middle of writing
    paths = {name: tmp_path / f"{name}.parquet" for name in rows}
    with ThreadPoolExecutor(3) as pool:
        suites = ("sids", "captions", "embeddings")
        answers = list(pool.map(lambda s: run(s, {name: paths[name] for name in TABLES[s]}, docs), suites))  # type: ignore[index]
    assert all(answer["success"] for answer in answers)
    index = (docs / "site" / "index.html").read_text()
    assert all(suite in index for suite in suites)


def test_no_connection_is_opened(gate: Gate, rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a gate must not use the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert gate("sids", rows)["success"]
