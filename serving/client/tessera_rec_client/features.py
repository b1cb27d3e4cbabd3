"""Ask Feast's feature server about items, semantic IDs and users."""

import asyncio
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from types import TracebackType
from typing import Any, TypeVar

import httpx

from tessera_rec_client._http import GATEWAY, answer_of, base_url, opened, opened_async, own_answers, speaking
from tessera_rec_client._process import PerProcess
from tessera_rec_client._query import key, seconds
from tessera_rec_client.errors import (
    DeadlineExceeded,
    InvalidRequest,
    NotFound,
    ServerError,
    TesseraClientError,
    WrongAnswer,
)
from tessera_rec_client.results import Item, ItemFeatures, SemanticId, TopK, User

_PATH = "/get-online-features"
_TIME = "__ts"  # behind a feature's name: when its value was published
_TOGETHER = 64
"""Most users a request."""
_STRANGE = (KeyError, IndexError, TypeError, ValueError, AttributeError)
Row = Mapping[str, Any]
Answer = TypeVar("Answer")
_Waiting = dict[str, tuple["asyncio.Future[Row]", float]]


@dataclass
class _Queue:
    waiting: _Waiting = field(default_factory=dict)
    """User -> who waits for the row, and how long."""
    sender: "asyncio.Task[None] | None" = None


class Features:
    """Lookups in Feast's feature server; a context manager, and one object may be shared by threads.

    Args:
        url: address of the feature server (port 6566 by default).
        timeout: seconds to wait for an answer.
    """

    def __init__(self, url: str, timeout: float = 5.0) -> None:
        self._url, self._timeout = base_url(url, 6566), seconds(timeout)
        self._client = opened(self._url, timeout)

    def item(self, item_id: str) -> ItemFeatures:
        """Enrichment and semantic ID of an item.

        Raises:
            InvalidRequest: the id is no non-empty string.
            NotFound: the item is not in the published catalogue.
            ServerUnavailable, DeadlineExceeded, ServerError: no answer.
        """
        return self._ask("item_lookup", "item_id", key(item_id, "item_id"), _item)

    def sid(self, sid: str) -> SemanticId:
        """The items behind a semantic ID such as "12_7_201"; raises as `item`."""
        return self._ask("sid_lookup", "sid", _checked(sid), _sid)

    def user(self, user_id: str, timeout: float | None = None) -> User:
        """A user's history and precomputed recommendations; raises as `item`.

        Args:
            timeout: seconds for this request instead of the client's.
        """
        return self._ask("serving", "user_id", key(user_id, "user_id"), _user, timeout)

    def close(self) -> None:
        """Close the connections."""
        if client := self._client.made():
            client.close()

    def _ask(
        self, service: str, name: str, value: str, read: Callable[[str, Row], Answer], timeout: float | None = None
    ) -> Answer:
        limit = self._timeout if timeout is None else seconds(timeout)
        with speaking(self._url, limit), own_answers(self._client):
            response = self._client.get().post(_PATH, json=_body(service, name, value), timeout=limit)
            return _read(response, self._url, name, value, read)

    def __enter__(self) -> "Features":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncFeatures:
    """`Features` with asyncio; an asynchronous context manager."""

    def __init__(self, url: str, timeout: float = 5.0) -> None:
        self._url, self._timeout = base_url(url, 6566), seconds(timeout)
        self._client = opened_async(self._url, timeout)
        self._queue = PerProcess(_Queue)

    async def item(self, item_id: str) -> ItemFeatures:
        """As `Features.item`."""
        return await self._ask("item_lookup", "item_id", key(item_id, "item_id"), _item)

    async def sid(self, sid: str) -> SemanticId:
        """As `Features.sid`."""
        return await self._ask("sid_lookup", "sid", _checked(sid), _sid)

    async def user(self, user_id: str, timeout: float | None = None) -> User:
        """As `Features.user`.

        Lookups that come while one is on its way go out together behind it: the feature server takes many users little
        longer than one, and when Triton fails all callers need theirs at once.
        """
        limit = self._timeout if timeout is None else seconds(timeout)
        queue, loop = self._queue.get(), asyncio.get_running_loop()
        waiting, _ = queue.waiting.get(key(user_id, "user_id")) or (loop.create_future(), limit)
        queue.waiting[user_id] = waiting, limit
        if queue.sender is None:
            queue.sender = asyncio.create_task(self._send(queue))
        try:
            row = await asyncio.wait_for(asyncio.shield(waiting), limit)
        except asyncio.TimeoutError:
            raise DeadlineExceeded(f"{self._url} did not answer within {limit:g} s; try again or allow more.") from None
        return _understood(_user, user_id, row, self._url)

    async def close(self) -> None:
        """Close the connections."""
        if sender := self._queue.get().sender:
            sender.cancel()
        if client := self._client.made():
            await client.aclose()

    async def _send(self, queue: "_Queue") -> None:
        """Look up who waits, until nobody does."""
        try:
            while queue.waiting:
                asked = {user: queue.waiting.pop(user) for user in list(queue.waiting)[:_TOGETHER]}
                await self._look_up(asked)
        finally:
            queue.sender = None

    async def _look_up(self, asked: _Waiting) -> None:
        limit = max(limit for _, limit in asked.values())
        try:
            with speaking(self._url, limit), own_answers(self._client):
                body = _body("serving", "user_id", *asked)
                response = await self._client.get().post(_PATH, json=body, timeout=limit)
                rows = _rows(response, self._url, "user_id", list(asked))
        except TesseraClientError as error:
            for waiting, _ in asked.values():
                waiting.set_exception(type(error)(*error.args))
                waiting.exception()  # seen, although who waited may have gone
        else:
            for (waiting, _), row in zip(asked.values(), rows, strict=True):
                waiting.set_result(row)

    async def _ask(
        self, service: str, name: str, value: str, read: Callable[[str, Row], Answer], timeout: float | None = None
    ) -> Answer:
        limit = self._timeout if timeout is None else seconds(timeout)
        with speaking(self._url, limit), own_answers(self._client):
            response = await self._client.get().post(_PATH, json=_body(service, name, value), timeout=limit)
            return _read(response, self._url, name, value, read)

    async def __aenter__(self) -> "AsyncFeatures":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


def _body(service: str, name: str, *values: str) -> dict[str, Any]:
    return {"feature_service": service, "entities": {name: values}, "full_feature_names": True}


def _read(response: httpx.Response, url: str, name: str, value: str, read: Callable[[str, Row], Answer]) -> Answer:
    return _understood(read, value, _rows(response, url, name, [value])[0], url)


def _rows(response: httpx.Response, url: str, name: str, asked: list[str]) -> list[Row]:
    """Features and publishing times of each entity that was asked for.

    Raises:
        WrongAnswer: the rows are of other entities.
    """
    answer = answer_of(response, url, GATEWAY)
    try:
        columns = {}
        for column, result in zip(answer["metadata"]["feature_names"], answer["results"], strict=True):
            columns[column] = values = result["values"]
            columns[f"{column}{_TIME}"] = result.get("event_timestamps") or [None] * len(values)
        rows: list[Row] = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        answered = [row[name] for row in rows]
    except _STRANGE as error:
        raise _strange(url, error) from None
    if answered != asked:
        raise WrongAnswer(f"{url} answered for another {name} than was asked; the connection is given up, ask again.")
    return rows


def _understood(read: Callable[[str, Row], Answer], value: str, row: Row, url: str) -> Answer:
    try:
        return read(value, row)
    except _STRANGE as error:
        raise _strange(url, error) from None


def _strange(url: str, error: Exception) -> ServerError:
    return ServerError(f"the answer of {url} has other features than this client knows ({error!r}).")


def _item(item_id: str, row: Row) -> ItemFeatures:
    known = {name.removeprefix("item_enrichment__"): value for name, value in row.items()}
    if known["title"] is None:
        raise NotFound(f"item {item_id!r} is not in the published catalogue; check the id.")
    return ItemFeatures(
        item_id,
        known["title"],
        known["brand"],
        tuple(known["categories"] or ()),
        known["image"],
        known["caption"],
        tuple(known["motives"] or ()),
        tuple(known["descriptors"] or ()),
        tuple(_number(value) for value in known["confidences"] or ()),
        _number(known["quality_score"]),
        row["item_sid__sid"],
        tuple(row["item_sid__codes"] or ()),
        row["item_sid__tokenizer_version"],
    )


def _sid(sid: str, row: Row) -> SemanticId:
    if not row["sid_items__item_ids"]:
        raise NotFound(f"no published item has the semantic ID {sid}; it may be of another tokenizer version.")
    return SemanticId(sid, tuple(row["sid_items__item_ids"]), row["sid_items__tokenizer_version"])


def _user(user_id: str, row: Row) -> User:
    history, items = tuple(row["user_history__item_ids"] or ()), row["user_topk__item_ids"]
    if not history and not items:
        raise NotFound(f"user {user_id!r} has no published history; check the id.")
    if not items:
        return User(user_id, history, None)
    columns = zip(items, row["user_topk__sids"], row["user_topk__scores"], strict=True)
    top_k = TopK(
        tuple(Item(item, sid, float(score)) for item, sid, score in columns),
        row["user_topk__policy_version"],
        row["user_topk__tokenizer_version"],
        _moment(row["user_topk__computed_at"]),
        _stale(row),
    )
    return User(user_id, history, top_k)


def _stale(row: Row) -> bool:
    """Marked so, or older than the history: a push that reaches only the online store marks nothing."""
    computed, changed = _moment(row["user_topk__computed_at"]), _moment(row[f"user_history__item_ids{_TIME}"])
    unsure = row.get("user_topk__stale") is not False or computed is None
    return unsure or (changed is not None and computed is not None and changed >= computed)


def _checked(sid: str) -> str:
    if not isinstance(sid, str) or not re.fullmatch(r"\d+(_\d+)*", sid):
        raise InvalidRequest(f"{sid!r} is not a semantic ID; write its codes joined by '_', as in 12_7_201.")
    return sid


def _number(value: Any) -> float | None:
    """A number; None where there is none, which JSON may write as null or "NaN"."""
    return None if value is None or math.isnan(float(value)) else float(value)


def _moment(value: Any) -> datetime | None:
    if isinstance(value, int | float):
        return datetime.fromtimestamp(value, timezone.utc)
    return datetime.fromisoformat(value.replace("Z", "+00:00")) if value else None
