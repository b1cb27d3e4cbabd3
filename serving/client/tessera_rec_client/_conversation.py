"""From a request to its answer: the server first, and the user's cached list where the server fails.

`conversation` does no input or output: it yields what is to be asked next and is sent the answer or the error, so the
blocking and the asynchronous client take every decision in the same way.
"""

import time
from collections.abc import Generator
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Any

from tessera_rec_client._breaker import Breaker
from tessera_rec_client._query import Query
from tessera_rec_client.errors import (
    Busy,
    DeadlineExceeded,
    InvalidRequest,
    NotFound,
    ServerError,
    ServerUnavailable,
    TesseraClientError,
)
from tessera_rec_client.results import Recommendations, TopK, User


@dataclass(frozen=True)
class LookUp:
    """Ask the feature server for a user's history and cached list."""

    user: str
    timeout: float


@dataclass(frozen=True)
class Infer:
    """Ask Triton."""

    query: Query
    timeout: float


Steps = Generator[LookUp | Infer, Any, Recommendations]
# What the cache may answer instead; what is wrong with the request itself stays wrong.
_FAILED = (ServerUnavailable, DeadlineExceeded, ServerError)


class _Deadline:
    """How much of a request's time is left, in seconds."""

    def __init__(self, total: float) -> None:
        self.total, self._end = total, time.monotonic() + total

    def left(self, reserve: float = 0.0) -> float:
        """At least a millisecond, because a timeout of 0 is none to some transports."""
        return max(self._end - time.monotonic() - reserve, 0.001)

    @property
    def answering(self) -> float:
        """Time to keep for an answer that is at hand."""
        return min(0.1, self.total / 10)

    @property
    def asking(self) -> float:
        """Time to keep for a question to the feature server, on which all callers fall at once."""
        return min(1.0, self.total / 2)


def conversation(request: Query, seconds: float, breaker: Breaker, *, features: bool, fallback: bool) -> Steps:
    """Ask in the right order, within `seconds` altogether.

    Where only a user is given and there is a feature server, it is asked first, for history and cached list in one
    request, so that a server that then fails costs no second one. A user given beside a history is looked up only when
    the server fails; part of the time is kept for it.

    Args:
        features: there is a feature server to ask.
        fallback: cached lists may answer.

    Raises:
        TesseraClientError: neither the server nor the cache can answer.
    """
    deadline = _Deadline(seconds)
    user, helpless = None, None  # why the feature server is no help, where that is known
    if features and request.user is not None and not request.history:
        try:
            user = yield LookUp(request.user, deadline.left() / 2)
            request = replace(request, history=user.history)
            helpless = _no_list(user) if fallback and user.top_k is None else None
        except _FAILED as error:  # Triton may reach a feature server where this client does not
            helpless = "nor could the user be looked up", error
    if helpless or not (features and fallback and request.user is not None):
        try:
            return (yield from _server(request, deadline.left(), breaker))
        except _FAILED as error:
            if helpless:
                raise _both(error, *helpless) from error
            raise
    try:
        reserve = deadline.answering if user else deadline.asking
        return (yield from _server_if_well(request, deadline.left(reserve), breaker))
    except _FAILED as error:
        cause = error
    try:
        if user is None:
            user = yield LookUp(request.user, deadline.left(deadline.answering))
    except (*_FAILED, NotFound) as error:
        raise _both(cause, "nor could the user be looked up", error) from cause
    if user.top_k is None:
        raise _both(cause, *_no_list(user)) from cause
    return _from_cache(request, user, user.top_k)


def _server_if_well(request: Query, timeout: float, breaker: Breaker) -> Steps:
    if not breaker.allows(timeout):
        raise ServerUnavailable("the server failed several times in a row and is left alone for a moment; try again.")
    return (yield from _server(request, timeout, breaker))


def _server(request: Query, timeout: float, breaker: Breaker) -> Steps:
    try:
        answer: Recommendations = yield Infer(request, timeout)
    except (Busy, InvalidRequest, NotFound):  # it answers, and at once
        breaker.succeeded()
        raise
    except _FAILED:
        breaker.failed()
        raise
    breaker.succeeded()
    return answer


def _from_cache(request: Query, user: User, top_k: TopK) -> Recommendations:
    """The cached list under the request's own terms; what they take away is not filled up."""
    gone = set(request.exclude)
    if not request.include_history:
        gone.update(user.history, request.history)  # bought after the list was computed, say
    allowed = None if request.allow is None else set(request.allow)
    items = [
        item for item in top_k.items if item.item_id not in gone and (allowed is None or item.item_id in allowed)
    ]
    return Recommendations(
        tuple(items[: request.k]), top_k.policy_version, top_k.tokenizer_version,
        source="cache", computed_at=top_k.computed_at, age_s=_age(top_k), stale=top_k.stale,
    )  # fmt: skip


def _age(top_k: TopK) -> float | None:
    if top_k.computed_at is None:
        return None
    return max((datetime.now(timezone.utc) - top_k.computed_at).total_seconds(), 0.0)


def _no_list(user: User) -> tuple[str, TesseraClientError]:
    return "nor is there a cached list", NotFound(f"user {user.user_id!r} has none; run `tessera precompute`.")


def _both(cause: TesseraClientError, but: str, reason: TesseraClientError) -> TesseraClientError:
    """The server's error, and why the feature server was no help."""
    return type(cause)(f"{str(cause).rstrip('.')}; {but}: {reason}")
