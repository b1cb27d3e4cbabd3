"""Reading the tables that tasks are written from, and tokenising what they say of each item."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tessera.config import PolicySettings
from tessera.errors import InputError
from tessera.policy.backbone import Backbone
from tessera.policy.data import sid_rows
from tessera.policy.ragged import Ints, Ragged
from tessera.policy.tasks import NEW_SHARE, Materials
from tessera.policy.templates import load_templates
from tessera.schema import read_table


def read_materials(
    backbone: Backbone,
    item_ids: list[str],
    codes: np.ndarray,
    histories: Sequence[np.ndarray],
    settings: PolicySettings,
    items: Path,
    captions: Path | None = None,
    intents: Path | None = None,
) -> Materials:
    """Everything that tasks may say of the items.

    Args:
        item_ids: the order that numbers the items; codes: [items, L] their SIDs; histories: training histories of item
            numbers, which tell the new items.

    Raises:
        InputError: a missing or unusable table, or an item with a SID that the items table does not have.
    """
    rows = _by_id(read_table("items", items), item_ids)
    if missing := [item for item, row in zip(item_ids, rows, strict=True) if not row]:
        raise InputError(f"{items}: item '{missing[0]}' has a SID but is not in the catalogue; use tables of one run.")
    seen = _by_id(read_table("captions", captions), item_ids) if captions else [{}] * len(item_ids)
    mined = _by_id(read_table("intents", intents), item_ids) if intents else [{}] * len(item_ids)
    descriptors = [[one["text"] for one in row.get("descriptors") or []] for row in mined]
    phrases = [found + (row.get("motives") or []) for found, row in zip(descriptors, mined, strict=True)]

    def tokens(texts: list[str]) -> Ragged:
        return tokenised(backbone, texts).first(settings.text_tokens)

    templates = load_templates()
    fixed = sorted({words for template in templates.values() for words in template.words})
    eos = backbone.tokenizer.eos_token_id
    return Materials(
        slots={
            "sid": sid_rows(codes, backbone.sid_tokens.numpy(force=True)),
            "title": tokens([row["title"] for row in rows]),
            "text": tokens([f"{row['title']}. {row['description']}" for row in rows]),
            "caption": tokens([row.get("caption") or "" for row in seen]),
            "intents": tokens(["; ".join(found) for found in descriptors]),
            "category": tokens([_category(row) for row in rows]),
        },
        phrases=tokens([phrase for found in phrases for phrase in found]),
        phrase_count=np.array([len(found) for found in phrases], dtype=np.int64),
        category=categories(rows),
        is_new=_new(histories, len(item_ids)),
        templates=templates,
        words=dict(zip(fixed, _encode(backbone, fixed), strict=True)),
        bos=backbone.bos,
        eos=int(eos) if eos is not None else backbone.bos,
        separator=_encode(backbone, [";"])[0],
        title_history=settings.title_history,
    )


def tokenised(backbone: Backbone, texts: list[str]) -> Ragged:
    """Tokens of texts as they stand inside a sentence, behind a space; an empty text has none."""
    stripped = [text.strip() for text in texts]
    return Ragged.of(_encode(backbone, [f" {text}" if text else "" for text in stripped]))


def _encode(backbone: Backbone, texts: list[str]) -> list[list[int]]:
    """A title that spells a special token, a SID's say, is read as its letters: catalogues are not trusted."""
    if not texts:
        return []
    tokenizer: Any = backbone.tokenizer
    encoded: list[list[int]] = tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return encoded


def _by_id(table: pa.Table, item_ids: list[str]) -> list[dict[str, Any]]:
    """The table's rows in the order of the ids, an empty row where there is none."""
    found = {row["item_id"]: row for row in table.to_pylist()}
    return [found.get(item, {}) for item in item_ids]


def _category(row: Mapping[str, Any]) -> str:
    """The finest category; where a catalogue has none, the last attribute."""
    return str((row["categories"] or row["attributes"] or [""])[-1]).strip()


def categories(rows: Sequence[Mapping[str, Any]]) -> Ints:
    """[items] number of each item's finest category, by name; -1 where it has none. Rows are of the items table."""
    names = [_category(row) for row in rows]
    _, numbers = np.unique(np.array(names), return_inverse=True)
    return np.where(np.array(names) == "", -1, numbers).astype(np.int64)


def _new(histories: Sequence[np.ndarray], items: int) -> np.ndarray:
    """[items] whether an item is among the NEW_SHARE with the fewest purchases; of equals, the later number is new."""
    bought = np.bincount(np.concatenate([*histories, np.empty(0, np.int64)]).astype(np.int64), minlength=items)
    fewest = np.lexsort([-np.arange(items), bought])[: round(NEW_SHARE * items)]
    return np.isin(np.arange(items), fewest)
