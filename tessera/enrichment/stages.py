"""The enrichment stages: captions, intents, rewrites, quality; each reads and writes tables and asks by the ledger.

With `shard` a stage takes only the items of a part of the catalogue (tessera.enrichment.shards).

Every function returns {"model_calls", "reused", "failed", "seconds"}: items sent to a model now, items answered from
the ledger, items without an answer (recorded with their reason and tried again by the next run), and wall time.
"""

import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from tessera.catalog.ledger import Entry, Ledger
from tessera.config import Settings
from tessera.enrichment.embedding import run_embeddings
from tessera.enrichment.parsing import Descriptor, Intents
from tessera.enrichment.photos import PhotoError, open_photo, photo_hash
from tessera.enrichment.prompts import Kind, Rewrite
from tessera.enrichment.providers import open_enricher
from tessera.enrichment.providers.base import Enricher, Failure, Item
from tessera.enrichment.scoring import quality_score
from tessera.enrichment.shards import items_of
from tessera.enrichment.work import Done, Maker, through_ledger
from tessera.files import sha256_of
from tessera.schema import SCHEMAS, read_table, write_table

__all__ = ["run_captions", "run_embeddings", "run_intents", "run_quality", "run_rewrites"]


def run_captions(
    items: Path, images: Path, out: Path, settings: Settings, ledger_url: str, shard: str = ""
) -> dict[str, Any]:
    """Caption every photo (CMSA path 1) into a `captions` table.

    An item without a usable photo is "ok" with a null caption and the reason; a photo that has become missing or
    corrupt since ingestion is "failed".

    Raises:
        InputError: a table or setting is unusable.
        ModelCallError: the model cannot be reached; finished batches are kept.
    """
    started = time.monotonic()
    rows = items_of(read_table("items", items), shard).to_pylist()
    known = {row["item_id"]: item_of(row) for row in rows}
    photos = {row["item_id"]: images / row["image"] for row in rows if row["image"]}
    enricher = open_enricher("caption", settings.enrichment)
    maker = _maker("caption", enricher)
    hashes = {i: sha256_of(known[i].text(), photo_hash(path)) for i, path in photos.items()}

    def answer(batch: Sequence[str]) -> list[bytes | Failure]:
        seen = [with_photo(known[i], photos[i]) for i in batch]
        captions = iter(enricher.captions([item for item in seen if isinstance(item, Item)]))
        return [item if isinstance(item, Failure) else _payload(next(captions)) for item in seen]

    done = through_ledger(Ledger(ledger_url), maker, hashes, answer, settings.enrichment.batch_size)
    table = []
    for row in rows:
        entry = done.entries.get(row["item_id"])
        missing = {} if entry else {"status": "ok", "reason": _no_photo(row["image_status"])}
        table.append(_shared(row["item_id"], maker, entry) | missing | {"caption": _value(entry)})
    write_table("captions", pa.Table.from_pylist(table, SCHEMAS["captions"]), out)
    return _summary(done, started)


def run_intents(
    items: Path, captions: Path, out: Path, settings: Settings, ledger_url: str, shard: str = ""
) -> dict[str, Any]:
    """Mine intents from texts and captions (DCIM) into an `intents` table; `use_captions` off mines texts alone.

    Raises:
        InputError: a table or setting is unusable.
        ModelCallError: the model cannot be reached; finished batches are kept.
    """
    started = time.monotonic()
    seen = captions if settings.enrichment.use_captions else None
    known = {item.item_id: item for item in read_items(items, seen, shard=shard)}
    enricher = open_enricher("intents", settings.enrichment)
    maker = _maker("intents", enricher)
    hashes = {i: sha256_of(item.text()) for i, item in known.items()}

    def answer(batch: Sequence[str]) -> list[bytes | Failure]:
        return [_payload(outcome) for outcome in enricher.intents([known[i] for i in batch])]

    done = through_ledger(Ledger(ledger_url), maker, hashes, answer, settings.enrichment.batch_size)
    empty: dict[str, Any] = {"surface": [], "motives": [], "descriptors": []}
    table = [_shared(i, maker, done.entries[i]) | (_value(done.entries[i]) or empty) for i in known]
    write_table("intents", pa.Table.from_pylist(table, SCHEMAS["intents"]), out)
    return _summary(done, started)


def run_rewrites(
    kind: Rewrite, items: Path, captions: Path, out: Path, settings: Settings, ledger_url: str
) -> dict[str, Any]:
    """Write a peer of the `intents` table: each item's one descriptor is its summary or paraphrase.

    It takes the place of the intents in the embedded text, to tell what mining motives is worth beyond asking a model
    for more words. `use_captions` as for intents.

    Raises:
        InputError: a table or setting is unusable.
        ModelCallError: the model cannot be reached; finished batches are kept.
    """
    started = time.monotonic()
    known = {item.item_id: item for item in read_items(items, captions if settings.enrichment.use_captions else None)}
    enricher = open_enricher(kind, settings.enrichment)
    maker = _maker(kind, enricher)
    hashes = {i: sha256_of(item.text()) for i, item in known.items()}

    def answer(batch: Sequence[str]) -> list[bytes | Failure]:
        return [_payload(outcome) for outcome in enricher.rewrites(kind, [known[i] for i in batch])]

    done = through_ledger(Ledger(ledger_url), maker, hashes, answer, settings.enrichment.batch_size)
    table = []
    for i in known:
        text = _value(done.entries[i])
        said = [{"text": text, "confidence": None}] if text else []
        table.append(_shared(i, maker, done.entries[i]) | {"surface": [], "motives": [], "descriptors": said})
    write_table("intents", pa.Table.from_pylist(table, SCHEMAS["intents"]), out)
    return _summary(done, started)


def run_quality(
    items: Path, captions: Path, intents: Path, out: Path, settings: Settings, ledger_url: str, shard: str = ""
) -> dict[str, Any]:
    """Label each descriptor 0 or 1 and score each item (QARM) into a `quality` table.

    An item whose intents failed has nothing to label: it is "failed" here too, and no model is asked.

    Raises:
        InputError: a table or setting is unusable.
        ModelCallError: the model cannot be reached; finished batches are kept.
    """
    started = time.monotonic()
    seen = captions if settings.enrichment.use_captions else None
    known = {item.item_id: item for item in read_items(items, seen, intents, shard)}
    mined = read_table("intents", intents).to_pylist()
    confidences = {row["item_id"]: [d["confidence"] for d in row["descriptors"]] for row in mined}
    enricher = open_enricher("quality", settings.enrichment)
    maker = _maker("quality", enricher)
    hashes = {i: sha256_of(item.text(), *item.descriptors) for i, item in known.items() if item.descriptors}

    def answer(batch: Sequence[str]) -> list[bytes | Failure]:
        return [_payload(outcome) for outcome in enricher.quality([known[i] for i in batch])]

    done = through_ledger(Ledger(ledger_url), maker, hashes, answer, settings.enrichment.batch_size)
    table = []
    for i in known:
        entry = done.entries.get(i)
        missing = {} if entry else {"status": "failed", "reason": "the item has no descriptors to label"}
        labels = _value(entry) or []
        score = quality_score(labels, confidences[i]) if labels else None
        table.append(_shared(i, maker, entry) | missing | {"labels": labels, "score": score})
    write_table("quality", pa.Table.from_pylist(table, SCHEMAS["quality"]), out)
    summary = _summary(done, started)
    return summary | {"failed": summary["failed"] + len(known) - len(hashes)}


def item_of(row: dict[str, Any]) -> Item:
    """An Item from a row of the `items` table."""
    categories, attributes = (tuple(text for text in row[name] if text) for name in ("categories", "attributes"))
    return Item(row["item_id"], row["title"], row["description"], row["brand"], categories, attributes)


def with_photo(item: Item, path: Path) -> Item | Failure:
    """The item with its photo, or why there is none."""
    try:
        return dataclasses.replace(item, photo=open_photo(path))
    except PhotoError as error:
        return Failure(str(error), sent=False)


def read_items(items: Path, captions: Path | None, intents: Path | None = None, shard: str = "") -> list[Item]:
    """Items with, where given, the captions and the descriptors that the earlier stages found for them."""
    texts: dict[str, str | None] = {}
    if captions is not None:
        texts = {row["item_id"]: row["caption"] for row in read_table("captions", captions).to_pylist()}
    tags: dict[str, tuple[str, ...]] = {}
    if intents is not None:
        rows = read_table("intents", intents).to_pylist()
        tags = {row["item_id"]: tuple(d["text"] for d in row["descriptors"]) for row in rows}
    found = []
    for row in items_of(read_table("items", items), shard).to_pylist():
        i = row["item_id"]
        found.append(dataclasses.replace(item_of(row), caption=texts.get(i), descriptors=tags.get(i, ())))
    return found


def _maker(kind: Kind, enricher: Enricher) -> Maker:
    return Maker(kind, enricher.provider, enricher.model, enricher.prompt_version(kind))


def _payload(outcome: Any) -> bytes | Failure:
    """A provider's answer as the ledger keeps it: JSON."""
    if isinstance(outcome, Failure):
        return outcome
    return json.dumps(outcome, default=_plain, ensure_ascii=False).encode("utf-8")


def _plain(value: Any) -> dict[str, Any]:
    if isinstance(value, Intents | Descriptor):
        return vars(value)
    raise TypeError(type(value).__name__)


def _value(entry: Entry | None) -> Any:
    return json.loads(entry.payload) if entry is not None and entry.payload is not None else None


def _shared(item_id: str, maker: Maker, entry: Entry | None) -> dict[str, Any]:
    """The columns that captions, intents and quality have in common."""
    made_by = {"provider": maker.provider, "model": maker.model, "prompt_version": maker.prompt_version}
    outcome = {"status": entry.status, "reason": entry.reason} if entry else {}
    return {"item_id": item_id, **made_by, **outcome}


def _no_photo(status: str) -> str:
    return "no photo" if status in ("none", "ok") else f"photo {status}"


def _summary(done: Done, started: float) -> dict[str, Any]:
    seconds = round(time.monotonic() - started, 3)
    return {"model_calls": done.calls, "reused": done.reused, "failed": done.failed, "seconds": seconds}
