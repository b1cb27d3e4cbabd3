"""The recommender: histories of ids in, recommended ids out, filters obeyed."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tessera.decoding.recommender import Recommendation, Recommender
from tessera.errors import InputError
from tessera.schema import SCHEMAS, read_table, write_table

ITEMS = 40


@pytest.fixture(scope="module")
def recommender(policy_bundle: Path) -> Recommender:
    return Recommender.load(policy_bundle)


def ids(answer: list[Recommendation]) -> list[str]:
    return [one.item_id for one in answer]


def test_the_whole_catalogue_comes_out_once_in_order_of_score(recommender: Recommender) -> None:
    (answer,) = recommender.recommend([["item-1", "item-2"]], ITEMS, exclude_history=False)
    assert sorted(ids(answer)) == sorted(recommender.item_ids)
    scores = [one.score for one in answer]
    assert scores == sorted(scores, reverse=True)
    assert sum(np.exp(scores)) <= 1.0 + 1e-6
    known = dict(zip(recommender.item_ids, recommender.sids, strict=True))
    assert all(one.sid == known[one.item_id] for one in answer)


def test_the_history_is_excluded_unless_told(recommender: Recommender) -> None:
    history = ["item-1", "item-2", "item-3"]
    (without,) = recommender.recommend([history], ITEMS)
    (whole,) = recommender.recommend([history], ITEMS, exclude_history=False)
    assert len(without) == ITEMS - 3
    assert ids(without) == [i for i in ids(whole) if i not in history]


def test_only_the_most_recent_items_are_read_and_all_are_excluded(recommender: Recommender) -> None:
    """The policy reads five items; of a longer history the rest changes no score, and is not recommended either."""
    recent = [f"item-{n}" for n in range(5)]
    long = ["item-30", "item-31", *recent]
    scores = [
        {one.item_id: one.score for one in recommender.recommend([h], ITEMS, exclude_history=False)[0]}
        for h in (recent, long, ["item-30", *recent[1:]])
    ]
    assert scores[0] == scores[1]
    assert scores[0] != scores[2]
    assert set(ids(recommender.recommend([long], ITEMS)[0])) == set(recommender.item_ids) - set(long)


def test_unknown_ids_are_passed_over(recommender: Recommender) -> None:
    clean = recommender.recommend([["item-1", "item-2"]], 10, exclude=[["item-5"]], allow=[None])
    noisy = recommender.recommend(
        [["gone", "item-1", "gone", "item-2", "newer"]], 10, exclude=[["gone", "item-5"]], allow=[None]
    )
    assert noisy == clean
    padded = ["item-1", *["gone"] * 10]  # they take no place among the recent items either
    assert recommender.recommend([padded], 10) == recommender.recommend([["item-1"]], 10)


def test_a_history_with_nothing_known_is_refused(recommender: Recommender) -> None:
    with pytest.raises(InputError, match=r"none of the history's 4 items \('a', 'b', 'c'\) is in the catalogue"):
        recommender.recommend([["item-1"], ["a", "b", "c", "d"]], 5)
    with pytest.raises(InputError, match=r"the history is empty; give at least one item id"):
        recommender.recommend([["item-1"], []], 5)


@pytest.mark.parametrize("k", [0, -1, ITEMS + 1])
def test_k_must_lie_within_the_catalogue(k: int, recommender: Recommender) -> None:
    with pytest.raises(InputError, match=f"k is {k}; ask for at least 1 and at most {ITEMS} items"):
        recommender.recommend([["item-1"]], k)


def test_one_item_is_the_best_of_many(recommender: Recommender) -> None:
    (best,) = recommender.recommend([["item-1"]], 1)
    (many,) = recommender.recommend([["item-1"]], 10)
    assert len(best) == 1
    assert best[0].item_id == many[0].item_id
    assert [len(a) for a in recommender.recommend([["item-1"], ["item-2"]], 7)] == [7, 7]


def test_no_histories_no_answers(recommender: Recommender) -> None:
    assert recommender.recommend([], 5) == []


def test_exclude_lists(recommender: Recommender) -> None:
    (plain,) = recommender.recommend([["item-1"]], 10)
    (without,) = recommender.recommend([["item-1"]], 10, exclude=[[*ids(plain)[:4], ids(plain)[0]]])
    assert len(without) == 10
    assert ids(without)[:6] == ids(plain)[4:]
    assert not set(ids(without)) & set(ids(plain)[:4])


def test_allow_lists(recommender: Recommender) -> None:
    (everything,) = recommender.recommend([["item-1"]], ITEMS)
    allowed = ["item-7", "item-30", "item-12", "item-12", "gone"]
    (only,) = recommender.recommend([["item-1"]], 10, allow=[allowed])
    assert ids(only) == [i for i in ids(everything) if i in allowed]
    assert [one.score for one in only] == pytest.approx([o.score for o in everything if o.item_id in allowed], abs=1e-5)


def test_an_item_on_both_lists_is_excluded(recommender: Recommender) -> None:
    found = recommender.recommend([["item-1"]], 5, exclude=[["item-7"]], allow=[["item-7", "item-8", "item-1"]])
    assert ids(found[0]) == ["item-8"]  # item-1 is the history


def test_fewer_or_none_where_the_filters_leave_fewer(recommender: Recommender) -> None:
    histories = [["item-1"], ["item-2"], ["item-3"], ["item-4"]]
    few, none, gone, rest = recommender.recommend(
        histories, 5, exclude=[[], [], recommender.item_ids, []], allow=[["item-9", "item-8"], [], None, None]
    )
    assert sorted(ids(few)) == ["item-8", "item-9"]
    assert none == []
    assert gone == []
    assert len(rest) == 5


@pytest.mark.parametrize("name", ["exclude", "allow"])
def test_one_list_a_history(name: str, recommender: Recommender) -> None:
    with pytest.raises(InputError, match=f"2 histories came with 1 {name}-lists; give one for each"):
        recommender.recommend([["item-1"], ["item-2"]], 5, **{name: [["item-3"]]})


def test_a_batch_equals_one_by_one(recommender: Recommender) -> None:
    histories = [["item-1"], ["item-2", "item-3", "item-4", "item-5", "item-6", "item-7"], ["item-8", "gone"]]
    exclude = [["item-10", "item-11"], [], ["item-12"]]
    allow = [None, [f"item-{n}" for n in range(20)], ["item-13", "item-14"]]
    together = recommender.recommend(histories, 12, exclude, allow)
    for number in range(3):
        (alone,) = recommender.recommend([histories[number]], 12, [exclude[number]], [allow[number]])
        assert ids(together[number]) == ids(alone)
        assert [a.score for a in together[number]] == pytest.approx([a.score for a in alone], abs=1e-5)
    assert [len(answer) for answer in together] == [12, 12, 2]


def test_rank_all_is_rank_in_any_batch_size(recommender: Recommender) -> None:
    histories = [np.array(h, dtype=np.int64) for h in ([1], [], [2, 3, 4], [5, 6], [7, 8, 9, 10, 11, 12])]
    one = np.stack([recommender.rank([history], 10, 20).rows[0].numpy() for history in histories])
    assert one.shape == (5, 10)
    assert (one >= 0).all()
    assert len({tuple(row) for row in one.tolist()}) > 1
    for size in (1, 2, 5, 100):
        assert np.array_equal(recommender.rank_all(histories, 10, 20, batch_size=size), one)
    assert recommender.rank_all([], 10, 20, batch_size=4).shape == (0, 10)


def _with_more(bundle: Path, path: Path, *rows: tuple[str, list[int]]) -> Path:
    table = read_table("sids", bundle / "sids.parquet")
    fixed = {"moved": False, "tokenizer_version": "tok-1"}
    new = [{"item_id": item, "sid": "_".join(map(str, codes)), "codes": codes, **fixed} for item, codes in rows]
    write_table("sids", pa.concat_tables([table, pa.Table.from_pylist(new, SCHEMAS["sids"])]), path)
    return path


def test_a_newer_table_of_the_same_tokenizer_adds_items(
    policy_bundle: Path, recommender: Recommender, tmp_path: Path
) -> None:
    """No retraining: the new item is answered, with the score of its codes, and old scores stay."""
    used = {tuple(row) for row in recommender.codes.tolist()}
    free = next([a, b, c] for a in range(8) for b in range(8) for c in range(8) if (a, b, c) not in used)
    newer = Recommender.load(policy_bundle, _with_more(policy_bundle, tmp_path / "sids.parquet", ("new", free)))
    assert newer.item_ids == [*recommender.item_ids, "new"]
    (answer,) = newer.recommend([["item-1"]], ITEMS + 1)
    scores = {one.item_id: one.score for one in answer}
    assert answer[ids(answer).index("new")].sid == "_".join(map(str, free))
    before = {one.item_id: one.score for one in recommender.recommend([["item-1"]], ITEMS)[0]}
    assert {item: scores[item] for item in before} == pytest.approx(before, abs=1e-5)
    assert set(scores) == set(before) | {"new"}
    assert len(newer.recommend([["new"]], 5)[0]) == 5
    with pytest.raises(InputError, match="none of the history's 1 items"):
        recommender.recommend([["new"]], 5)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (("new", "of item-3"), "belong to two items"),
        (("item-3", "free"), "names an item twice"),
        (("new", "beyond"), r"code 2 of a SID must lie in 0\.\.7, found 8"),
        (("new", "short"), "SIDs of 3 codes, some of these are longer or shorter"),
    ],
)
def test_unusable_sids_are_refused(
    row: tuple[str, str], says: str, policy_bundle: Path, recommender: Recommender, tmp_path: Path
) -> None:
    used = {tuple(codes) for codes in recommender.codes.tolist()}
    free = next([a, b, c] for a in range(8) for b in range(8) for c in range(8) if (a, b, c) not in used)
    codes = {"of item-3": recommender.codes[3].tolist(), "free": free, "beyond": [0, 0, 8], "short": [0, 1]}[row[1]]
    path = _with_more(policy_bundle, tmp_path / "sids.parquet", (row[0], codes))
    with pytest.raises(InputError, match=says):
        Recommender.load(policy_bundle, path)
