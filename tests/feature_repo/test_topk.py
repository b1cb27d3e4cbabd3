"""Precomputed lists in real Feast: when they are stale, what a promotion and a rollback do to them, chunks, kills."""

import json
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

import pyarrow as pa
import pytest

from feature_repo import lookup, offline, publish, topk, writer
from feature_repo.store import feast_folder, open_store, read_state, write_state
from feature_repo.tables import TIMESTAMP, UTC, VIEWS
from tessera.errors import InputError

NEW_SIDS = {"b1": "9_9_1", "b2": "1_2_4", "l1": "4_4_4"}
LISTS = {"ann": ["b2", "l1"], "bob": ["b1"]}


def stale(home: Path) -> dict[str, bool | None]:
    """The mark of each user's list, None without one; the lists' own column and the answer must agree."""
    users = lookup.users(open_store(home), ["ann", "bob"])
    return {user.user_id: user.top_k and user.top_k.stale for user in users}


@pytest.fixture
def home(tmp_path: Path, make_run: Callable, make_topk: Callable) -> Path:
    """A catalogue that policy pol-1 serves, and lists of it just computed."""
    home = tmp_path / "home"
    publish.run(home, **make_run(), policy_version="pol-1")
    publish.publish_topk(home, make_topk(LISTS, "tok-1", computed_at=publish.moment(home)))
    return home


def test_a_purchase_makes_the_users_own_list_stale(home: Path, make_run: Callable, make_topk: Callable) -> None:
    assert stale(home) == {"ann": False, "bob": False}
    publish.push_history(home, "ann", ["b1"])
    assert stale(home) == {"ann": True, "bob": False}
    marked = writer.log_of(feast_folder(home), "user_topk").to_pylist()[-1]
    assert (marked["user_id"], marked["stale"], marked["item_ids"]) == ("ann", True, ["b2", "l1"])
    raw = open_store(home).get_online_features(["user_topk:stale"], [{"user_id": "ann"}]).to_dict()
    assert raw["stale"] == [True]
    assert not publish.run(home, **make_run("again"), policy_version="pol-1")["changed"]
    publish.publish_topk(home, make_topk({"ann": ["l1"]}, "tok-1", computed_at=publish.moment(home)), partial=True)
    assert stale(home) == {"ann": False, "bob": False}


def test_a_purchase_between_reading_and_publishing_is_noticed(home: Path, make_topk: Callable) -> None:
    moment = publish.moment(home)
    publish.push_history(home, "bob", ["b2"])
    publish.publish_topk(home, make_topk(LISTS, "tok-1", computed_at=moment))
    assert stale(home) == {"ann": False, "bob": True}


def test_a_purchase_that_reaches_only_the_online_store_is_noticed(home: Path) -> None:
    """As another service pushes it over HTTP: nothing is marked, but the history is younger than the list."""
    import pandas as pd

    later = datetime.fromtimestamp(max(time.time(), read_state(home).event_timestamp) + 5, timezone.utc)
    rows = pd.DataFrame({"user_id": ["ann"], "item_ids": [["b1"]], TIMESTAMP: [later]})
    open_store(home).push("user_history_push", rows)
    assert stale(home) == {"ann": True, "bob": False}


def test_a_run_with_other_histories_marks_those_users(home: Path, make_run: Callable) -> None:
    later = make_run("later", histories={"ann": ["b1", "l1", "b2"], "bob": ["l1", "b1", "b2", "b2"]})
    report = publish.run(home, **later, policy_version="pol-1")
    assert report["rows"]["user_topk"] == 1
    assert stale(home) == {"ann": False, "bob": True}
    gone = make_run("gone", histories={"bob": ["l1", "b1", "b2", "b2"]})
    publish.run(home, **gone, policy_version="pol-1")
    assert stale(home) == {"ann": None, "bob": True}  # a user who is gone leaves no list behind


def test_another_policy_makes_all_lists_stale_and_the_way_back_takes_it_back(home: Path, make_run: Callable) -> None:
    tables = make_run("same")
    assert publish.run(home, **tables, policy_version="pol-2")["rows"]["user_topk"] == 2
    assert stale(home) == {"ann": True, "bob": True}
    publish.push_history(home, "bob", ["b2"])
    publish.run(home, **tables, policy_version="pol-1")  # a rollback, or a promotion that failed
    assert stale(home) == {"ann": False, "bob": True}


def test_another_tokenizer_withdraws_the_lists_and_the_way_back_returns_them(
    home: Path, make_run: Callable, make_topk: Callable
) -> None:
    old, new = make_run("old"), make_run("new", version="tok-2", sids=NEW_SIDS)
    publish.publish_topk(home, make_topk({"ann": ["b2"]}, "tok-1", computed_at=publish.moment(home)))  # withdraws bob's
    publish.run(home, **new, policy_version="pol-2")
    assert stale(home) == {"ann": None, "bob": None}
    publish.run(home, **old, policy_version="pol-1")
    assert stale(home) == {"ann": False, "bob": None}
    assert not publish.run(home, **old, policy_version="pol-1")["changed"]


def test_lists_of_a_policy_that_does_not_serve_are_refused(home: Path, make_topk: Callable) -> None:
    with pytest.raises(InputError, match="computed with policy pol-9, but policy pol-1 serves"):
        publish.publish_topk(home, make_topk(LISTS, "tok-1", policy="pol-9"), partial=True)
    assert stale(home) == {"ann": False, "bob": False}


def test_a_part_leaves_the_other_lists_and_a_killed_part_is_completed(
    home: Path, make_topk: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = make_topk({"bob": ["b2", "b1"]}, "tok-1", computed_at=publish.moment(home))

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(writer, "_to_online", killed)
        with pytest.raises(KeyboardInterrupt):
            publish.publish_topk(home, part, partial=True)
    publish.publish_topk(home, part, partial=True)
    store = open_store(home)
    found = {user.user_id: user.top_k and user.top_k.item_ids for user in lookup.users(store, ["ann", "bob", "eve"])}
    assert found == {"ann": ["b2", "l1"], "bob": ["b2", "b1"], "eve": None}
    assert not publish.publish_topk(home, part, partial=True)["changed"]
    assert publish.users(home) == ["ann", "bob"]


def test_a_home_of_before_the_mark_is_read_and_brought_up_to_date(home: Path, make_run: Callable) -> None:
    folder = feast_folder(home)
    lists = VIEWS["user_topk"]
    for name, schema in (("published", lists), ("offline", lists.append(pa.field(TIMESTAMP, UTC)))):
        path = folder / name / "user_topk.parquet"
        offline.write(path, offline.read(path, schema).drop_columns(["stale"]))
    state = json.loads((folder / "published.json").read_text())
    del state["policy_version"]
    (folder / "published.json").write_text(json.dumps(state | {"recipe": "of an earlier Tessera"}))
    assert publish.run(home, **make_run("same"), policy_version="pol-1")["changed"]
    assert stale(home) == {"ann": False, "bob": False}


def test_the_state_remembers_a_policy_over_unchanged_tables(tmp_path: Path, make_run: Callable) -> None:
    tables = make_run()
    publish.run(tmp_path, **tables, policy_version="pol-1")
    assert not publish.run(tmp_path, **tables, policy_version="pol-2")["changed"]
    assert read_state(tmp_path).policy_version == "pol-2"
    publish.run(tmp_path, **tables)
    assert read_state(tmp_path).policy_version == "pol-2"


def test_moments_come_after_all_that_was_written_before(home: Path) -> None:
    state = read_state(home)
    in_the_future = int(time.time()) + 200  # a clock that was set back a little
    write_state(home, type(state)(**(vars(state) | {"event_timestamp": in_the_future})))
    assert publish.moment(home) == datetime.fromtimestamp(in_the_future + 1, timezone.utc)


def lists(**rows: tuple[str, int]) -> pa.Table:
    """Lists by user: policy and second of computation."""
    made = [
        {"user_id": user, "item_ids": ["a"], "policy_version": policy,
         "computed_at": datetime.fromtimestamp(second, timezone.utc)}
        for user, (policy, second) in rows.items()
    ]  # fmt: skip
    return pa.Table.from_pylist(made, schema=VIEWS["user_topk"])


def test_a_list_is_judged_by_history_and_policy() -> None:
    at = {user: datetime.fromtimestamp(second, timezone.utc) for user, second in (("u", 100), ("v", 101), ("w", 99))}
    histories = pa.Table.from_pylist(
        [{"user_id": user, "item_ids": ["x"], TIMESTAMP: changed} for user, changed in at.items()],
        schema=VIEWS["user_history"].append(pa.field(TIMESTAMP, UTC)),
    )
    given = lists(u=("p", 101), v=("p", 101), w=("q", 101), stranger=("p", 5))
    assert topk.judged(given, histories, "p")["stale"].to_pylist() == [False, True, True, False]
    assert topk.judged(given, histories, "")["stale"].to_pylist() == [False, True, False, False]
    assert topk.judged(given, histories, "p").schema.equals(VIEWS["user_topk"])
