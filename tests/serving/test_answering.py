"""Batches of requests to answers, with a real policy in this process."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving.answering import MAX_LIST, Answerer, Refusal, is_probe
from tessera.decoding.recommender import Recommender
from tessera.errors import ServiceError

USERS = {"ann": ["103", "117", "104"]}


def texts(*values: str) -> np.ndarray:
    return np.array([[value.encode() for value in values]], dtype=object).reshape(1, len(values))


def number(value: int) -> np.ndarray:
    return np.array([[value]], dtype=np.int32)


def from_store(users: list[str]) -> list[list[str] | None]:
    return [USERS.get(user) for user in users]


class Counting(Recommender):
    """Counts its decodes."""

    calls = 0

    def recommend(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return super().recommend(*args, **kwargs)


@pytest.fixture(scope="module")
def engine(policies: tuple[Path, Path]) -> Recommender:
    return Counting.load(policies[0])


@pytest.fixture(scope="module")
def answerer(engine: Recommender) -> Answerer:
    return Answerer(engine, from_store)


def ask(answerer: Answerer, requests: list[Any]) -> list[Any]:
    """Answers in the order of the requests, malformed ones refused."""
    parsed = [answerer.parse(request) for request in requests]
    found = iter(answerer.answer([one for one in parsed if not isinstance(one, Refusal)]))
    return [one if isinstance(one, Refusal) else next(found) for one in parsed]


def ids(answer: Any) -> list[list[str]]:
    assert not isinstance(answer, Refusal), answer
    return [[raw.decode() for raw in row if raw] for row in answer["item_ids"].tolist()]


def test_a_batch_gives_each_request_what_the_policy_gives_it_alone(answerer: Answerer, engine: Recommender) -> None:
    engine.calls = 0
    requests = [
        {"history": texts("103", "117"), "k": number(3)},
        {"history_ids": np.array([[103, 117]])},
        {"history": texts("150"), "k": number(20), "exclude": texts("101", "x"), "allow": texts("101", "102", "150")},
        {"history": texts("150"), "allow": texts("150", "102"), "include_history": np.array([[True]])},
        {"user_id": texts("ann"), "k": number(4)},
    ]
    answers = ask(answerer, requests)
    assert engine.calls == 1
    expected = [
        engine.recommend([["103", "117"]], 3)[0],
        engine.recommend([["103", "117"]], 10)[0],
        engine.recommend([["150"]], 20, [["101"]], [["102"]])[0],
        engine.recommend([["150"]], 10, None, [["150", "102"]], exclude_history=False)[0],
        engine.recommend([USERS["ann"]], 4)[0],
    ]
    assert [ids(answer)[0] for answer in answers] == [[one.item_id for one in row] for row in expected]
    assert [len(row) for row in expected] == [3, 10, 1, 2, 4]
    for answer, row in zip(answers, expected, strict=True):
        assert answer["sids"].tolist() == [[one.sid.encode() for one in row]]
        np.testing.assert_allclose(answer["scores"], [[one.score for one in row]], rtol=1e-5)
        assert answer["scores"].dtype == np.float32
        assert answer["policy_version"].tolist() == [[engine.policy_version.encode()]]
        assert answer["tokenizer_version"].tolist() == [[b"tok-1"]]


def test_each_request_has_its_own_diversity(answerer: Answerer, engine: Recommender) -> None:
    dials = (0.0, 0.7, 1.0)
    requests = [{"history": texts("103", "117"), "diversity": np.array([[d]], np.float32)} for d in dials]
    engine.calls = 0
    answers = ask(answerer, [*requests, {"history": texts("103", "117")}])
    assert engine.calls == 1
    expected = [engine.recommend([["103", "117"]], 10, diversity=d)[0] for d in dials]
    for answer, row in zip(answers, [*expected, expected[0]], strict=True):
        assert ids(answer)[0] == [one.item_id for one in row]
        np.testing.assert_allclose(answer["scores"], [[one.score for one in row]], rtol=1e-5)
    assert answers[2]["scores"].tolist() != answers[0]["scores"].tolist()


def test_who_shares_the_batch_does_not_widen_the_search(answerer: Answerer) -> None:
    small = {"history": texts("103", "117"), "k": number(5)}
    alone = ask(answerer, [small])[0]
    together = ask(answerer, [{"history": texts("110"), "k": number(60)}, small])
    assert len(ids(together[0])[0]) == 59  # all but the history
    assert ids(together[1]) == ids(alone)


def test_an_input_of_padding_alone_is_as_one_that_was_not_sent(answerer: Answerer) -> None:
    padded = {name: texts("") for name in ("user_id", "exclude", "allow")} | {"include_history": np.array([[False]])}
    one, other = ask(answerer, [{"history": texts("103")}, {"history": texts("103", ""), **padded}])
    assert ids(one) == ids(other)


def test_rows_of_one_request_are_padded_to_the_longest(answerer: Answerer, engine: Recommender) -> None:
    history = np.array([[b"103", b"117"], [b"150", b""]], dtype=object)
    allow = np.array([[b"101", b"102", b"104"], [b"101", b"", b""]], dtype=object)
    answer = ask(answerer, [{"history": history, "allow": allow}])[0]
    assert ids(answer) == [
        [one.item_id for one in engine.recommend([["103", "117"]], 10, None, [["101", "102", "104"]])[0]],
        ["101"],
    ]
    assert answer["item_ids"].shape == answer["scores"].shape == (2, 3)
    assert answer["scores"][1, 1:].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({}, "the history is empty"),
        ({"history": texts("103"), "user_id": texts("ann")}, "not history and user_id"),
        ({"history": texts()}, "the history is empty"),
        ({"history": texts("")}, "the history is empty"),
        ({"history": texts("x", "y")}, "none of the history's 2 items is in the catalogue"),
        ({"history": texts("103"), "k": number(0)}, "k is 0; ask for 1 to 60 items"),
        ({"history": texts("103"), "k": number(61)}, "k is 61; ask for 1 to 60 items"),
        ({"history": texts("103"), "diversity": np.array([[-0.5]], np.float32)}, "diversity is -0.5; send a number"),
        ({"history": texts("103"), "diversity": np.array([[np.nan]], np.float32)}, "diversity is nan"),
        ({"history": texts("103"), "allow": texts()}, "the allow list is empty"),
        ({"history": texts("103"), "allow": texts("x")}, "no item of the allow list"),
        ({"history": np.array([[b"\xff"]], dtype=object)}, "not UTF-8"),
        ({"history": texts(*["103"] * (MAX_LIST + 1))}, f"send at most {MAX_LIST}"),
        ({"history": np.array([[b"103"], [b"104"]], dtype=object), "k": number(3)}, "different numbers of rows (1, 2)"),
        ({"history_ids": np.full((1, MAX_LIST + 1), 103)}, f"history_ids has {MAX_LIST + 1} entries; send at most"),
        ({"history": np.empty((0, 1), dtype=object)}, "the request has no row"),
        ({"probe": np.array([[True]]), "history": texts("103")}, "not history and probe"),
        ({"probe": np.array([[False]])}, "the history is empty"),
        ({"user_id": texts("a\x00b")}, r"at most 1000 printable characters; check 'a\x00b'"),
        ({"user_id": texts("u" * 1001)}, "at most 1000 printable characters; check 'uuuu"),
        ({"user_id": texts("eve")}, "no history of user 'eve'"),
        ({"user_id": texts("")}, "the history is empty"),
    ],
)
def test_a_bad_request_is_refused_in_its_place(request_: Any, message: str, answerer: Answerer) -> None:
    good = {"history": texts("103"), "k": number(2)}
    first, refused, last = ask(answerer, [good, request_, good])
    assert isinstance(refused, Refusal)
    assert message in refused.message
    assert refused.kind == ("missing" if "eve" in message else "invalid")
    assert ids(first) == ids(last)
    assert len(ids(first)[0]) == 2


def test_users_of_a_batch_are_looked_up_once_and_a_dead_store_refuses_only_them(engine: Recommender) -> None:
    asked: list[list[str]] = []

    def dead(users: list[str]) -> list[list[str] | None]:
        asked.append(users)
        raise ServiceError("the feature server is not up.")

    ann, bob = {"user_id": texts("ann")}, {"user_id": texts("bob")}
    answers = ask(Answerer(engine, dead), [ann, {"history": texts("103")}, bob, ann])
    assert asked == [["ann", "bob"]]
    assert [isinstance(answer, Refusal) for answer in answers] == [True, False, True, True]
    assert answers[0] == Refusal("the feature server is not up.", "unavailable")


def test_a_probe_needs_no_item_and_decodes_one(answerer: Answerer, engine: Recommender) -> None:
    probe = {"probe": np.array([[True]]), "k": number(3), "include_history": np.array([[True]])}
    expected = engine.recommend([engine.item_ids[:1]], 3, exclude_history=False)[0]
    assert ids(ask(answerer, [probe])[0])[0] == [one.item_id for one in expected]


@pytest.mark.parametrize(
    ("inputs", "is_one"),
    [
        ({"probe": np.array([[True]]), "k": number(1)}, True),
        ({"probe": np.array([[False]]), "k": number(1)}, False),
        ({"probe": np.array([[True]]), "k": number(2)}, False),
        ({"probe": np.array([[True]])}, False),  # ten items
        ({"probe": np.array([[True], [True]]), "k": np.array([[1], [1]])}, False),
        ({"probe": np.empty((0, 1), bool), "k": np.empty((0, 1), np.int32)}, False),
        ({"history": texts("103"), "k": number(1)}, False),
    ],
)
def test_only_a_question_for_one_item_of_nobody_is_a_health_check(inputs: Any, is_one: bool) -> None:
    assert is_probe(inputs) == is_one


def test_the_index_says_its_version(engine: Recommender) -> None:
    (answer,) = ask(Answerer(engine, from_store, "idx-1"), [{"history": texts("103")}])
    assert not isinstance(answer, Refusal)
    assert answer["index_version"].tolist() == [[b"idx-1"]]


def test_a_defect_that_one_request_meets_leaves_the_others_alone(policies: tuple[Path, Path]) -> None:
    class Defective(Recommender):
        def recommend(self, histories: Any, *args: Any, **kwargs: Any) -> Any:
            if ["150"] in histories:
                raise IndexError("of the engine")
            return super().recommend(histories, *args, **kwargs)

    good = {"history": texts("103"), "k": number(2)}
    answerer = Answerer(Defective.load(policies[0]), from_store)
    first, failed, last = ask(answerer, [good, {"history": texts("150")}, good])
    assert ids(first) == ids(last)
    assert isinstance(failed, Refusal)
    assert failed.kind == "internal"
    assert "the policy failed on this request (IndexError)" in failed.message


def test_an_empty_batch_and_a_batch_of_refusals_decode_nothing(answerer: Answerer, engine: Recommender) -> None:
    engine.calls = 0
    assert answerer.answer([]) == []
    assert isinstance(ask(answerer, [{}])[0], Refusal)
    assert engine.calls == 0
