"""Which questions the client asks, in which order and with how much time, and what it makes of the answers."""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from tessera_rec_client import (
    Busy,
    DeadlineExceeded,
    InvalidRequest,
    Item,
    NotFound,
    Recommendations,
    ServerError,
    ServerUnavailable,
    TopK,
    User,
)
from tessera_rec_client._breaker import Breaker
from tessera_rec_client._conversation import Infer, LookUp, conversation
from tessera_rec_client._query import Query, query

COMPUTED = datetime.now(timezone.utc) - timedelta(hours=1)
LIST = TopK(tuple(Item(name, f"1_{n}", -float(n)) for n, name in enumerate("abcdef")), "p1", "t1", COMPUTED, True)
ANN = User("ann", ("x", "b"), LIST)
FRESH = Recommendations((Item("z", "0_0", -0.1),), "p2", "t1")
FAILURES = [ServerUnavailable("down."), DeadlineExceeded("too slow."), ServerError("it broke."), Busy("it is full.")]


def ask(user: str | None = "ann", history: list[str] | None = None, k: int = 3, **more: Any) -> Query:
    given = {"exclude": (), "allow": None, "include_history": False, "priority": "interactive"} | more
    return query(history, user, k, **given)


def converse(
    request: Query,
    *answers: Any,
    breaker: Breaker | None = None,
    seconds: float = 2.0,
    features: bool = True,
    fallback: bool = True,
) -> tuple[Recommendations, list[Any]]:
    """Answer the client's questions with `answers` in turn, errors too; its answer, and what it asked."""
    steps = conversation(request, seconds, breaker or Breaker(3, 60), features=features, fallback=fallback)
    asked, rest = [], list(answers)
    try:
        step = next(steps)
        while True:
            asked.append(step)
            answer = rest.pop(0)
            step = steps.throw(answer) if isinstance(answer, Exception) else steps.send(answer)
    except StopIteration as done:
        assert rest == []
        return done.value, asked


def failing(request: Query, *answers: Any, **more: Any) -> Exception:
    with pytest.raises(Exception) as raised:
        converse(request, *answers, **more)
    return raised.value


def names(answer: Recommendations) -> str:
    return "".join(item.item_id for item in answer.items)


def test_a_user_is_looked_up_first_and_the_server_asked_with_the_history() -> None:
    answer, asked = converse(ask(), ANN, FRESH)
    assert answer is FRESH
    assert answer.source == "policy"
    assert [type(step) for step in asked] == [LookUp, Infer]
    tensors = {name: values for name, _, values in asked[1].query.tensors()}
    assert tensors == {"history": ["x", "b"], "k": tensors["k"]}


def test_a_history_of_the_callers_own_goes_to_the_server_and_the_user_only_names_the_list() -> None:
    answer, asked = converse(ask(history=["c"]), FRESH)
    assert answer is FRESH
    tensors = {name: values for name, _, values in asked[0].query.tensors()}
    assert tensors == {"history": ["c"], "k": tensors["k"]}
    answer, asked = converse(ask(history=["c"]), ServerUnavailable("down."), ANN)
    assert [type(step) for step in asked] == [Infer, LookUp]
    assert names(answer) == "ade"  # b was bought, c is in the caller's history


@pytest.mark.parametrize("failure", FAILURES, ids=lambda error: type(error).__name__)
def test_a_failing_server_is_answered_for_from_the_list_in_hand(failure: Exception) -> None:
    answer, asked = converse(ask(), ANN, failure)
    assert len(asked) == 2  # one question to the feature server, one to Triton
    assert names(answer) == "acd"
    assert (answer.source, answer.policy_version, answer.tokenizer_version) == ("cache", "p1", "t1")
    assert (answer.computed_at, answer.stale) == (COMPUTED, True)
    assert answer.age_s == pytest.approx((datetime.now(timezone.utc) - COMPUTED).total_seconds(), abs=60)
    assert [item.score for item in answer.items] == [0.0, -2.0, -3.0]


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"k": 1}, "a"), ({"k": 100}, "acdef"), ({"exclude": ["a", "d"]}, "cef"), ({"allow": ["f", "a", "b"]}, "af"),
        ({"include_history": True}, "abc"), ({"allow": ["b"]}, ""), ({"allow": ["q"], "include_history": True}, ""),
    ],
)  # fmt: skip
def test_a_cached_list_obeys_the_request(more: dict[str, Any], expected: str) -> None:
    answer, _ = converse(ask(**more), ANN, ServerUnavailable("down."))
    assert (names(answer), answer.source) == (expected, "cache")


@pytest.mark.parametrize("error", [InvalidRequest("k is 900."), NotFound("no user 'ann'.")])
def test_what_is_wrong_with_the_request_is_never_answered_from_the_cache(error: Exception) -> None:
    assert failing(ask(), ANN, error) is error
    assert failing(ask(history=["c"]), error) is error
    assert failing(ask(), error) is error  # from the look-up itself


def test_without_a_flag_a_user_or_a_feature_server_the_error_comes_out() -> None:
    error = ServerUnavailable("down.")
    assert failing(ask(), ANN, error, fallback=False) is error
    assert failing(ask(), error, features=False) is error
    assert failing(ask(user=None, history=["c"]), error) is error


def test_a_feature_server_that_fails_leaves_the_user_to_triton() -> None:
    answer, asked = converse(ask(), ServerUnavailable("no feature server."), FRESH)
    assert answer is FRESH
    tensors = {name: values for name, _, values in asked[1].query.tensors()}
    assert tensors == {"user_id": ["ann"], "k": tensors["k"]}
    for fallback in (True, False):
        error = failing(ask(), DeadlineExceeded("Feast is slow."), Busy("it is full."), fallback=fallback)
        assert type(error) is Busy  # the server's kind of error, with both reasons, and nobody is asked twice
        assert str(error) == "it is full; nor could the user be looked up: Feast is slow."


def test_a_user_without_a_list_gets_the_servers_error_and_is_told() -> None:
    error = failing(ask(), replace(ANN, top_k=None), ServerUnavailable("it is down."))
    assert type(error) is ServerUnavailable
    assert str(error) == "it is down; nor is there a cached list: user 'ann' has none; run `tessera precompute`."
    error = failing(ask(history=["c"]), DeadlineExceeded("slow."), NotFound("no user 'ann'."))
    assert type(error) is DeadlineExceeded


def test_time_is_kept_for_the_cache() -> None:
    for seconds in (0.1, 1.0, 30.0):
        _, (look_up, infer) = converse(ask(), ANN, FRESH, seconds=seconds)
        assert look_up.timeout <= seconds / 2
        assert seconds * 0.8 <= infer.timeout <= seconds - min(0.1, seconds / 10)  # the list is at hand by then
        _, (infer, look_up) = converse(ask(history=["c"]), DeadlineExceeded("slow."), ANN, seconds=seconds)
        kept = seconds - infer.timeout
        assert min(1.0, seconds / 2) <= kept + 1e-3 <= seconds / 2 + 2e-3
        assert look_up.timeout <= seconds - min(0.1, seconds / 10)
        _, (infer,) = converse(ask(user=None, history=["c"]), FRESH, seconds=seconds)
        assert infer.timeout > seconds * 0.9  # nothing to keep it for


def test_after_failures_in_a_row_the_list_answers_at_once() -> None:
    breaker = Breaker(2, 60)
    for _ in range(2):
        converse(ask(), ANN, ServerError("it broke."), breaker=breaker)
    answer, asked = converse(ask(), ANN, breaker=breaker)  # the server is not asked
    assert answer.source == "cache"
    assert len(asked) == 1
    error = failing(ask(history=["c"]), replace(ANN, top_k=None), breaker=breaker)
    assert "left alone for a moment" in str(error)
    for request, *answers in (  # no list could answer these
        (ask(user=None, history=["c"]), ServerError("it broke.")),
        (ask(), replace(ANN, top_k=None), ServerError("it broke.")),
        (ask(), ServerUnavailable("no feature server."), ServerError("it broke.")),
    ):
        assert "it broke" in str(failing(request, *answers, breaker=breaker))
    converse(ask(), ANN, breaker=breaker)  # still open
    answer, _ = converse(ask(user=None, history=["c"]), FRESH, breaker=breaker)
    assert answer is FRESH
    _, asked = converse(ask(), ANN, FRESH, breaker=breaker)  # and the server was well
    assert len(asked) == 2


@pytest.mark.parametrize(
    "make", [lambda: Busy("full."), lambda: InvalidRequest("k is 900."), lambda: NotFound("no user.")]
)
def test_a_server_that_answers_is_not_left_alone(make: Callable[[], Exception]) -> None:
    """Busy says so at once, and a full queue of batch requests must not keep the interactive ones away."""
    breaker = Breaker(2, 60)
    for _ in range(5):
        breaker.failed()
        with pytest.raises(type(make())):
            converse(ask(), ANN, make(), breaker=breaker, fallback=False)
    _, asked = converse(ask(), ANN, FRESH, breaker=breaker)
    assert len(asked) == 2
