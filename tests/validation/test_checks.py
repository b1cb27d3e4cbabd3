"""The text rules behind the custom Expectations, on examples worked by hand."""

import numpy as np
import pytest

from validation.expectations.base import content_words, describe
from validation.expectations.captions import is_boilerplate, is_loop, is_refusal
from validation.expectations.catalogue import leaves_last_out
from validation.expectations.intents import grounded_share, is_text, is_vague, is_well_formed
from validation.expectations.quality import expected_score
from validation.expectations.sids import utilisation


@pytest.mark.parametrize(
    "caption",
    [
        "I cannot see the image you mention.", "I'm sorry, but there is no image.", "As an AI model, I describe…",
        "I am unable to view this photo.", "Unable to process the image.", "No image was provided.",
        "Please upload the product photo.", "I can’t help with that request.", "I do not have access to the photo.",
    ],
)
def test_refusals_are_recognised(caption: str) -> None:
    assert is_refusal(caption)


@pytest.mark.parametrize(
    "caption",
    [
        "A tent you cannot miss at the beach, in bright orange.", "An AI-themed poster with a robot on blue ground.",
        "A kettle for those who can't wait for tea.", "A camera that helps you to see the stars.",
        "A shirt that says 'I cannot adult today'.",
    ],
)
def test_ordinary_captions_are_no_refusals(caption: str) -> None:
    assert not is_refusal(caption)


def test_boilerplate_has_no_word_of_its_own() -> None:
    assert is_boilerplate("An image of a product on a white background.")
    assert is_boilerplate("Product photo, close-up view")
    assert not is_boilerplate("A photo of a red ball on a white background.")
    assert not is_boilerplate("")  # blank is another check's finding


def test_a_loop_has_few_distinct_words() -> None:
    assert is_loop("red ball " * 12, 0.3)  # 2 of 24 words
    assert not is_loop("red ball " * 4, 0.3)  # too short to judge
    assert not is_loop("a b c d e f g h i j k l m n o p q r s t", 0.3)


def test_vague_descriptors_fit_any_product() -> None:
    assert is_vague("good quality")
    assert is_vague("Nice!")
    assert is_vague("great value for the money")
    assert not is_vague("high altitude hiking")


def test_debris_of_json_is_no_text() -> None:
    assert is_text("red, size 4")
    for text in ('{"text": "red"', 'confidence": 0.9', "```json", "", "  ", "…", None):
        assert not is_text(text)


def test_descriptors_need_texts_and_no_repetition() -> None:
    assert is_well_formed([{"text": "red", "confidence": None}, {"text": "blue", "confidence": 1.0}])
    assert is_well_formed([])
    assert not is_well_formed([{"text": "Red"}, {"text": "red "}])
    assert not is_well_formed([{"text": None}])


def test_grounding_counts_descriptors_with_an_own_word() -> None:
    # "hikers" and "hiking" share a stem; "beach" is not in the text: 1 of 2.
    parts = [{"text": "for hikers"}, {"text": "beach days"}]
    assert grounded_share(parts, "Tent for hiking in the mountains") == 0.5
    assert grounded_share([], "anything") == 1.0
    assert content_words("The hikes of a hiker") == {"hik"}


def test_item_score_is_the_confidence_weighted_mean() -> None:
    # (0.9*1 + 0.6*1 + 0.5*0) / 2.0
    assert expected_score([1, 1, 0], [{"confidence": c} for c in (0.9, 0.6, 0.5)]) == pytest.approx(0.75)
    assert expected_score([1, 0, 0, 0], [{"confidence": None}] * 4) == 0.25
    assert expected_score([1, 0], [{"confidence": 0.5}]) is None
    assert expected_score([], []) is None


def test_utilisation_is_relative_to_what_the_items_can_use() -> None:
    codes = [np.array(row) for row in ([0, 0], [0, 0], [1, 0], [1, 0])]
    assert utilisation(codes, codebook_size=8) == [0.5, 0.25]  # four items cannot use more than four codes
    assert utilisation(codes * 4, codebook_size=8) == [0.25, 0.125]  # sixteen could use all eight
    assert utilisation(codes) == [1.0, 0.5]  # codes 0 and 1 seen: a codebook of two
    assert utilisation([]) == []


def test_a_level_after_which_items_are_alone_leaves_the_next_one_nothing_to_do() -> None:
    alone = [np.array(row) for row in ([0, 0], [1, 0], [2, 0], [3, 0])]
    assert utilisation(alone, codebook_size=8) == [1.0, 1.0]
    two_together = [np.array(row) for row in ([0, 0], [0, 0], [2, 0], [3, 0])]
    assert utilisation(two_together, codebook_size=8) == [0.75, 0.5]  # two items, of which one code is used


def test_leave_last_out_is_the_history_in_order() -> None:
    assert leaves_last_out(["a"], "b", "c", ["a", "b", "c"])
    assert leaves_last_out(["a", "b"], None, None, ["a", "b"])
    assert not leaves_last_out(["a"], "c", "b", ["a", "b", "c"])  # not in time order
    assert not leaves_last_out(["a", "c"], "b", "c", ["a", "b", "c"])  # the test item leaks into train
    assert not leaves_last_out(["a", "b", "c"], None, None, ["a", "b", "c"])  # nothing held out
    assert not leaves_last_out(["a"], None, None, float("nan"))  # a user without interactions


def test_examples_are_short() -> None:
    assert describe(np.array([3.0, 4.0], dtype=np.float32)) == "2 numbers, norm 5"
    assert describe(np.array([3, 17])) == "[3, 17]"
    descriptors = [{"text": "red", "confidence": 0.5}, {"text": "blue", "confidence": None}]
    assert describe(descriptors) == "'red' (0.50); 'blue'"
    assert len(describe("word " * 100)) == 160
