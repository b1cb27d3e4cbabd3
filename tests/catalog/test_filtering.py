import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.catalog.filtering import in_order, k_core, without_duplicates
from tessera.catalog.raw import RAW_INTERACTIONS, clean, clean_list, split_list, title_from
from tessera.catalog.splits import leave_last_out
from tessera.schema import SCHEMAS

Row = tuple[str, str, int]


def raw(rows: list[Row]) -> pa.Table:
    columns = list(zip(*rows, strict=True)) or [(), (), ()]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, RAW_INTERACTIONS, strict=True)]
    return pa.table(arrays, schema=RAW_INTERACTIONS)


def rows_of(table: pa.Table) -> list[Row]:
    return [tuple(row[name] for name in RAW_INTERACTIONS.names) for row in table.to_pylist()]


ROWS = st.lists(st.tuples(st.sampled_from("uvwx"), st.sampled_from("abcd"), st.integers(0, 3)), max_size=40)


def test_k_core_by_hand() -> None:
    # c has one buyer and goes; then w has one purchase left and goes; a and b, u and v hold each other.
    pairs = ["ua", "ub", "va", "vb", "wa", "wc"]
    kept = k_core(raw([(user, item, 1) for user, item in pairs]), 2)
    assert [user + item for user, item, _ in rows_of(kept)] == ["ua", "ub", "va", "vb"]


def slow_k_core(rows: list[Row], k: int) -> list[Row]:
    while True:
        users, items = [r[0] for r in rows], [r[1] for r in rows]
        kept = [r for r in rows if users.count(r[0]) >= k and items.count(r[1]) >= k]
        if kept == rows:
            return rows
        rows = kept


@settings(deadline=None)
@given(ROWS, st.integers(0, 5))
def test_k_core_agrees_with_the_definition(rows: list[Row], k: int) -> None:
    assert rows_of(k_core(raw(rows), k)) == slow_k_core(rows, k)


@settings(deadline=None)
@given(ROWS)
def test_duplicates_keep_the_first_in_order(rows: list[Row]) -> None:
    assert rows_of(without_duplicates(raw(rows))) == list(dict.fromkeys(rows))


@settings(deadline=None)
@given(ROWS)
def test_order_is_by_user_then_time_then_as_given(rows: list[Row]) -> None:
    table = in_order(raw(rows))
    assert rows_of(table) == sorted(rows, key=lambda row: (row[0], row[2]))  # Python's sort is stable
    assert table.schema == SCHEMAS["interactions"]
    users = [row[0] for row in rows_of(table)]
    assert table["position"].to_pylist() == [users[:i].count(user) for i, user in enumerate(users)]


def test_user_order_is_by_bytes_and_not_by_first_appearance() -> None:
    assert [row[0] for row in rows_of(in_order(raw([("b", "x", 1), ("a", "x", 1), ("B", "x", 1), ("é", "x", 1)])))] == [
        "B", "a", "b", "é",
    ]


def test_split_by_hand() -> None:
    rows = [(user, item, time) for user, items in {"u": "abcd", "v": "ab", "w": "abc", "x": "d"}.items()
            for time, item in enumerate(items)]
    assert leave_last_out(in_order(raw(rows))).to_pylist() == [
        {"user_id": "u", "train": ["a", "b"], "validation": "c", "test": "d"},
        {"user_id": "v", "train": ["a", "b"], "validation": None, "test": None},
        {"user_id": "w", "train": ["a"], "validation": "b", "test": "c"},
        {"user_id": "x", "train": ["d"], "validation": None, "test": None},
    ]


@settings(deadline=None)
@given(ROWS)
def test_split_loses_and_invents_nothing(rows: list[Row]) -> None:
    interactions = in_order(raw(rows))
    splits = leave_last_out(interactions)
    assert splits.schema == SCHEMAS["splits"]
    histories: dict[str, list[str]] = {}
    for user, item, _ in rows_of(interactions):
        histories.setdefault(user, []).append(item)
    rebuilt = {
        row["user_id"]: row["train"] + [item for item in (row["validation"], row["test"]) if item is not None]
        for row in splits.to_pylist()
    }
    assert rebuilt == histories


def test_many_interactions_take_a_moment() -> None:
    rng, rows = np.random.default_rng(0), 300_000
    users, items = rng.integers(0, 15_000, rows).astype(str), rng.integers(0, 6_000, rows).astype(str)
    times = pa.array(rng.integers(0, 10**9, rows))
    table = pa.table([pa.array(users), pa.array(items), times], schema=RAW_INTERACTIONS)
    splits = leave_last_out(in_order(k_core(without_duplicates(table), 5)))
    assert 14_900 < splits.num_rows <= 15_000


def test_texts() -> None:
    assert clean(" Salt &amp;\u00a0Pepper\t<set>\n\x00 ") == "Salt & Pepper <set>"
    assert clean("broken \ud800 half") == "broken half"
    assert clean(None) == clean(" \u2003 ") == clean("&nbsp;") == ""
    assert clean_list(["a", " a", None, "", "b"]) == ["a", "b"]
    assert split_list("Fruit, Apple,") == ["Fruit", "Apple"]
    assert split_list("Home, Garden > Tools") == ["Home, Garden", "Tools"]
    assert split_list(None) == []
    item = {"brand": "Acme", "categories": ["Hair", "Acme"], "attributes": ["red"], "description": "x"}
    assert title_from(item) == "Acme, Hair, red"
    assert title_from({"brand": "", "categories": [], "attributes": [], "description": "a " * 20}) == " ".join("a" * 12)
