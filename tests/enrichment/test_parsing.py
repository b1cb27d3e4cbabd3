"""Strict parsing of model answers: what is taken, what is repaired, what is refused, and with which reason."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.enrichment.parsing import Descriptor, ParseError, parse_caption, parse_intents, parse_labels

GOOD = {
    "surface": ["size 5", "white"],
    "motives": ["play a match on grass"],
    "descriptors": [{"text": "weekend football", "confidence": 0.9}, {"text": "school teams"}],
}


def test_intents_are_read_with_and_without_confidence() -> None:
    intents = parse_intents(json.dumps(GOOD))
    assert intents.surface == ("size 5", "white")
    assert intents.motives == ("play a match on grass",)
    assert intents.descriptors == (Descriptor("weekend football", 0.9), Descriptor("school teams", None))


@pytest.mark.parametrize(
    "raw",
    [
        "```json\n" + json.dumps(GOOD, indent=1) + "\n```",
        "Sure! Here it is:\n" + json.dumps(GOOD) + "\nHope that helps {really}.",
        json.dumps(GOOD)[:-2] + ",]}",
        json.dumps(GOOD)[:-1] + ",\n}",
    ],
    ids=["fences", "chatter", "comma in list", "comma in object"],
)
def test_one_mechanical_repair(raw: str) -> None:
    with pytest.raises(json.JSONDecodeError):
        json.loads(raw)
    assert parse_intents(raw) == parse_intents(json.dumps(GOOD))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"descriptors": []}, '"descriptors" has 0 entries, expected 1 to 8'),
        ({"descriptors": [{"text": f"tag {n}"} for n in range(9)]}, '"descriptors" has 9 entries'),
        ({"descriptors": "football"}, '"descriptors" must be a list'),
        ({"descriptors": ["football"]}, 'must be an object with "text"'),
        ({"descriptors": [{"text": 5}]}, "must be a string"),
        ({"descriptors": [{"text": "x" * 81}]}, "81 characters"),
        ({"descriptors": [{"text": "  "}]}, "0 characters"),
        ({"descriptors": [{"text": "ok tag", "confidence": 1.01}]}, "between 0 and 1, not 1.01"),
        ({"descriptors": [{"text": "ok tag", "confidence": -0.1}]}, "between 0 and 1"),
        ({"descriptors": [{"text": "ok tag", "confidence": "0.9"}]}, "between 0 and 1, not '0.9'"),
        ({"descriptors": [{"text": "ok tag", "confidence": True}]}, "between 0 and 1"),
        ({"descriptors": [{"text": "ok tag", "confidence": float("nan")}]}, "between 0 and 1"),
        ({"motives": []}, '"motives" has 0 entries'),
        ({"motives": [3]}, 'each of "motives" must be a string'),
        ({"surface": None}, '"surface" must be a list'),
    ],
)
def test_what_does_not_fit_is_refused_with_its_reason(change: dict, reason: str) -> None:
    with pytest.raises(ParseError) as error:
        parse_intents(json.dumps(GOOD | change))
    assert reason in str(error.value)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ("", "empty"),
        ("I'm sorry, but I cannot help with that.", "refused"),
        ("[1, 2]", "not a JSON object"),
        ("no idea", "no JSON object"),
        (json.dumps(GOOD)[:60], "not valid JSON"),
        ("[" * 100_000, "no JSON object"),
        ('{"a":' * 100_000, "nested too deeply"),
    ],
)
def test_text_without_an_object_is_refused(raw: str, reason: str) -> None:
    with pytest.raises(ParseError, match=reason):
        parse_intents(raw)


def test_descriptors_are_merged_ignoring_case_and_the_first_wins() -> None:
    tags = [{"text": "Beach  Volleyball", "confidence": 0.3}, {"text": "beach volleyball", "confidence": 0.9}]
    assert parse_intents(json.dumps(GOOD | {"descriptors": tags})).descriptors == (Descriptor("Beach Volleyball", 0.3),)


def test_characters_that_no_database_stores_are_dropped() -> None:
    raw = '{"surface": [], "motives": ["a\\u0000b \\ud800 cd"], "descriptors": [{"text": "x\\ny z"}]}'
    intents = parse_intents(raw)
    assert intents.motives == ("a b cd",)
    assert intents.descriptors[0].text == "x y z"


def test_labels_are_zeros_and_ones_and_as_many_as_descriptors() -> None:
    assert parse_labels('{"labels": [1, 0, 1]}', 3) == [1, 0, 1]
    for raw in ('{"labels": [1, 0]}', '{"labels": [1, 0, 2]}', '{"labels": [1, 0, true]}', '{"labels": [1, 0, "1"]}'):
        with pytest.raises(ParseError, match="labels"):
            parse_labels(raw, 3)


def test_captions_are_one_line_and_refusals_are_not_captions() -> None:
    assert parse_caption('Caption: "A red ball\n on  sand." ') == "A red ball on sand."
    refusals = "I'm sorry, I can't see it at all.", "As an AI language model I have no eyes.", "I cannot view images."
    for refusal in refusals:
        with pytest.raises(ParseError, match="refused"):
            parse_caption(refusal)
    with pytest.raises(ParseError, match="characters"):
        parse_caption("ball")
    with pytest.raises(ParseError, match="901 characters"):
        parse_caption("x" * 901)


@given(st.text(max_size=300))
def test_any_text_gives_intents_or_a_parse_error(raw: str) -> None:
    try:
        intents = parse_intents(raw)
    except ParseError:
        return
    assert 1 <= len(intents.descriptors) <= 8


@given(
    st.lists(
        st.tuples(st.text(min_size=3, max_size=20), st.floats(0, 1)), min_size=1, max_size=8, unique_by=lambda t: t[0]
    )
)
def test_what_is_taken_keeps_order_and_is_unique(tags: list[tuple[str, float]]) -> None:
    raw = json.dumps(GOOD | {"descriptors": [{"text": text, "confidence": c} for text, c in tags]})
    try:
        found = parse_intents(raw).descriptors
    except ParseError:
        return
    assert len({d.text.casefold() for d in found}) == len(found)
    given_order = [c for _, c in tags]
    positions = [given_order.index(d.confidence) for d in found if given_order.count(d.confidence) == 1]
    assert positions == sorted(positions)
