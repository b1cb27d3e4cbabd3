"""Tokenizers side by side on one catalogue: what their codes keep of it, before collisions are resolved."""

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tessera.config import TokenizerSettings
from tessera.tokenizer import fit, report
from tessera.tokenizer.bundle import Tokenizer
from tessera.tokenizer.fusion import Balance
from tessera.tokenizer.inputs import Inputs

Codes = NDArray[np.integer]
_ROWS = 2048  # items compared with all others at a time


@dataclass(frozen=True)
class Contender:
    """One tokenizer's codes [N, L] of the catalogue, items in order of item_id, and what it cost.

    What is not known, as of published SIDs, is None.
    """

    name: str
    codes: Codes
    codebook_size: int
    reconstruction_cosine: float | None = None
    fit_seconds: float | None = None
    encode_seconds: float | None = None


def measure(name: str, settings: TokenizerSettings, embeddings: Path, seed: int) -> Contender:
    """Fit a tokenizer on an `embeddings` table, reload its bundle and encode the table with it, by the clock.

    Raises:
        InputError: as `fit.run`.
    """
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        started = time.perf_counter()
        metrics = fit.run(embeddings, home / "bundle", home / "sids.parquet", settings, seed, home / "work")
        fitted = time.perf_counter() - started
        tokenizer = Tokenizer.load(home / "bundle")
    inputs = fit.read(embeddings, settings)
    started = time.perf_counter()
    tokenizer.encode(inputs.text, inputs.image, inputs.has_image)
    encoded = time.perf_counter() - started
    cosine = metrics["reconstruction_cosine"]
    return Contender(name, tokenizer.place(inputs), settings.codebook_size, cosine, fitted, encoded)


def compare(
    contenders: Sequence[Contender], inputs: Inputs, intents: Sequence[str | None], neighbours: int = 10
) -> list[dict[str, Any]]:
    """A record per contender, all against the same neighbours and intents.

    Args:
        inputs: the embeddings whose neighbours the prefixes should keep; rows in order of item_id, as the codes.
        intents: why people buy each item [N], None where it is not known.

    Returns:
        Records of name, items, levels, codebook_size, collision_rate, and lists with a number a level or, for
        prefixes, a depth: utilisation, entropy_bits, neighbour_recall, prefix_mates, intent_purity (None where no two
        items with an intent share a prefix); then reconstruction_cosine, fit_seconds and encode_seconds.
    """
    near = nearest(inputs, min(neighbours, len(inputs.item_ids) - 1))
    records = []
    for one in contenders:
        groups = prefix_groups(one.codes)
        records.append({
            "name": one.name,
            "items": len(one.codes),
            "levels": one.codes.shape[1],
            "codebook_size": one.codebook_size,
            "collision_rate": report.collision_rate(one.codes),
            "utilisation": report.utilisation(one.codes, one.codebook_size),
            "entropy_bits": [float(np.log2(p)) for p in report.perplexity(one.codes)],
            "neighbour_recall": [neighbour_recall(group, near) for group in groups],
            "prefix_mates": [float((np.bincount(group)[group] - 1).mean()) for group in groups],
            "intent_purity": [intent_purity(group, intents) for group in groups],
            **{name: getattr(one, name) for name in ("reconstruction_cosine", "fit_seconds", "encode_seconds")},
        })
    return records


def prefix_groups(codes: Codes) -> list[NDArray[np.int64]]:
    """For each depth 1..L the number [N] of an item's prefix; codes [N, L]."""
    groups = []
    for depth in range(1, codes.shape[1] + 1):
        groups.append(np.unique(codes[:, :depth], axis=0, return_inverse=True)[1].reshape(-1))
    return groups


def neighbour_recall(group: NDArray[np.integer], near: NDArray[np.integer]) -> float:
    """Mean over items of |neighbours that share the prefix| / |neighbours|; group [N], near [N, k].

    One code for everything would score 1: read it beside the number of prefix mates.
    """
    return float((group[near] == group[:, None]).mean()) if near.size else 0.0


def intent_purity(group: NDArray[np.integer], intents: Sequence[str | None]) -> float | None:
    """Mean over items of the share of their prefix mates with the same intent; group [N].

    For n items of a prefix, m of them with the item's intent: (m - 1) / (n - 1). Leaving the item itself out keeps
    purity from rising merely because groups get small. Items without intent or without such mates do not count.
    """
    known = np.array([intent is not None for intent in intents], dtype=bool)
    if not known.any():
        return None
    labels = np.unique([intent for intent in intents if intent is not None], return_inverse=True)[1].reshape(-1)
    own = np.unique(group[known], return_inverse=True)[1].reshape(-1)
    pair = own * (labels.max() + 1) + labels
    mates, same = np.bincount(own)[own] - 1, np.bincount(pair)[pair] - 1
    shared = mates > 0
    return float((same[shared] / mates[shared]).mean()) if shared.any() else None


def nearest(inputs: Inputs, k: int) -> NDArray[np.int64]:
    """The k nearest other items [N, k] by inner product of the balanced [text; image] (`fusion.Balance`)."""
    text, image, has_image = (torch.from_numpy(a) for a in (inputs.text, inputs.image, inputs.has_image))
    x = Balance(text.shape[1], image.shape[1]).fit(text, image, has_image)(text, image, has_image)
    found = []
    for start in range(0, len(x), _ROWS):
        similarity = x[start : start + _ROWS] @ x.T
        rows = torch.arange(len(similarity))
        similarity[rows, rows + start] = -torch.inf
        found.append(similarity.topk(k, 1).indices)
    return torch.cat(found).numpy()


def to_markdown(records: Sequence[dict[str, Any]]) -> str:
    """The records as a table; lists are joined by slashes, a number a level or depth."""
    columns = {
        "name": "tokenizer", "collision_rate": "collisions", "utilisation": "utilisation a level",
        "entropy_bits": "entropy a level (bits)", "reconstruction_cosine": "reconstruction (cosine)",
        "neighbour_recall": "neighbours among prefix mates", "prefix_mates": "mates a prefix",
        "intent_purity": "intent purity", "fit_seconds": "fit (s)", "encode_seconds": "encode (s)",
    }
    head = ["| " + " | ".join(columns.values()) + " |", "|" + " --- |" * len(columns)]
    return "\n".join([*head, *("| " + " | ".join(_cell(r[c]) for c in columns) + " |" for r in records)]) + "\n"


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, list):
        return " / ".join(map(_cell, value))
    return value if isinstance(value, str) else f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"
