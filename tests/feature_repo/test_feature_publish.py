"""Real Feast, real SQLite: publish, look up, repeat, replace, roll back, push."""

import shutil
import sqlite3
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_repo import lookup, offline, publish, writer
from feature_repo.store import connect, feast_folder, open_store, read_state
from tessera.errors import InputError, ServiceError

NEW_SIDS = {"b1": "9_9_1", "b2": "1_2_4", "n1": "4_4_4"}  # b2 keeps its SID, l1 is gone, n1 is new


def online(home: Path) -> dict[str, list[tuple]]:
    """Everything in the online store: rows of (entity key, feature, value, event time) per table."""
    with sqlite3.connect(feast_folder(home) / "online.db") as db:
        names = [row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")]
        query = "SELECT entity_key, feature_name, value, event_ts FROM {} ORDER BY 1, 2"
        return {name: db.execute(query.format(name)).fetchall() for name in names}


def offline_files(home: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (feast_folder(home) / "offline").iterdir()}


def test_what_is_published_can_be_looked_up(tmp_path: Path, make_run: Callable) -> None:
    report = publish.run(tmp_path, **make_run())
    assert report["changed"]
    assert report["tokenizer_version"] == "tok-1"
    assert report["rows"] == {"item_enrichment": 3, "item_sid": 3, "sid_items": 3, "user_history": 2, "user_topk": 0}
    assert lookup.item(tmp_path, "b1") == lookup.Item(
        item_id="b1", title="Ball size 4", brand="acme", categories=["toys"], image="b1.jpg", caption="A photo of b1",
        motives=["play"], descriptors=["b1 for gardens", "gift"], confidences=[0.5, None], quality_score=0.5,
        sid="1_2_3", codes=[1, 2, 3], tokenizer_version="tok-1",
    )  # fmt: skip
    store = open_store(tmp_path)
    plain = lookup.item(store, "b2")
    assert (plain.descriptors, plain.confidences, plain.quality_score) == ([], [], None)
    assert lookup.sid(store, "7_0_5") == lookup.SemanticId("7_0_5", ["l1"], "tok-1")
    assert lookup.user(store, "ann") == lookup.User("ann", ["b1", "l1", "b2"], None)


def test_unknown_ids_are_refused_and_not_answered_with_nulls(tmp_path: Path, make_run: Callable) -> None:
    publish.run(tmp_path, **make_run())
    store = open_store(tmp_path)
    with pytest.raises(InputError, match="item 'zz' is not in the published catalogue"):
        lookup.item(store, "zz")
    with pytest.raises(InputError, match="no published item has the semantic ID 1_2"):
        lookup.sid(store, "1_2")
    with pytest.raises(InputError, match="'b1' is not a semantic ID"):
        lookup.sid(store, "b1")
    with pytest.raises(InputError, match="user 'eve' has no published history"):
        lookup.user(store, "eve")
    with pytest.raises(ServiceError, match="no published features yet"):
        lookup.item(tmp_path / "elsewhere", "b1")


def test_a_repeat_changes_nothing(tmp_path: Path, make_run: Callable) -> None:
    tables = make_run()
    publish.run(tmp_path, **tables)
    files, rows, state = offline_files(tmp_path), online(tmp_path), read_state(tmp_path)
    report = publish.run(tmp_path, **tables)
    assert not report["changed"]
    assert (offline_files(tmp_path), online(tmp_path), read_state(tmp_path)) == (files, rows, state)


def test_a_new_tokenizer_leaves_no_stale_sid_and_rollback_brings_it_back(
    tmp_path: Path, make_run: Callable, make_topk: Callable
) -> None:
    old, new = make_run("old"), make_run("new", version="tok-2", sids=NEW_SIDS, histories={"ann": ["b1", "b2", "n1"]})
    publish.run(tmp_path, **old)
    publish.publish_topk(tmp_path, make_topk({"ann": ["b2", "l1"]}, "tok-1"))
    before = {name: {row[:3] for row in rows} for name, rows in online(tmp_path).items()}
    store = open_store(tmp_path)

    report = publish.run(tmp_path, **new)
    assert report["tombstones"] == {
        "item_enrichment": 1, "item_sid": 1, "sid_items": 2, "user_history": 1, "user_topk": 1
    }  # fmt: skip
    for gone in ("1_2_3", "7_0_5"):
        with pytest.raises(InputError, match=f"no published item has the semantic ID {gone}"):
            lookup.sid(store, gone)
    raw = store.get_online_features(store.get_feature_service("sid_lookup"), [{"sid": "1_2_3"}]).to_dict()
    assert (raw["item_ids"], raw["tokenizer_version"]) == ([[]], ["tok-2"])
    for item_id, sid in NEW_SIDS.items():
        assert lookup.sid(store, sid) == lookup.SemanticId(sid, [item_id], "tok-2")
        assert lookup.item(store, item_id).sid == sid
    with pytest.raises(InputError, match="item 'l1'"):
        lookup.item(store, "l1")
    with pytest.raises(InputError, match="user 'bob'"):
        lookup.user(store, "bob")
    assert lookup.user(store, "ann") == lookup.User("ann", ["b1", "b2", "n1"], None)

    publish.run(tmp_path, **old)
    publish.publish_topk(tmp_path, make_topk({"ann": ["b2", "l1"]}, "tok-1"))
    with pytest.raises(InputError, match="item 'n1'"):
        lookup.item(store, "n1")
    assert lookup.user(store, "ann").top_k is not None
    after = {name: {row[:3] for row in rows} for name, rows in online(tmp_path).items()}
    assert all(before[name] <= after[name] for name in before)  # what is more are tombstones
    assert not publish.run(tmp_path, **old)["changed"]


def test_online_and_offline_agree_after_a_history_of_publishes(
    tmp_path: Path, make_run: Callable, make_topk: Callable
) -> None:
    old, new = make_run("old"), make_run("new", version="tok-2", sids=NEW_SIDS)
    for tables in (old, new, old, new):
        publish.run(tmp_path, **tables)
    publish.publish_topk(tmp_path, make_topk({"ann": ["b2", "n1"], "bob": ["b1"]}, "tok-2"))
    publish.push_history(tmp_path, "ann", ["n1"])
    written = online(tmp_path)
    # Feast's own way from the offline files to an empty online store must lead to the same rows.
    with sqlite3.connect(feast_folder(tmp_path) / "online.db") as db:
        for name in written:
            db.execute(f"DELETE FROM {name}")
    store = connect(tmp_path)
    end = datetime.fromtimestamp(read_state(tmp_path).event_timestamp, timezone.utc)
    store.materialize(datetime(2020, 1, 1, tzinfo=timezone.utc), end)
    assert online(tmp_path) == written
    assert {name: len(rows) > 0 for name, rows in written.items()} == dict.fromkeys(written, True)


def test_historical_features_are_those_of_the_time(tmp_path: Path, make_run: Callable) -> None:
    publish.run(tmp_path, **make_run("old"))
    first = datetime.fromtimestamp(read_state(tmp_path).event_timestamp, timezone.utc)
    publish.run(tmp_path, **make_run("new", version="tok-2", sids=NEW_SIDS))
    second = datetime.fromtimestamp(read_state(tmp_path).event_timestamp, timezone.utc)
    assert second > first
    asked = pd.DataFrame({"item_id": ["b1", "b1", "l1"], "event_timestamp": [first, second, first]})
    found = open_store(tmp_path).get_historical_features(asked, ["item_sid:sid", "item_sid:codes"]).to_df()
    found = found.sort_values(["item_id", "event_timestamp"])
    assert found["sid"].tolist() == ["1_2_3", "9_9_1", "7_0_5"]
    assert [list(codes) for codes in found["codes"]] == [[1, 2, 3], [9, 9, 1], [7, 0, 5]]


def test_pushed_purchases_survive_a_repeat_but_not_a_newer_history(tmp_path: Path, make_run: Callable) -> None:
    tables = make_run()
    publish.run(tmp_path, **tables)
    assert publish.push_history(tmp_path, "ann", ["b1"]) == ["b1", "l1", "b2", "b1"]
    assert publish.push_history(tmp_path, "new", ["l1", "b2"]) == ["l1", "b2"]
    assert not publish.run(tmp_path, **tables)["changed"]
    store = open_store(tmp_path)
    assert lookup.user(store, "ann").history == ["b1", "l1", "b2", "b1"]
    assert lookup.user(store, "new").history == ["l1", "b2"]
    with pytest.raises(InputError, match="item 'zz' is not in the published catalogue"):
        publish.push_history(tmp_path, "ann", ["b1", "zz"])
    with pytest.raises(InputError, match="at least one"):
        publish.push_history(tmp_path, "ann", [])
    publish.run(tmp_path, **make_run("later", histories={"ann": ["b1", "l1", "b2", "b2"], "bob": ["l1", "b1", "l1"]}))
    assert lookup.user(store, "ann").history == ["b1", "l1", "b2", "b2"]
    assert lookup.user(store, "new").history == ["l1", "b2"]


def test_top_k_lists_are_of_the_tokenizer_online(tmp_path: Path, make_run: Callable, make_topk: Callable) -> None:
    lists = make_topk({"ann": ["b2", "l1"], "bob": ["b1"]}, "tok-1")
    with pytest.raises(InputError, match="publish the items and SIDs of a run"):
        publish.publish_topk(tmp_path, lists)
    publish.run(tmp_path, **make_run())
    assert publish.publish_topk(tmp_path, lists)["changed"]
    assert not publish.publish_topk(tmp_path, lists)["changed"]
    computed_at = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)
    assert lookup.user(tmp_path, "ann").top_k == lookup.TopK(
        ["b2", "l1"], ["1_2_0", "1_2_1"], [0.0, -0.5], "pol-1", "tok-1", computed_at, stale=True
    )
    assert not publish.run(tmp_path, **make_run("again"))["changed"]
    publish.publish_topk(tmp_path, lists.slice(0, 1))
    assert lookup.user(tmp_path, "bob").top_k is None
    with pytest.raises(InputError, match="computed with tokenizer tok-9, but the SIDs of tok-1 are online"):
        publish.publish_topk(tmp_path, make_topk({"ann": ["b2"]}, "tok-9"))
    with pytest.raises(InputError, match="'scores' is missing"):
        publish.publish_topk(tmp_path, lists.drop_columns(["scores"]))
    uneven = lists.set_column(2, "sids", lists["sids"].combine_chunks().take([1, 1]))
    with pytest.raises(InputError, match="differ in length"):
        publish.publish_topk(tmp_path, uneven)
    assert lookup.user(tmp_path, "ann").top_k is not None


@pytest.mark.parametrize("broken_view", ["item_enrichment", "user_history"])
def test_an_interrupted_publish_is_completed_by_the_same_call(
    tmp_path: Path, make_run: Callable, monkeypatch: pytest.MonkeyPatch, broken_view: str
) -> None:
    old, new = make_run("old"), make_run("new", version="tok-2", sids=NEW_SIDS)
    publish.run(tmp_path / "home", **old)
    shutil.copytree(tmp_path / "home", tmp_path / "calm")
    write = writer._to_online

    def killed(store: object, view: str, *rest: object) -> None:
        if view == broken_view:
            raise KeyboardInterrupt
        write(store, view, *rest)

    monkeypatch.setattr(writer, "_to_online", killed)
    with pytest.raises(KeyboardInterrupt):
        publish.run(tmp_path / "home", **new)
    monkeypatch.undo()
    report = publish.run(tmp_path / "home", **new)
    assert report["changed"]
    publish.run(tmp_path / "calm", **new)
    values = [{n: {r[:3] for r in rows} for n, rows in online(tmp_path / home).items()} for home in ("home", "calm")]
    assert values[0] == values[1]
    assert not publish.run(tmp_path / "home", **new)["changed"]


def test_a_bad_table_leaves_what_was_published(tmp_path: Path, make_run: Callable) -> None:
    publish.run(tmp_path, **make_run())
    files, rows = offline_files(tmp_path), online(tmp_path)
    broken = make_run("broken", version="tok-2", sids=NEW_SIDS)
    pq.write_table(pq.read_table(broken["splits"]).drop_columns(["train"]), broken["splits"])
    with pytest.raises(InputError, match="'train' is missing"):
        publish.run(tmp_path, **broken)
    assert (offline_files(tmp_path), online(tmp_path)) == (files, rows)


def test_another_online_store_is_filled_by_the_next_publish(
    tmp_path: Path, make_run: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = make_run()
    publish.run(tmp_path, **tables)
    template = (Path(publish.__file__).parent / "feature_store.yaml").read_text()
    other = tmp_path / "mine.yaml"
    other.write_text(template.replace("online.db", "elsewhere.db"))
    monkeypatch.setenv("TESSERA_FEATURE_STORE", str(other))
    assert publish.run(tmp_path, **tables)["changed"]
    assert (feast_folder(tmp_path) / "elsewhere.db").is_file()
    assert lookup.item(tmp_path, "b1").sid == "1_2_3"
    (feast_folder(tmp_path) / "elsewhere.db").unlink()
    assert publish.run(tmp_path, **tables)["changed"]
    assert lookup.item(tmp_path, "b1").sid == "1_2_3"
    other.write_text("project: [")
    with pytest.raises(InputError, match="is not YAML"):
        lookup.item(tmp_path, "b1")
    other.unlink()
    with pytest.raises(InputError, match="cannot read"):
        publish.run(tmp_path, **tables)


def test_what_was_said_is_right_after_two_publishes_that_died(
    tmp_path: Path, make_run: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first dies behind its first view, the return from it between that view's log and what it says."""
    home, first, second = tmp_path / "home", make_run("first"), make_run("second", version="tok-2", sids=NEW_SIDS)
    publish.run(home, **first)
    append = offline.append

    def die_at(count: int) -> Callable[..., None]:
        calls: list[Path] = []

        def dying(path: Path, rows: pa.Table) -> None:
            append(path, rows)
            calls.append(path)
            if len(calls) == count:
                raise KeyboardInterrupt

        return dying

    for tables, count in ((second, 2), (first, 1)):
        with monkeypatch.context() as patch:
            patch.setattr(offline, "append", die_at(count))
            with pytest.raises(KeyboardInterrupt):
                publish.run(home, **tables)
    publish.run(home, **first)
    said = writer.published(feast_folder(home), "item_enrichment").to_pylist()
    assert {row["item_id"] for row in said if row["title"] is not None} == {"b1", "b2", "l1"}
    publish.run(home, **second)
    assert lookup.item(home, "n1").title == "New lamp"
    with pytest.raises(InputError):
        lookup.item(home, "l1")
