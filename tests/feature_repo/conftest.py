"""A tiny catalogue as the tables of a run: b1 and b2 are balls, l1 is a lamp."""

from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tessera.schema import SCHEMAS, write_table

Tables = dict[str, Path]
PROVENANCE = {"provider": "embedded", "model": "m", "prompt_version": "v1"}


def _write(name: str, rows: list[dict[str, Any]], folder: Path) -> Path:
    path = folder / f"{name}.parquet"
    write_table(name, pa.Table.from_pylist(rows, schema=SCHEMAS[name]), path)
    return path


def write_run(
    folder: Path,
    version: str = "tok-1",
    sids: dict[str, str] | None = None,
    histories: dict[str, list[str]] | None = None,
) -> Tables:
    """Tables of a run over the items of `sids`; the last two purchases of a history are validation and test."""
    sids = sids or {"b1": "1_2_3", "b2": "1_2_4", "l1": "7_0_5"}
    histories = histories or {"ann": ["b1", "l1", "b2"], "bob": ["l1", "b1", "b2", "l1"]}
    titles = {"b1": "Ball size 4", "b2": "Ball size 5", "l1": "Lamp", "n1": "New lamp"}
    item = {"description": "", "categories": ["toys"], "attributes": [], "brand": "acme"}
    enriched = {
        "items": [item | {"item_id": i, "title": titles[i], "image_status": "ok", "image": f"{i}.jpg"} for i in sids],
        # l1 could not be captioned; a failed row must not lend its text to the item.
        "captions": [
            PROVENANCE | {"item_id": i, "status": "failed" if i == "l1" else "ok", "caption": f"A photo of {i}"}
            for i in sids
        ],
        # In another order than the items, as parallel model calls may leave them; b2 has no intents at all.
        "intents": [
            PROVENANCE | {
                "item_id": i, "status": "ok", "surface": ["round"], "motives": ["play"],
                "descriptors": [{"text": f"{i} for gardens", "confidence": 0.5}, {"text": "gift", "confidence": None}],
            }
            for i in reversed(list(sids)) if i != "b2"
        ],
        "quality": [
            PROVENANCE | {"item_id": i, "status": "ok", "labels": [1, 0], "score": 0.5} for i in sids if i != "b2"
        ],
        "sids": [
            {
                "item_id": i, "sid": s, "codes": [int(code) for code in s.split("_")], "moved": False,
                "tokenizer_version": version,
            }
            for i, s in sids.items()
        ],
        "splits": [{"user_id": u, "train": h[:-2], "validation": h[-2], "test": h[-1]} for u, h in histories.items()],
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    return {name: _write(name, rows, folder) for name, rows in enriched.items()}


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Tables]:
    """`make_run("name", version=..., sids=..., histories=...)` writes the tables of a run and returns their paths."""
    return lambda name="run", **kinds: write_run(tmp_path / name, **kinds)


@pytest.fixture
def make_topk() -> Callable[..., pa.Table]:
    """`make_topk({"ann": ["b2"]}, "tok-1")` is a top-K table; SIDs and scores follow from the places in the list."""
    long_ago = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)

    def build(
        items: dict[str, list[str]], version: str, policy: str = "pol-1", computed_at: datetime = long_ago
    ) -> pa.Table:
        places = [range(len(row)) for row in items.values()]
        return pa.table({
            "user_id": list(items),
            "item_ids": list(items.values()),
            "sids": [[f"1_2_{place}" for place in row] for row in places],
            "scores": [[-0.5 * place for place in row] for row in places],
            "policy_version": [policy] * len(items),
            "tokenizer_version": [version] * len(items),
            "computed_at": [computed_at] * len(items),
        })  # fmt: skip

    return build
