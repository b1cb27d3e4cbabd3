"""GRU4Rec, SASRec, BERT4Rec and FDSA, trained by RecBole on our split; their answers in our numbers.

    make bench-setup
    tessera bench quality --source parquet --path FOLDER --systems gru4rec sasrec bert4rec fdsa

The export holds the cases as `Split` makes them, so what is held out, what a model reads and what is ranked (the whole
catalogue, the history not removed) are the same for every system, and `tessera.evaluation.metrics` measures them all.
"""

import re
import subprocess
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from benchmarks.peers import environment
from tessera.errors import InputError, ServiceError
from tessera.evaluation.data import Split
from tessera.files import read_json, write_json

Budget = Literal["smoke", "small", "full"]
MODELS = ("GRU4Rec", "SASRec", "BERT4Rec", "FDSA")
TITLE_WORDS = 12
_RUNNER = Path(__file__).with_name("recbole_run.py")
# `seconds` of the processor cap one training (0: none); early stopping on validation NDCG@10 usually comes first.
BUDGETS: dict[str, dict[str, Any]] = {
    "smoke": {"seconds": 30, "epochs": 5, "patience": 5, "max_history": 20, "batch": 256},
    "small": {"seconds": 540, "epochs": 300, "patience": 5, "max_history": 20, "batch": 256},
    "full": {"seconds": 0, "epochs": 300, "patience": 10, "max_history": 50, "batch": 256},
}
# What differs from RecBole's own defaults (64 dimensions, 2 layers, Adam at 0.001, cross-entropy), by model.
SETTINGS: dict[str, dict[str, Any]] = {name: {"recbole": {}} for name in MODELS}


@dataclass(frozen=True)
class Peer:
    """Answers of one trained model.

    validation, test: [cases, 20] item numbers in falling order, cases as `Split.validation_cases` and `test_cases`;
    facts: seconds, epochs, why training stopped, the validation curve, RecBole's own metrics of validation.
    """

    validation: np.ndarray
    test: np.ndarray
    facts: dict[str, Any]


def run_peer(name: str, split: Split, items: pa.Table, out: Path, seed: int, budget: Budget) -> Peer:
    """Train one of MODELS with early stopping on validation, and rank the catalogue for validation and test.

    Args:
        split: every item numbered as a row of `items`.
        items: schema "items"; FDSA reads its brands, categories, attributes and titles.
        out: folder of the export and of what comes back.

    Raises:
        InputError: a model that is not one of MODELS, or held-out items outside the catalogue.
        ServiceError: RecBole's environment is not there, or RecBole failed.
    """
    if name not in MODELS:
        raise InputError(f"no peer is called '{name}'; choose from {', '.join(MODELS)}.")
    python = environment.find()
    if python is None:
        raise ServiceError(f"RecBole is {environment.NOT_INSTALLED}.")
    job = export(name, split, items, out, seed, budget)
    started = time.perf_counter()
    done = subprocess.run([str(python), "-W", "ignore", str(_RUNNER), str(out)], check=False)
    if done.returncode:
        raise ServiceError(f"{name} failed in RecBole (exit status {done.returncode}); its words are above.")
    return read_back(out, split, {**job, "seconds": round(time.perf_counter() - started, 1)})


def export(name: str, split: Split, items: pa.Table, out: Path, seed: int, budget: Budget) -> dict[str, Any]:
    """Write out/data.npz and out/job.json, what the runner reads.

    data.npz: `items` their count; `train`, `validation_histories`, `test_histories` flat with `..._lengths` of the rows
    (`train_lengths`, `validation_lengths`, `test_lengths`); `validation_targets`, `test_targets`; for FDSA also
    `feature_NAME` flat with `feature_NAME_lengths`, numbers from 1 and 0 where an item has none.
    """
    out.mkdir(parents=True, exist_ok=True)
    train = [history for history in split.train if len(history)]
    arrays: dict[str, np.ndarray] = {"items": np.array(items.num_rows), **_rows("train", "train", train)}
    for part, (histories, targets) in (("validation", split.validation_cases()), ("test", split.test_cases())):
        if (targets < 0).any() or any(not len(history) for history in histories):
            raise InputError(f"a {part} case has items outside the catalogue; peers need the one that was split.")
        arrays |= _rows(f"{part}_histories", part, histories) | {f"{part}_targets": targets}
    features = item_features(items) if name == "FDSA" else {}
    for feature, rows in features.items():
        arrays |= _rows(f"feature_{feature}", f"feature_{feature}", rows)
    job = {"model": name, "seed": seed, "features": sorted(features), **BUDGETS[budget], **SETTINGS[name]}
    np.savez(out / "data.npz", **arrays)  # type: ignore[arg-type]
    write_json(out / "job.json", job)
    return job


def read_back(out: Path, split: Split, facts: dict[str, Any]) -> Peer:
    """Read out/result.npz and out/result.json.

    Raises:
        ServiceError: they are not of this split.
    """
    with np.load(out / "result.npz") as found:
        validation, test = found["validation_rows"], found["test_rows"]
    if len(validation) != len(split.validation_cases()[1]) or len(test) != len(split.test_cases()[1]):
        raise ServiceError(f"{out} holds answers of another split; remove it and run the peer again.")
    return Peer(validation, test, {**facts, **read_json(out / "result.json")})


def item_features(items: pa.Table) -> dict[str, list[np.ndarray]]:
    """Rows of feature numbers an item: brand, categories with attributes, words of the title that two items share."""
    columns = {name: items[name].to_pylist() for name in ("title", "brand", "categories", "attributes")}
    texts = {
        "brand": [[brand] if brand else [] for brand in columns["brand"]],
        "category": [[*a, *b] for a, b in zip(columns["categories"], columns["attributes"], strict=True)],
        "word": [re.findall(r"[a-z]{2,}", title.lower())[:TITLE_WORDS] for title in columns["title"]],
    }
    numbered = {name: _numbers(rows) for name, rows in texts.items()}
    return {name: rows for name, rows in numbered.items() if any(row.any() for row in rows)}


def _numbers(rows: list[list[str]]) -> list[np.ndarray]:
    counts = Counter(text for row in rows for text in dict.fromkeys(row))
    known = {text: number for number, text in enumerate((t for t, n in sorted(counts.items()) if n > 1), start=1)}
    found = [[known[text] for text in dict.fromkeys(row) if text in known] for row in rows]
    return [np.array(row or [0]) for row in found]


def _rows(name: str, lengths: str, rows: Iterable[np.ndarray]) -> dict[str, np.ndarray]:
    listed = list(rows)
    return {name: np.concatenate(listed), f"{lengths}_lengths": np.array([len(row) for row in listed])}
