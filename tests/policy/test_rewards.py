"""Each reward by hand, and that quality never pays for a wrong item."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tessera.policy import labels, rewards
from tessera.schema import SCHEMAS

ROWS = torch.tensor([[0, 1, -1, 2], [2, 2, 0, -1]])
TARGETS = torch.tensor([1, 2])


def test_exact_match() -> None:
    assert rewards.exact_match(ROWS, TARGETS).tolist() == [[0, 1, 0, 0], [1, 1, 0, 0]]


def test_prefix_match_stops_at_the_first_wrong_code() -> None:
    """Of (5, 6, 7): all right 3/3; (5, 6, 0) 2/3; (5, 0, 7) 1/3, its last code counts no more; (0, 6, 7) nothing."""
    codes = torch.tensor([[[5, 6, 7], [5, 6, 0], [5, 0, 7], [0, 6, 7]]])
    assert rewards.prefix_match(codes, torch.tensor([[5, 6, 7]]))[0].tolist() == pytest.approx([1, 2 / 3, 1 / 3, 0])


def test_sid_format_pays_for_an_existing_item_and_for_the_prefix() -> None:
    """The target 1 + 3/3; another item that shares two codes 1 + 2/3; one that shares none 1; no item 0 + 2/3."""
    rows = torch.tensor([[1, 0, 2, -1]])
    codes = torch.tensor([[[5, 6, 7], [5, 6, 0], [1, 1, 1], [5, 6, 9]]])
    got = rewards.sid_format(rows, codes, torch.tensor([[5, 6, 7]]))
    assert got[0].tolist() == pytest.approx([2, 5 / 3, 1, 2 / 3])


def test_collaborative_is_the_cosine_of_item_vectors() -> None:
    """Target 1 = (1, 1): item 0 = (2, 0) is at 45 degrees, 2 = (-1, 0) points away, 3 is unknown to everybody."""
    vectors = torch.tensor([[2.0, 0.0], [1.0, 1.0], [-1.0, 0.0], [0.0, 0.0]])
    got = rewards.collaborative(torch.tensor([[0, 1, 2, 3, -1]]), torch.tensor([1]), vectors)
    assert got[0].tolist() == pytest.approx([2**-0.5, 1, 0, 0, 0])


def test_gated_bonus_is_the_targets_quality_where_it_is_decoded() -> None:
    got = rewards.gated_bonus(ROWS, TARGETS, torch.tensor([0.9, 0.4, 0.7]))
    assert got.flatten().tolist() == pytest.approx([0, 0.4, 0, 0, 0.7, 0.7, 0, 0])


@given(st.data())
def test_quality_never_raises_the_reward_of_a_wrong_item(data: st.DataObject) -> None:
    items = data.draw(st.integers(1, 9))
    scores = torch.tensor(data.draw(st.lists(st.floats(0, 1, width=32), min_size=items, max_size=items)))
    group = data.draw(st.lists(st.integers(-1, items - 1), min_size=1, max_size=8))
    target = data.draw(st.integers(0, items - 1))
    bonus = rewards.gated_bonus(torch.tensor([group]), torch.tensor([target]), scores)[0].tolist()
    assert bonus == [float(scores[target]) if row == target else 0.0 for row in group]


IDS = ["a", "b", "c", "none"]
MADE = {"provider": "p", "model": "m", "prompt_version": "v1", "status": "ok"}
DESCRIPTORS = {
    "a": [("long camping trips", 0.8), ("nice", 0.2)],
    "b": [("gift for runners", None), ("nice", 0.5)],
    "c": [("nice", 1.0)],
}


def intents() -> pa.Table:
    rows = [
        {"item_id": item, **MADE, "surface": [], "motives": [], "reason": None,
         "descriptors": [{"text": text, "confidence": confidence} for text, confidence in found]}
        for item, found in DESCRIPTORS.items()
    ]
    return pa.Table.from_pylist(rows, SCHEMAS["intents"])


def judged(score_of: dict[str, float | None], ones: dict[str, list[int]]) -> pa.Table:
    rows = [
        {"item_id": item, **MADE, "labels": ones[item], "score": score, "reason": None}
        for item, score in score_of.items()
    ]
    return pa.Table.from_pylist(rows, SCHEMAS["quality"])


QUALITY = judged({"c": None, "b": 0.5, "a": 0.8}, {"a": [1, 0], "b": [1, 0], "c": [0]})


def test_quality_scores_follow_the_items() -> None:
    """In the catalogue's order and not the table's; what failed or is missing scores nothing."""
    assert labels.quality(IDS, QUALITY).tolist() == pytest.approx([0.8, 0.5, 0, 0])


def test_uniform_scores_are_as_large_on_average() -> None:
    assert labels.uniform(IDS, QUALITY).tolist() == pytest.approx([0.325] * 4)


def test_heuristic_labels_take_rare_descriptors_of_several_words() -> None:
    """a: 0.8 of 1.0; b: plain mean, because one confidence is unknown; "nice" is one word."""
    assert labels.heuristic(IDS, intents()).tolist() == pytest.approx([0.8, 0.5, 0, 0])


def test_heuristic_labels_leave_out_what_many_items_share() -> None:
    """Twice among 20 items is more than one in twenty; a single holder never is."""
    rows = [
        {"item_id": str(n), **MADE, "surface": [], "motives": [], "reason": None,
         "descriptors": [{"text": "daily use" if n < 2 else f"use number {n}", "confidence": 1.0}]}
        for n in range(20)
    ]
    table = pa.Table.from_pylist(rows, SCHEMAS["intents"])
    assert labels.heuristic([str(n) for n in range(20)], table).tolist() == [0, 0, *[1] * 18]


def test_random_labels_are_one_as_often_as_the_real_ones() -> None:
    """One descriptor in four is good; which ones, the seed decides."""
    ids = [str(n) for n in range(4000)]
    rows = [{"item_id": i, **MADE, "surface": [], "motives": [], "reason": None,
             "descriptors": [{"text": "x", "confidence": 1.0}]} for i in ids]
    table = pa.Table.from_pylist(rows, SCHEMAS["intents"])
    real = judged(dict.fromkeys(ids, 0.0), {i: [int(n % 4 == 0)] for n, i in enumerate(ids)})
    drawn = labels.random(ids, real, table, seed=1)
    assert drawn.mean() == pytest.approx(0.25, abs=0.03)
    assert set(drawn.tolist()) == {0.0, 1.0}
    assert abs(np.corrcoef(drawn, labels.random(ids, real, table, seed=2))[0, 1]) < 0.06
    assert np.array_equal(drawn, labels.random(ids, real, table, seed=1))


def test_labels_of_a_catalogue_without_judged_descriptors() -> None:
    empty = judged({}, {})
    assert labels.quality(IDS, empty).tolist() == labels.uniform(IDS, empty).tolist() == [0.0] * 4
    assert labels.random(IDS, empty, intents(), 0).tolist() == [0.0] * 4
