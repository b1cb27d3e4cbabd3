"""The embedding stage: one text vector and, with a photo, one image vector per item (CMSA path 2), or one of both."""

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tessera.catalog.ledger import Entry, Ledger
from tessera.config import EnrichmentSettings, Settings
from tessera.enrichment.encoders import MAX_TOKENS, open_image_encoder, open_text_encoder
from tessera.enrichment.multimodal import JointEncoder, open_joint_encoder
from tessera.enrichment.photos import PhotoError, open_photo, photo_hash
from tessera.enrichment.providers.base import Failure
from tessera.enrichment.shards import items_of
from tessera.enrichment.work import Done, Maker, through_ledger
from tessera.errors import InputError, ModelCallError
from tessera.files import sha256_of
from tessera.schema import SCHEMAS, read_table, write_table

log = logging.getLogger(__name__)


def run_embeddings(
    items: Path, images: Path, captions: Path, intents: Path, out: Path, settings: Settings, ledger_url: str,
    shard: str = "",
) -> dict[str, Any]:
    """Embed metadata + caption + descriptors, and photos, into an `embeddings` table.

    Every item gets a text vector from what there is of it; an item without a usable photo has a null image vector.
    With `enrichment.multimodal` the photo goes into the text vector and all image vectors are null;
    `tokenizer.use_images` off keeps it out of there, too.

    Returns:
        "model_calls" and "reused", each {"text": n, "image": n}, a joint embedding counting as text; "failed", photos
        that cannot be read; "seconds".

    Raises:
        InputError: a table or an encoder is unusable.
        ModelCallError: `enrichment.multimodal` cannot be reached, or gave some item no vector; the others are kept.
    """
    started = time.monotonic()
    chosen, ledger = settings.enrichment, Ledger(ledger_url)
    rows = items_of(read_table("items", items), shard).to_pylist()
    texts = embedding_texts(rows, captions, intents, chosen)
    photos = {row["item_id"]: images / row["image"] for row in rows if row["image"]}
    encoder = open_joint_encoder(chosen)
    if encoder is None:
        text, image = _embed_texts(texts, chosen, ledger), _embed_photos(photos, chosen, ledger)
    else:
        seen = photos if settings.tokenizer.use_images else {}
        text, image = _embed_jointly(encoder, texts, seen, chosen.batch_size, ledger)
    ids = [row["item_id"] for row in rows]
    vectors = [vector_column([text.entries[i] for i in ids]), vector_column([image.entries.get(i) for i in ids])]
    write_table("embeddings", pa.table([pa.array(ids, pa.string()), *vectors], SCHEMAS["embeddings"].names), out)
    return {
        "model_calls": {"text": text.calls, "image": image.calls},
        "reused": {"text": text.reused, "image": image.reused},
        "failed": image.failed,
        "seconds": round(time.monotonic() - started, 3),
    }


def run_knowledge(items: Path, intents: Path, out: Path, settings: Settings, ledger_url: str) -> dict[str, Any]:
    """Embed what the world says of the items (`knowledge_texts`) into an `embeddings` table, for grounding.

    Returns and raises as `run_embeddings`.
    """
    started = time.monotonic()
    chosen, ledger = settings.enrichment, Ledger(ledger_url)
    texts = knowledge_texts(read_table("items", items), read_table("intents", intents))
    encoder = open_joint_encoder(chosen)
    if encoder is None:
        done = _embed_texts(texts, chosen, ledger)
    else:
        done, _ = _embed_jointly(encoder, texts, {}, chosen.batch_size, ledger)
    ids = list(texts)
    nothing = pa.nulls(len(ids), SCHEMAS["embeddings"].field("image").type)
    columns = [pa.array(ids, pa.string()), vector_column([done.entries[i] for i in ids]), nothing]
    write_table("embeddings", pa.table(columns, SCHEMAS["embeddings"].names), out)
    seconds = round(time.monotonic() - started, 3)
    return {"model_calls": done.calls, "reused": done.reused, "failed": done.failed, "seconds": seconds}


def knowledge_texts(items: pa.Table, intents: pa.Table) -> dict[str, str]:
    """Item id -> "categories. brand. descriptors", what the world says of an item; never its title or description."""
    tags = {row["item_id"]: ", ".join(d["text"] for d in row["descriptors"]) for row in intents.to_pylist()}
    texts = {}
    for row in items.to_pylist():
        parts = [", ".join(filter(None, row["categories"])), row["brand"], tags.get(row["item_id"], "")]
        texts[row["item_id"]] = ". ".join(part.strip() for part in parts if part.strip())
    return texts


def embedding_texts(
    rows: Sequence[Mapping[str, Any]], captions: Path, intents: Path, settings: EnrichmentSettings
) -> dict[str, str]:
    """Item id -> the text to embed.

    Title, caption and descriptors come before brand, categories, attributes and description: encoders cut at the end.
    """
    caption_of: dict[str, str] = {}
    tags_of: dict[str, str] = {}
    if settings.use_captions:
        caption_of = {row["item_id"]: row["caption"] or "" for row in read_table("captions", captions).to_pylist()}
    if settings.use_intents:
        table = read_table("intents", intents).to_pylist()
        tags_of = {row["item_id"]: ", ".join(d["text"] for d in row["descriptors"]) for row in table}
    texts = {}
    for row in rows:
        lists = [", ".join(text for text in row[name] if text) for name in ("categories", "attributes")]
        known = [caption_of.get(row["item_id"], ""), tags_of.get(row["item_id"], "")]
        parts = [row["title"], *known, row["brand"], *lists, row["description"]]
        texts[row["item_id"]] = ". ".join(part.strip().rstrip(".") for part in parts if part.strip())
    return texts


def vector_column(entries: Sequence[Entry | None]) -> pa.Array:
    """Ledger payloads (float32) as an Arrow list column; null where there is no entry or it failed.

    Raises:
        InputError: the vectors have different lengths, which means that the ledger was altered.
    """
    payloads = [entry.payload if entry else None for entry in entries]
    lengths = {len(payload) for payload in payloads if payload is not None}
    if len(lengths) > 1 or any(length % 4 for length in lengths):
        raise InputError("the ledger holds embeddings of different lengths for one model; delete them and embed again.")
    counts = np.array([len(payload) // 4 if payload else 0 for payload in payloads], dtype=np.int32)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    values = np.frombuffer(b"".join(payload for payload in payloads if payload), dtype="<f4")
    missing = np.array([payload is None for payload in payloads], dtype=bool)
    mask = pa.array(missing, pa.bool_())
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values, pa.float32()), mask=mask)


def _embed_texts(texts: Mapping[str, str], settings: EnrichmentSettings, ledger: Ledger) -> Done:
    encoder = open_text_encoder(settings.text_encoder)
    maker = Maker("text_embedding", _provider(settings.text_encoder), encoder.identity, f"tokens{MAX_TOKENS}")
    # Neighbours of similar length waste no padding; the longest first, so that a lack of memory shows at once.
    order = sorted(texts, key=lambda i: (-len(texts[i]), i))
    hashes = {i: sha256_of(texts[i]) for i in order}

    def answer(batch: Sequence[str]) -> list[bytes | Failure]:
        return [vector.astype("<f4").tobytes() for vector in encoder.encode([texts[i] for i in batch])]

    return through_ledger(ledger, maker, hashes, answer, settings.batch_size)


def _embed_photos(photos: Mapping[str, Path], settings: EnrichmentSettings, ledger: Ledger) -> Done:
    encoder = open_image_encoder(settings.image_encoder)
    maker = Maker("image_embedding", _provider(settings.image_encoder), encoder.identity, "pixels224")
    hashes = {i: photo_hash(path) for i, path in photos.items()}

    def answer(batch: Sequence[str]) -> list[bytes | Failure]:
        outcomes: dict[str, bytes | Failure] = {}
        seen = {}
        for i in batch:
            try:
                seen[i] = open_photo(photos[i])
            except PhotoError as error:
                outcomes[i] = Failure(str(error), sent=False)
        if seen:
            vectors = encoder.encode(list(seen.values()))
            outcomes |= {i: vector.astype("<f4").tobytes() for i, vector in zip(seen, vectors, strict=True)}
        return [outcomes[i] for i in batch]

    return through_ledger(ledger, maker, hashes, answer, settings.batch_size)


def _embed_jointly(
    encoder: JointEncoder, texts: Mapping[str, str], photos: Mapping[str, Path], batch_size: int, ledger: Ledger
) -> tuple[Done, Done]:
    """Vectors of text and photo in one, and (no entries) the photos that could not be read: their text is embedded."""
    maker = Maker("joint_embedding", encoder.provider, encoder.identity, "v1")
    hashes = {i: sha256_of(f"{text}\0{photo_hash(photos[i]) if i in photos else ''}") for i, text in texts.items()}
    unread = 0

    def answer(batch: Sequence[str]) -> list[bytes | Failure]:
        nonlocal unread
        seen: list[Any] = []
        for i in batch:
            try:
                seen.append(open_photo(photos[i]) if i in photos else None)
            except PhotoError as error:
                log.warning("%s is embedded by its text alone: %s", i, error)
                unread += 1
                seen.append(None)
        vectors = encoder.encode([texts[i] for i in batch], seen)
        return [v if isinstance(v, Failure) else v.astype("<f4").tobytes() for v in vectors]

    done = through_ledger(ledger, maker, hashes, answer, batch_size)
    if done.failed:
        reason = next(entry.reason for entry in done.entries.values() if entry.status == "failed")
        raise ModelCallError(
            f"{encoder.identity} gave {done.failed} of {len(texts)} items no embedding ({reason}); run again to ask "
            "for these, or leave enrichment.multimodal out."
        )
    return done, Done({}, 0, 0, unread)


def _provider(encoder: str) -> str:
    return "embedded" if encoder == "embedded" else "transformers"
