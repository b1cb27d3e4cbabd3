"""From a batch of Triton requests to recommendations, apart from Triton itself: numpy arrays in, numpy arrays out.

A bad request becomes a `Refusal` in its place, so the others of its batch are answered. Nothing here may depend on the
numpy version: the embedded server runs it on numpy 1, a container on numpy 2.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import numpy as np

from tessera.decoding.recommender import BEAMS
from tessera.errors import InputError, ServiceError, TesseraError

DEFAULT_K = 10
# Limits of one request: the beam search's cost grows with k, lists travel with every request, and a user id goes on to
# the feature store and into messages.
MAX_K, MAX_LIST, MAX_USER = 500, 10_000, 1_000

log = logging.getLogger(__name__)

T = TypeVar("T")
Arrays = dict[str, np.ndarray]
# user ids -> history of each, None for an unknown user.
HistoriesOf = Callable[[list[str]], list[list[str] | None]]


@dataclass(frozen=True)
class Refusal:
    """Why one request has no answer; `kind` becomes Triton's error code."""

    message: str
    kind: Literal["invalid", "missing", "unavailable", "internal"] = "invalid"


@dataclass(frozen=True)
class Query:
    """One row of a request; a history of None stands for the probe's, an item of the catalogue."""

    history: list[str] | None
    user: str | None
    k: int
    exclude: list[str]
    allow: list[str] | None
    include_history: bool
    diversity: float


class Answerer:
    """Answers batches with one policy.

    Args:
        recommender: a `tessera.decoding.recommender.Recommender`.
        histories_of: looks user ids up in the feature store; raises ServiceError when it is not up.
        index_version: of the SIDs that it recommends from, which may be newer than the policy's own.
    """

    def __init__(self, recommender: Any, histories_of: HistoriesOf, index_version: str = "") -> None:
        self._recommender = recommender
        self._versions = {
            "policy_version": recommender.policy_version,
            "tokenizer_version": recommender.tokenizer_version,
            "index_version": index_version,
        }
        self._known = frozenset(recommender.item_ids)
        self._histories_of = histories_of

    def parse(self, inputs: Mapping[str, np.ndarray]) -> list[Query] | Refusal:
        """Queries of one request, one a row, or why it is malformed.

        Args:
            inputs: by name, each [rows, n]; an input that was not sent is absent.
        """
        return _attempt(_parse, inputs)

    def answer(self, requests: Sequence[list[Query]]) -> list[Arrays | Refusal]:
        """Answer every request, all their rows together.

        Returns:
            For each request its outputs ([rows, most items of a row], short rows padded with "" and 0) or a Refusal.
        """
        histories = self._fetch([query.user for request in requests for query in request if query.user is not None])
        checked = [_attempt(self._check_all, request, histories) for request in requests]
        rows = [query for p in checked if not isinstance(p, Refusal) for query in p]
        try:
            found = iter(self._decode(rows))
        except Exception:  # a case the checks above do not foresee: find out whose it is
            alone = [p if isinstance(p, Refusal) else _attempt(self._decode, p) for p in checked]
        else:
            alone = [p if isinstance(p, Refusal) else [next(found) for _ in p] for p in checked]
        return [a if isinstance(a, Refusal) else self._outputs(a) for a in alone]

    def _fetch(self, users: list[str]) -> dict[str, list[str] | Refusal]:
        """Histories of the users of a batch, in one call to the feature store."""
        unique = list(dict.fromkeys(users))
        if not unique:
            return {}
        try:
            found = self._histories_of(unique)
        except ServiceError as error:
            return dict.fromkeys(unique, Refusal(str(error), "unavailable"))
        message = "the feature store has no history of user {!r}; send a history."
        missing = {user: Refusal(message.format(user), "missing") for user in unique}
        return missing | {user: history for user, history in zip(unique, found, strict=True) if history}

    def _check_all(self, rows: list[Query], histories: Mapping[str, list[str] | Refusal]) -> list[Query]:
        return [self._check(row, histories) for row in rows]

    def _check(self, query: Query, histories: Mapping[str, list[str] | Refusal]) -> Query:
        history = query.history if query.user is None else histories[query.user]
        if isinstance(history, Refusal):
            raise _Refused(history)
        if history is None:
            history = self._recommender.item_ids[:1]
        if not self._known.intersection(history):
            raise InputError(f"none of the history's {len(history)} items is in the catalogue; send a known item id.")
        most = min(MAX_K, len(self._known))
        if not 1 <= query.k <= most:
            raise InputError(f"k is {query.k}; ask for 1 to {most} items.")
        if not 0 <= query.diversity <= 1:
            raise InputError(f"diversity is {query.diversity:g}; send a number between 0 and 1.")
        allow = query.allow
        if allow is not None:
            allow = [item for item in allow if item in self._known]
            if not allow:
                raise InputError("no item of the allow list is in the catalogue; send known ids or leave it out.")
        exclude = query.exclude if query.include_history else query.exclude + history
        exclude = [item for item in exclude if item in self._known]
        return replace(query, history=history, exclude=exclude, allow=allow)

    def _decode(self, rows: list[Query]) -> list[list[Any]]:
        """Decode all rows together; those with more items than beams apart, because k then widens the search.

        An answer must not depend on who shares the batch, so rows with one beam width make one decode.
        """
        answers: list[list[Any]] = [[] for _ in rows]
        widths = [max(row.k, BEAMS) for row in rows]
        for width in sorted(set(widths)):
            chosen = [i for i, one in enumerate(widths) if one == width]
            for i, found in zip(chosen, self._decode_group([rows[i] for i in chosen]), strict=True):
                answers[i] = found[: rows[i].k]
        return answers

    def _decode_group(self, rows: list[Query]) -> list[list[Any]]:
        allow = [row.allow for row in rows]
        found: list[list[Any]] = self._recommender.recommend(
            [row.history for row in rows],
            max(row.k for row in rows),
            exclude=[row.exclude for row in rows],
            allow=allow if any(one is not None for one in allow) else None,
            diversity=[row.diversity for row in rows],
            exclude_history=False,  # part of `exclude` where it is wanted, so that requests that differ share a batch
        )
        return found

    def _outputs(self, found: list[list[Any]]) -> Arrays:
        width = max(len(row) for row in found)
        ids, sids = (np.full((len(found), width), b"", dtype=object) for _ in range(2))
        scores = np.zeros((len(found), width), dtype=np.float32)
        for i, row in enumerate(found):
            ids[i, : len(row)] = [one.item_id.encode() for one in row]
            sids[i, : len(row)] = [one.sid.encode() for one in row]
            scores[i, : len(row)] = [one.score for one in row]
        versions = {
            name: np.full((len(found), 1), version.encode(), dtype=object) for name, version in self._versions.items()
        }
        return {"item_ids": ids, "sids": sids, "scores": scores, **versions}


def is_probe(inputs: Mapping[str, np.ndarray]) -> bool:
    """Whether a request, where it can be parsed, is a health check and nothing more.

    That is a single row that is true, so with no history beside it, and that asks for one item.
    """
    probe, k = inputs.get("probe"), inputs.get("k")
    if probe is None or k is None or not probe.shape == k.shape == (1, 1):
        return False
    return bool(probe[0, 0]) and int(k[0, 0]) == 1


class _Refused(TesseraError):
    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


def _attempt(call: Callable[..., T], *arguments: Any) -> T | Refusal:
    try:
        return call(*arguments)
    except _Refused as error:
        return error.refusal
    except InputError as error:
        return Refusal(str(error))
    except TesseraError as error:
        return Refusal(str(error), "internal")
    except Exception as error:  # a defect: it must not take the rest of the batch with it
        log.exception("a request failed")
        return Refusal(f"the policy failed on this request ({type(error).__name__}); see the server's log.", "internal")


def _parse(inputs: Mapping[str, np.ndarray]) -> list[Query]:
    """Queries of one request, one a row.

    Raises:
        InputError: inputs of different row counts, not exactly one of history and user, or text that is not UTF-8.
    """
    counts = {len(array) for array in inputs.values()}
    if len(counts) > 1:
        told = ", ".join(map(str, sorted(counts)))
        raise InputError(f"the inputs have different numbers of rows ({told}); give each input a row a request.")
    rows = counts.pop() if counts else 1
    if not rows:
        raise InputError("the request has no row; send at least one.")
    return [_parse_row({name: array[row] for name, array in inputs.items()}) for row in range(rows)]


def _parse_row(row: Mapping[str, np.ndarray]) -> Query:
    """Empty strings are padding, and an input of padding alone is as one that was not sent."""
    history, users = _texts(row.get("history"), "history"), _texts(row.get("user_id"), "user_id")
    numbers = [str(n) for n in _bounded(row["history_ids"], "history_ids").tolist()] if "history_ids" in row else []
    probe = "probe" in row and bool(row["probe"].any())
    given = {"history": history, "history_ids": numbers, "user_id": users, "probe": probe}
    sources = [name for name, values in given.items() if values]
    if not sources:
        raise InputError("the history is empty; send at least one item id, or a user_id.")
    if len(sources) > 1:
        raise InputError(f"send exactly one of history, history_ids and user_id, not {' and '.join(sources)}.")
    if "allow" in row and not row["allow"].size:
        raise InputError("the allow list is empty, so nothing may be recommended; leave it out to allow every item.")
    return Query(
        None if probe else history or numbers,
        _user(users[0]) if users else None,
        int(row["k"][0]) if "k" in row else DEFAULT_K,
        _texts(row.get("exclude"), "exclude"),
        _texts(row.get("allow"), "allow") or None,
        bool(row["include_history"][0]) if "include_history" in row else False,
        float(row["diversity"][0]) if "diversity" in row else 0.0,
    )


def _texts(array: np.ndarray | None, name: str) -> list[str]:
    if array is None:
        return []
    try:
        return [text for text in (raw.decode("utf-8") for raw in _bounded(array, name).tolist()) if text]
    except UnicodeDecodeError:
        raise InputError(f"{name} holds text that is not UTF-8; send ids as UTF-8.") from None


def _bounded(array: np.ndarray, name: str) -> np.ndarray:
    """The list itself; no policy reads so long a history, so a caller who sends one must hear of it."""
    if len(array) > MAX_LIST:
        newest = ", the newest" if name.startswith("history") else ""
        raise InputError(f"{name} has {len(array)} entries; send at most {MAX_LIST}{newest}.")
    return array


def _user(user: str) -> str:
    """The user id itself; a store may stumble over the rest, and then over all users of the batch."""
    if len(user) > MAX_USER or not user.isprintable():
        raise InputError(f"a user_id is at most {MAX_USER} printable characters; check {user[:40]!r}.")
    return user
