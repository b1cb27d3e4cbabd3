"""What every source hands over: cleaned items and time-ordered interactions, before filtering."""

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from tessera.schema import SCHEMAS

# Items without image_status, which is known only once the photo has been looked at.
RAW_ITEMS = pa.schema([field for field in SCHEMAS["items"] if field.name != "image_status"])
# In the source's order within a user and timestamp; `position` is given later.
RAW_INTERACTIONS = pa.schema([field for field in SCHEMAS["interactions"] if field.name != "position"])


@dataclass(frozen=True)
class RawCatalogue:
    """A source, read and validated.

    `items.image` is a path relative to `images` (a folder, or a zip file), or an http(s) URL; null without a photo.
    `stats` counts what reading dropped or filled in; `repeats` says that equal (user, item, timestamp) rows are real
    purchases, as in sequences without a clock, and not duplicates.
    """

    items: pa.Table
    interactions: pa.Table
    images: Path | None = None
    stats: dict[str, int] = field(default_factory=dict)
    repeats: bool = False
    truth: pa.Table | None = None


_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|[\ud800-\udfff]")


def clean(text: str | None) -> str:
    """Text for people: HTML entities resolved, control characters removed, white space collapsed."""
    return " ".join(_CONTROL.sub("", unescape(text)).split()) if text else ""


def unescape(text: str) -> str:
    """`text` with HTML entities resolved; as it is where one names a character by thousands of digits."""
    try:
        return html.unescape(text)
    except ValueError:
        return text


def clean_list(texts: Sequence[str | None]) -> list[str]:
    """Cleaned texts, without empty ones and repeats, in order."""
    return [text for text in dict.fromkeys(map(clean, texts)) if text]


def split_list(text: str | None) -> list[str]:
    """The parts of a list that came as one string: split at the first of | > ; , that it contains."""
    text = clean(text)
    separator = next((mark for mark in "|>;," if mark in text), None)
    return clean_list(text.split(separator)) if separator else clean_list([text])


def title_from(item: dict[str, Any]) -> str:
    """A title for an item that has none: brand, categories and attributes, else the description's first words."""
    parts = clean_list([item["brand"], *item["categories"], *item["attributes"]])
    return ", ".join(parts) or " ".join(item["description"].split()[:12])


def in_seconds(interactions: pa.Table) -> pa.Table:
    """Millisecond timestamps as seconds; the rows are put in time order first, which the division would lose."""
    table = interactions.take(pc.sort_indices(interactions["timestamp"]))
    return table.set_column(2, "timestamp", pc.divide(table["timestamp"], 1000))


def some(ids: Sequence[Any], limit: int = 5) -> str:
    """A few ids for a message: "1, 2, 3 and 40 more"."""
    shown = ", ".join(map(str, ids[:limit]))
    return f"{shown} and {len(ids) - limit} more" if len(ids) > limit else shown
