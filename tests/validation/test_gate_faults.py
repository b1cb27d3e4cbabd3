"""Seeded faults: every check names the rows that break it, and no check names another row.

Faults of one table are put into different rows of one file, because a gate takes a second; the comparison is exact, so
a check that misses its fault, or complains of another one's, fails the test.
"""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tessera.errors import GateError

Rows = dict[str, list[dict[str, Any]]]
Gate = Callable[..., dict[str, Any]]


def refusals(gate: Gate, suite: str, rows: Rows, **options: Any) -> dict[tuple[str, str], set[str]]:
    """{(expectation, table.column): rows named} of a gate that must refuse, read from the error's text."""
    with pytest.raises(GateError) as caught:
        gate(suite, rows, **options)
    found: dict[tuple[str, str], set[str]] = {}
    for name, where, rest in re.findall(r"^- (\w+) \((.+?)\): (.*)$", str(caught.value), re.MULTILINE):
        assert "could not be checked" not in rest
        named = set(re.findall(r"(?:rows |; )((?:item|user)-\w+(?:#\d+)?): ", rest))
        found[name.removeprefix("expect_"), where] = named
    return found


def ids(*numbers: int) -> set[str]:
    return {f"item-{number:02d}" for number in numbers}


def test_catalogue_items(gate: Gate, rows: Rows) -> None:
    items = rows["items"]
    items[3]["title"] = " \t"
    items[5]["image_status"] = "lost"
    items[7]["image"] = None
    items[9]["brand"] = None
    items[11]["item_id"] = "item-10"
    assert refusals(gate, "catalogue", rows) == {
        ("text_not_to_be_blank", "items.title"): ids(3),
        ("column_values_to_be_in_set", "items.image_status"): ids(5),
        ("photo_to_fit_status", "items.image_status"): ids(5, 7),
        ("column_values_to_not_be_null", "items.brand"): ids(9),
        ("column_values_to_be_unique", "items.item_id"): ids(10),
    }


def test_catalogue_interactions_and_splits(gate: Gate, rows: Rows) -> None:
    interactions, splits = rows["interactions"], rows["splits"]
    interactions[2], interactions[3] = interactions[3], interactions[2]  # user 0, out of order
    interactions[12]["timestamp"] = -1  # user 2, position 2
    leaking = splits[5]
    leaking["train"] = [*leaking["train"], leaking["test"]]
    splits[8]["validation"] = None
    interactions[45]["item_id"] = splits[9]["train"][0] = "item-99"  # user 9, position 0
    assert refusals(gate, "catalogue", rows) == {
        ("interactions_to_be_in_order", "interactions.user_id, timestamp, position"): {"user-00#2", "user-02#2"},
        ("column_values_to_be_between", "interactions.timestamp"): {"user-02#2"},
        ("item_to_be_in_catalogue", "interactions.item_id"): {"user-09#0"},
        ("split_to_leave_last_out", "splits.train, validation, test, history"): {"user-00", "user-05", "user-08"},
    }


def test_captions(gate: Gate, rows: Rows) -> None:
    texts = {
        1: None,
        2: " … ",
        4: "Red",
        6: "An image of a product on a white background.",
        8: "I'm sorry, I cannot see the image of the tent.",
        10: "red ball " * 15,
    }
    for number, text in texts.items():
        rows["captions"][number]["caption"] = text
    del rows["captions"][12]
    stranger = {"item_id": "item-99", "caption": "A stranger in a green hat walks by."}
    rows["captions"].append(rows["captions"][0] | stranger)
    assert refusals(gate, "captions", rows) == {
        ("column_values_to_not_be_null", "captions.caption"): ids(1),
        ("text_not_to_be_blank", "captions.caption"): ids(2),
        ("column_value_lengths_to_be_between", "captions.caption"): ids(2, 4),
        ("caption_not_to_be_boilerplate", "captions.caption"): ids(6),
        ("caption_not_to_be_refusal", "captions.caption"): ids(8),
        ("caption_not_to_loop", "captions.caption"): ids(10),
        ("item_to_have_one_row", "items.captions_rows"): ids(12),
        ("item_to_be_in_catalogue", "captions.item_id"): ids(99),
    }


def test_captions_that_repeat(gate: Gate, rows: Rows) -> None:
    for row in rows["captions"][10:50]:
        row["caption"] = "A colourful thing, seen from the front in soft light"
    found = refusals(gate, "captions", rows)
    assert found == {("captions_to_be_distinct", "captions.caption"): ids(11, 12, 13, 14, 15)}


def test_enrichments_that_failed(gate: Gate, rows: Rows) -> None:
    for number in (2, 4, 6):
        rows["captions"][number] |= {"status": "failed", "caption": None, "reason": f"timeout {number}"}
    rows["captions"][6]["reason"] = None
    rows["captions"][8]["status"] = "maybe"
    assert refusals(gate, "captions", rows) == {
        ("column_values_to_be_in_set", "captions.status"): ids(8),
        ("column_values_to_not_be_null", "captions.reason"): ids(6),
        ("enrichment_to_have_succeeded", "captions.status"): ids(2, 4, 6, 8),
    }


def test_enrichments_that_all_failed(gate: Gate, rows: Rows) -> None:
    for row in rows["intents"]:
        row |= {"status": "failed", "reason": "no answer", "surface": [], "motives": [], "descriptors": []}
    for row in rows["quality"]:
        row |= {"status": "failed", "reason": "no descriptors", "labels": [], "score": None}
    assert refusals(gate, "intents", rows) == {
        ("enrichment_to_have_succeeded", "intents.status"): ids(0, 1, 2, 3, 4),
        ("enrichment_to_have_succeeded", "quality.status"): ids(0, 1, 2, 3, 4),
    }


def test_intents(gate: Gate, rows: Rows) -> None:
    intents, free = rows["intents"], [{"text": "weekend trips", "confidence": None}]
    intents[1]["surface"] = ["red", " "]
    intents[2]["motives"] = []
    intents[3]["descriptors"] = [*intents[3]["descriptors"], {"text": '"text": "cosy"', "confidence": 0.5}]
    intents[4]["descriptors"] = []
    intents[5]["descriptors"] = [{"text": f"street style {number}", "confidence": 0.5} for number in range(21)]
    intents[6]["descriptors"] = [{"text": "red balls", "confidence": 1.5}]
    intents[7]["descriptors"] = [{"text": "blue balls", "confidence": float("nan")}]
    for number in range(10, 17):
        intents[number]["descriptors"] = [*intents[number]["descriptors"], {"text": "good quality", "confidence": 0.9}]
    for number in range(20, 48):
        intents[number]["descriptors"] = free
    for row, quality in zip(intents, rows["quality"], strict=True):
        quality["labels"] = [1, 0] * 11
        quality["labels"] = quality["labels"][: len(row["descriptors"])]
        quality["score"] = weighted(row["descriptors"], quality["labels"])
    assert refusals(gate, "intents", rows) == {
        ("texts_to_be_listed", "intents.surface"): ids(1),
        ("texts_to_be_listed", "intents.motives"): ids(2),
        ("descriptors_to_be_well_formed", "intents.descriptors"): ids(3),
        ("descriptor_count_to_be_between", "intents.descriptors"): ids(4, 5),
        ("confidences_to_be_in_range", "intents.descriptors"): ids(6, 7),
        ("descriptors_not_to_be_vague", "intents.descriptors"): ids(10, 11, 12, 13, 14),
        ("descriptors_to_be_grounded", "intents.descriptors"): ids(20, 21, 22, 23, 24),
    }


def weighted(descriptors: list[dict[str, Any]], labels: list[int]) -> float:
    """The score of descriptors of which all or none have a confidence; NaN, the fault of one row, counts as 1."""
    weights = np.nan_to_num([part["confidence"] or 1.0 for part in descriptors], nan=1.0)
    return float((weights * labels).sum() / weights.sum()) if labels else 0.0


def test_descriptors_of_another_item(gate: Gate, rows: Rows) -> None:
    mined = [row["descriptors"] for row in rows["intents"]]
    for row, other in zip(rows["intents"], mined[7:] + mined[:7], strict=True):
        row["descriptors"] = other
    assert refusals(gate, "intents", rows) == {
        ("descriptors_to_be_grounded", "intents.descriptors"): ids(0, 1, 2, 3, 4)
    }


def test_quality(gate: Gate, rows: Rows) -> None:
    quality = rows["quality"]
    quality[1]["labels"] = [1, 1]
    quality[2]["labels"] = [1, 2, 0]
    quality[3]["score"] = None
    quality[4]["score"] = 0.4  # (0.9 + 0.6) / 2.0 = 0.75
    quality[5]["score"] = 1.75
    del rows["intents"][6]
    rows["items"][7] |= {"brand": None, "categories": None, "attributes": ["red", None]}
    assert refusals(gate, "intents", rows) == {
        ("item_to_have_one_row", "items.intents_rows"): ids(6),
        ("labels_to_fit_descriptors", "quality.labels"): ids(1, 2, 6),
        ("column_values_to_not_be_null", "quality.score"): ids(3),
        ("column_values_to_be_between", "quality.score"): ids(5),
        ("score_to_be_weighted_mean", "quality.score, labels, descriptors"): ids(2, 4, 5),
    }


def test_quality_labels_all_alike(gate: Gate, rows: Rows) -> None:
    for row in rows["quality"]:
        row |= {"labels": [1, 1, 1], "score": 1.0}
    with pytest.raises(GateError, match=r"expect_labels_to_be_balanced \(quality.labels\): 100.0% of 180 labels are 1"):
        gate("intents", rows)


def test_embeddings(gate: Gate, rows: Rows) -> None:
    table = rows["embeddings"]
    table[1]["text"] = [float("nan")] + [0.0] * 7
    table[2]["text"] = [float("inf")] + [0.0] * 7
    table[3]["text"] = [0.0] * 8
    table[4]["text"] = [1.0] + [0.0] * 8
    table[5]["image"] = [2.0] + [0.0] * 11
    table[6]["image"] = table[7]["image"] = None
    table[8]["item_id"] = "item-09"
    assert refusals(gate, "embeddings", rows) == {
        ("embedding_to_be_finite", "embeddings.text"): ids(1, 2),
        ("embedding_to_have_unit_norm", "embeddings.text"): ids(1, 2, 3),
        ("embeddings_to_have_one_dimension", "embeddings.text"): ids(4),
        ("embedding_to_have_unit_norm", "embeddings.image"): ids(5),
        ("column_values_to_not_be_null", "embeddings.image"): ids(6, 7),
        ("column_values_to_be_unique", "embeddings.item_id"): ids(9),
        ("item_to_have_one_row", "items.embeddings_rows"): ids(8, 9),
    }


def test_joint_embeddings_have_no_image_vectors(gate: Gate, rows: Rows) -> None:
    assert set(refusals(gate, "embeddings", rows, joint=True)) == {("column_values_to_be_null", "embeddings.image")}
    for row in rows["embeddings"]:
        row["image"] = None
    assert gate("embeddings", rows, joint=True)["success"]
    with pytest.raises(GateError, match=r"embeddings\.image"):
        gate("embeddings", rows)


def test_embeddings_that_repeat(gate: Gate, rows: Rows) -> None:
    for row in rows["embeddings"][20:]:
        row["text"] = rows["embeddings"][0]["text"]
    assert refusals(gate, "embeddings", rows) == {
        ("embeddings_to_be_distinct", "embeddings.text"): ids(20, 21, 22, 23, 24)
    }


def test_sids(gate: Gate, rows: Rows) -> None:
    table = rows["sids"]
    recode(table[1], [1, -1, 1])
    recode(table[2], [2, 8, 2])
    recode(table[3], [3, 0])
    table[4]["sid"] = "9_9_9"
    table[5]["tokenizer_version"] = "other"
    recode(table[7], table[6]["codes"])
    assert refusals(gate, "sids", rows, codebook_size=8) == {
        ("codes_to_be_in_range", "sids.codes"): ids(1, 2),
        ("sids_to_have_one_depth", "sids.codes"): ids(3),
        ("sid_to_equal_codes", "sids.sid"): ids(4),
        ("column_values_to_agree", "sids.tokenizer_version"): ids(5),
        ("column_values_to_be_unique", "sids.sid"): ids(6, 7),
    }


def recode(row: dict[str, Any], codes: list[int]) -> None:
    row |= {"codes": codes, "sid": "_".join(map(str, codes))}


def test_sids_of_a_collapsed_codebook(gate: Gate, rows: Rows) -> None:
    for number, row in enumerate(rows["sids"]):
        recode(row, [number % 8, 3, number // 8])
    with pytest.raises(GateError, match=r"expect_levels_to_be_utilised \(sids.codes\): .*level 2: 1.7%"):
        gate("sids", rows, codebook_size=64)


def test_sids_without_a_size_still_refuse_negative_codes(gate: Gate, rows: Rows) -> None:
    recode(rows["sids"][1], [1, -1, 1])
    assert refusals(gate, "sids", rows) == {("codes_to_be_in_range", "sids.codes"): ids(1)}

