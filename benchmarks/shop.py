"""A shop of random items for the benchmarks: policies over it that were never trained, and its published features."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.decoding import Case, random_backbone, random_codes
from feature_repo import publish
from tessera.policy.bundle import save_policy
from tessera.schema import SCHEMAS, write_table

TOKENIZER = "random"
HISTORIES = 64
"""Different histories that are asked with in turn."""
_PROVENANCE = {"provider": "random", "model": "none", "prompt_version": "v1", "status": "ok"}
_WORDS = ["light", "warm", "small", "round", "garden", "kitchen", "gift", "travel", "soft", "steel", "blue", "quiet"]


@dataclass(frozen=True)
class Shop:
    """Two policies over one catalogue, and a newer SIDs table with a tenth more items."""

    policies: tuple[Path, Path]
    grown: Path
    histories: list[list[str]]


def make_shop(folder: Path, case: Case, seed: int) -> Shop:
    """Write the policy bundles and the newer SIDs table; answers of all four combinations differ."""
    generator = np.random.default_rng(seed)
    codes = random_codes(case.items + max(case.items // 10, 1), case.levels, case.codebook, generator)
    sids = sids_table(codes)
    for number in range(2):
        save_policy(
            folder / f"policy-{number}", random_backbone(case, seed + number), sids.slice(0, case.items),
            codebook_size=case.codebook, max_history=case.history, config={"seed": seed + number}, metrics={},
        )  # fmt: skip
    write_table("sids", sids, folder / "grown.parquet")
    histories = generator.integers(0, case.items, (HISTORIES, case.history))
    named = [[item_id(item) for item in history] for history in histories.tolist()]
    return Shop((folder / "policy-0", folder / "policy-1"), folder / "grown.parquet", named)


def item_id(number: int) -> str:
    """The id of an item."""
    return f"i{number:07d}"


def sids_table(codes: np.ndarray) -> pa.Table:
    """Codes [items, levels] as a table of schema "sids"."""
    rows = codes.tolist()
    columns = {
        "item_id": [item_id(number) for number in range(len(rows))],
        "sid": ["_".join(map(str, row)) for row in rows],
        "codes": rows,
        "moved": [False] * len(rows),
        "tokenizer_version": [TOKENIZER] * len(rows),
    }
    return pa.table(columns, schema=SCHEMAS["sids"])


def publish_features(home: Path, sids: pa.Table, histories: dict[str, list[str]], policy: str, seed: int) -> None:
    """Publish enrichments of the usual lengths for the items of `sids`, and users' histories, to a platform's home."""
    generator = np.random.default_rng(seed)

    def text(words: int) -> str:
        return " ".join(_WORDS[one] for one in generator.integers(0, len(_WORDS), words))

    tables: dict[str, list[dict[str, Any]]] = {name: [] for name in ("items", "captions", "intents", "quality")}
    for one in sids["item_id"].to_pylist():
        descriptors = [{"text": text(4), "confidence": 0.5} for _ in range(4)]
        own = {"item_id": one}
        tables["items"].append(own | {
            "title": text(6), "description": "", "categories": [text(1), text(2)], "attributes": [], "brand": text(1),
            "image": f"{one}.jpg", "image_status": "ok",
        })  # fmt: skip
        tables["captions"].append(_PROVENANCE | own | {"caption": text(20)})
        tables["intents"].append(
            _PROVENANCE | own | {"surface": [text(1)], "motives": [text(3)] * 2, "descriptors": descriptors}
        )
        tables["quality"].append(_PROVENANCE | own | {"labels": [1, 0, 1, 1], "score": 0.75})
    tables["splits"] = [
        {"user_id": user, "train": items[:-2], "validation": items[-2], "test": items[-1]}
        for user, items in histories.items()
    ]
    paths = {name: home.parent / f"{name}.parquet" for name in (*tables, "sids")}
    for name, rows in tables.items():
        write_table(name, pa.Table.from_pylist(rows, schema=SCHEMAS[name]), paths[name])
    write_table("sids", sids, paths["sids"])
    publish.run(home, **paths, policy_version=policy)
