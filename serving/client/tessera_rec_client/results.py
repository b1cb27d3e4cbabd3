"""Typed answers."""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal


@dataclass(frozen=True)
class Item:
    """One recommended item; score is the log-probability of its semantic ID, higher is better."""

    item_id: str
    sid: str
    score: float


@dataclass(frozen=True)
class Recommendations:
    """Items, best first, and the versions that all of them come from.

    From `source` "policy", the served policy has just decoded them. From "cache", the server failed and the user's
    precomputed list answers: it may be shorter than asked for, and the last three fields tell of it.
    """

    items: tuple[Item, ...]
    policy_version: str
    tokenizer_version: str
    source: Literal["policy", "cache"] = "policy"
    computed_at: datetime | None = None
    age_s: float | None = None
    """Seconds since the list was computed."""
    stale: bool = False
    """The user's history or the policy has changed since."""


@dataclass(frozen=True)
class ItemFeatures:
    """What is known of an item; what could not be enriched is None or empty.

    confidences[i] belongs to descriptors[i] and is None where the model gave none.
    """

    item_id: str
    title: str
    brand: str | None
    categories: tuple[str, ...]
    image: str | None
    caption: str | None
    motives: tuple[str, ...]
    descriptors: tuple[str, ...]
    confidences: tuple[float | None, ...]
    quality_score: float | None
    sid: str | None
    codes: tuple[int, ...]
    tokenizer_version: str | None


@dataclass(frozen=True)
class SemanticId:
    """The items behind a semantic ID."""

    sid: str
    item_ids: tuple[str, ...]
    tokenizer_version: str


@dataclass(frozen=True)
class TopK:
    """Precomputed recommendations of a user, best first; stale when the history or the policy has changed since."""

    items: tuple[Item, ...]
    policy_version: str
    tokenizer_version: str
    computed_at: datetime | None
    stale: bool


@dataclass(frozen=True)
class User:
    """A user's purchases in time order, and precomputed recommendations if there are any."""

    user_id: str
    history: tuple[str, ...]
    top_k: TopK | None
