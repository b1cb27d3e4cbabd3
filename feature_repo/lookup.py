"""Ask the online store about one item, one semantic ID or one user."""

import math
import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feature_repo import clock
from feature_repo.store import open_store
from tessera.errors import InputError, ServiceError

if TYPE_CHECKING:
    from feast import FeatureStore

    Where = Path | FeatureStore
else:
    Where = Any


@dataclass(frozen=True)
class Item:
    """What is known of an item; what could not be enriched is None or empty."""

    item_id: str
    title: str
    brand: str
    categories: list[str]
    image: str | None
    caption: str | None
    motives: list[str]
    descriptors: list[str]
    confidences: list[float | None]
    quality_score: float | None
    sid: str | None
    codes: list[int]
    tokenizer_version: str | None


@dataclass(frozen=True)
class SemanticId:
    """The items behind a semantic ID."""

    sid: str
    item_ids: list[str]
    tokenizer_version: str


@dataclass(frozen=True)
class TopK:
    """Precomputed recommendations, best first; stale when the history or the policy has changed since."""

    item_ids: list[str]
    sids: list[str]
    scores: list[float]
    policy_version: str
    tokenizer_version: str
    computed_at: datetime
    stale: bool


@dataclass(frozen=True)
class User:
    """A user's purchases in time order, and the precomputed recommendations if there are any."""

    user_id: str
    history: list[str]
    top_k: TopK | None


def item(where: Where, item_id: str) -> Item:
    """Look up an item; `where` is a platform's home, or an open store to ask more than once.

    Raises:
        InputError: the id is not in the published catalogue.
        ServiceError: nothing was published, or the store does not answer.
    """
    (found,) = items(where, [item_id])
    if found is None:
        raise InputError(f"item '{item_id}' is not in the published catalogue; check the id or publish a run with it.")
    return found


def items(where: Where, item_ids: list[str]) -> list[Item | None]:
    """Many items in one question, None for one that is not published. Raises ServiceError as `item`."""
    columns = _ask_many(where, "item_lookup", "item_id", item_ids)
    return [_item({name: values[place] for name, values in columns.items()}) for place in range(len(item_ids))]


def _item(row: dict[str, Any]) -> Item | None:
    if row["item_enrichment__title"] is None:
        return None
    return Item(
        item_id=row["item_id"],
        title=row["item_enrichment__title"],
        brand=row["item_enrichment__brand"],
        categories=row["item_enrichment__categories"] or [],
        image=row["item_enrichment__image"],
        caption=row["item_enrichment__caption"],
        motives=row["item_enrichment__motives"] or [],
        descriptors=row["item_enrichment__descriptors"] or [],
        confidences=[None if math.isnan(value) else value for value in row["item_enrichment__confidences"] or []],
        quality_score=row["item_enrichment__quality_score"],
        sid=row["item_sid__sid"],
        codes=row["item_sid__codes"] or [],
        tokenizer_version=row["item_sid__tokenizer_version"],
    )


def sid(where: Where, sid: str) -> SemanticId:
    """The items of a semantic ID such as "12_7_201".

    Raises:
        InputError: it is not written as codes joined by "_", or no published item has it.
        ServiceError: nothing was published, or the store does not answer.
    """
    if not re.fullmatch(r"\d+(_\d+)*", sid):
        raise InputError(f"'{sid}' is not a semantic ID; write its codes joined by '_', as in 12_7_201.")
    row = _ask(where, "sid_lookup", "sid", sid)
    if not row["sid_items__item_ids"]:
        raise InputError(f"no published item has the semantic ID {sid}; it may be of another tokenizer version.")
    return SemanticId(sid, row["sid_items__item_ids"], row["sid_items__tokenizer_version"])


def user(where: Where, user_id: str) -> User:
    """A user's history and precomputed recommendations.

    Raises:
        InputError: the user has neither.
        ServiceError: nothing was published, or the store does not answer.
    """
    (found,) = users(where, [user_id])
    if not found.history and found.top_k is None:
        raise InputError(f"user '{user_id}' has no published history; check the id or push the user's purchases.")
    return found


def users(where: Where, user_ids: list[str]) -> list[User]:
    """Many users' histories and lists in one question; an unknown user has neither. Raises as `user`."""
    columns = _ask_many(where, "serving", "user_id", user_ids)
    rows = [{name: values[place] for name, values in columns.items()} for place in range(len(user_ids))]
    return [User(row["user_id"], row["user_history__item_ids"] or [], _top_k(row)) for row in rows]


def _top_k(row: dict[str, Any]) -> TopK | None:
    if not row["user_topk__item_ids"]:
        return None
    names = ("item_ids", "sids", "scores", "policy_version", "tokenizer_version", "computed_at")
    return TopK(*(row[f"user_topk__{name}"] for name in names), stale=_stale(row))


def _stale(row: dict[str, Any]) -> bool:
    """Marked so; older than the history, as after a push that reaches only the online store; or of the future."""
    computed_at = row["user_topk__computed_at"].timestamp()
    marked = row.get("user_topk__stale") is not False
    return marked or row["user_history__item_ids__ts"] >= computed_at or clock.ahead(computed_at)


def known_items(store: "FeatureStore", item_ids: list[str]) -> set[str]:
    """Those of `item_ids` that have a published semantic ID."""
    rows = [{"item_id": item_id} for item_id in item_ids]
    reply = store.get_online_features(["item_sid:sid"], rows).to_dict()
    return {item_id for item_id, found in zip(item_ids, reply["sid"], strict=True) if found}


def _ask(where: Where, service: str, key: str, value: str) -> dict[str, Any]:
    return {name: values[0] for name, values in _ask_many(where, service, key, [value]).items()}


def _ask_many(where: Where, service: str, key: str, values: list[str]) -> dict[str, list[Any]]:
    """Columns by feature name, one value for each of `values`, and under "<feature>__ts" when they were published."""
    store = open_store(where) if isinstance(where, Path) else where
    try:
        features = store.get_feature_service(service)
        rows = [{key: value} for value in values]
        return store.get_online_features(features, rows, full_feature_names=True).to_dict(include_event_timestamps=True)
    except Exception as error:
        raise ServiceError(f"the feature store did not answer ({error}); check its databases.") from error
