"""Small good tables for the gates, and a helper that writes them and runs a gate."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tessera.schema import SCHEMAS
from validation.gate import run
from validation.suites import TABLES, Suite

N = 60
COLOURS = ("red", "blue", "green", "black", "white", "yellow", "orange", "purple", "brown", "pink")
THINGS = ("ball", "tent", "kettle", "lamp", "jacket", "bottle")
PLACES = ("garden", "kitchen", "beach", "mountain", "office", "street")
Rows = dict[str, list[dict[str, Any]]]


def good_rows() -> Rows:
    """Rows of every table, all good: 60 items (the last ten without a photo), 12 users."""
    rng = np.random.default_rng(0)
    rows: Rows = {name: [] for name in SCHEMAS}
    made = {"provider": "embedded", "model": "rules", "prompt_version": "1", "status": "ok", "reason": None}
    for number in range(N):
        colour, thing, place = COLOURS[number % 10], THINGS[number // 10], PLACES[number % 6]
        key, photo = f"item-{number:02d}", number < N - 10
        codes = [number % 8, (number // 8) % 8, number % 4]
        text, image = rng.normal(size=8), rng.normal(size=12)
        rows["items"].append(
            {
                "item_id": key, "title": f"{colour} {thing}", "description": f"For the {place}.", "brand": "Acme",
                "categories": [thing], "attributes": [colour], "image_status": "ok" if photo else "none",
                "image": f"{key}.png" if photo else None,
            }
        )
        caption = f"A {colour} {thing} with a matt finish stands in a {place} in soft light."
        rows["captions"].append(
            {"item_id": key, **made, "caption": caption if photo else None, "reason": None if photo else "no photo"}
        )
        rows["intents"].append(
            {
                "item_id": key, **made, "surface": [colour, thing], "motives": [f"to use it in the {place}"],
                "descriptors": [
                    {"text": f"{place} outings", "confidence": 0.9}, {"text": f"{colour} style", "confidence": 0.6},
                    {"text": "weekend with friends", "confidence": 0.5},
                ],
            }
        )
        rows["quality"].append({"item_id": key, **made, "labels": [1, 1, 0], "score": 1.5 / 2.0})
        rows["embeddings"].append(
            {
                "item_id": key, "text": (text / np.linalg.norm(text)).tolist(),
                "image": (image / np.linalg.norm(image)).tolist() if photo else None,
            }
        )
        rows["sids"].append(
            {
                "item_id": key, "sid": "_".join(map(str, codes)), "codes": codes, "moved": False,
                "tokenizer_version": "abc123",
            }
        )
    for user in range(12):
        history = [f"item-{(user * 3 + step * 7) % N:02d}" for step in range(2 if user == 11 else 5)]
        held = history[-2:] if len(history) >= 3 else [None, None]
        rows["splits"].append(
            {
                "user_id": f"user-{user:02d}", "train": history[:-2] if len(history) >= 3 else history,
                "validation": held[0], "test": held[1],
            }
        )
        rows["interactions"] += [
            {"user_id": f"user-{user:02d}", "item_id": item, "timestamp": 0, "position": position}
            for position, item in enumerate(history)
        ]
    return rows


def write(rows: Rows, folder: Path) -> dict[str, Path]:
    """Write every table as it is, nulls and missing columns included, as a foreign component might."""
    paths = {}
    for name, table in rows.items():
        columns = table[0].keys() if table else SCHEMAS[name].names
        schema = pa.schema([pa.field(field.name, field.type) for field in SCHEMAS[name] if field.name in columns])
        paths[name] = folder / f"{name}.parquet"
        pq.write_table(pa.Table.from_pylist(table, schema=schema), paths[name])
    return paths


@pytest.fixture(scope="session")
def docs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One Data Docs folder that the gates of the session share."""
    return tmp_path_factory.mktemp("gx")


@pytest.fixture
def rows() -> Rows:
    """Good rows, to be spoiled by a test."""
    return good_rows()


@pytest.fixture
def gate(tmp_path: Path, docs: Path) -> Callable[..., dict[str, Any]]:
    """Write the rows and run a gate over them."""

    def go(suite: Suite, rows: Rows, docs: Path = docs, **options: Any) -> dict[str, Any]:
        paths = write(rows, tmp_path)
        return run(suite, {name: paths[name] for name in TABLES[suite]}, docs, **options)

    return go
