"""The evaluation stage: full-ranking metrics of a policy on validation and test, beside popularity."""

from pathlib import Path
from typing import Any

import numpy as np

from tessera.config import EvaluationSettings
from tessera.decoding.recommender import Recommender
from tessera.evaluation.baselines import popularity
from tessera.evaluation.data import ABSENT, Split, read_split
from tessera.evaluation.metrics import KS, coverage, ranking_metrics, ranks
from tessera.files import write_json

SAMPLES = 12


def run(
    policy: Path,
    splits: Path,
    out: Path,
    settings: EvaluationSettings,
    allow_unknown: bool = False,
    sids: Path | None = None,
) -> dict[str, Any]:
    """Measure a policy bundle on a split and write the numbers and some sample answers as JSON.

    Test histories hold the validation item; bought items are not removed from the ranking, as is usual here.

    Args:
        allow_unknown: the split may have items without a SID, which no answer hits.
        sids: a newer table of the same tokenizer in place of the bundle's own.
    """
    recommender = Recommender.load(policy, sids)
    split = read_split(splits, recommender.item_ids, allow_unknown=allow_unknown)
    test, rows = measure(recommender, split, "test", settings)
    validation, _ = measure(recommender, split, "validation", settings)
    histories, targets = split.test_cases()
    report = {
        "policy_version": recommender.policy_version,
        "tokenizer_version": recommender.tokenizer_version,
        "items": len(recommender.item_ids),
        "users": len(split.users),
        "beam": settings.beam,
        "test": test,
        "validation": validation,
        "popularity": _popularity(split, len(recommender.item_ids)),
        "samples": _samples(recommender, split, rows, histories, targets),
    }
    write_json(out, report)
    return report


def measure(
    recommender: Recommender, split: Split, part: str, settings: EvaluationSettings
) -> tuple[dict[str, float], np.ndarray]:
    """Metrics of one part ("validation" or "test") of a split, and the answers [users, 20] as item numbers."""
    histories, targets = split.test_cases() if part == "test" else split.validation_cases()
    k = min(max(KS), len(recommender.item_ids))
    rows = recommender.rank_all(histories, k, settings.beam, settings.batch_size, f"evaluate {part}")
    measured = ranking_metrics(ranks(rows, targets))
    measured["coverage@10"] = coverage(rows, len(recommender.item_ids))
    measured["invalid_rate"] = invalid_rate(recommender, rows)
    measured["users"] = len(targets)
    return measured, rows


def invalid_rate(recommender: Recommender, rows: np.ndarray) -> float:
    """Share of answered places that hold no catalogue item, or one that the same user was answered before."""
    answered = rows >= 0
    valid = answered & (rows < len(recommender.item_ids))
    ordered = np.sort(np.where(valid, rows, -np.arange(1, rows.shape[1] + 1)), axis=1)
    repeated = (ordered[:, 1:] == ordered[:, :-1]).sum()
    return float(((answered & ~valid).sum() + repeated) / max(1, answered.sum()))


def _popularity(split: Split, items: int) -> dict[str, dict[str, float]]:
    top = popularity(split.train, items, min(max(KS), items))
    return {
        part: ranking_metrics(ranks(np.tile(top, (len(targets), 1)), targets))
        for part, targets in (("test", split.test_cases()[1]), ("validation", split.validation_cases()[1]))
    }


def _samples(
    recommender: Recommender, split: Split, rows: np.ndarray, histories: list[np.ndarray], targets: np.ndarray
) -> list[dict[str, Any]]:
    """Answers for a few users, half of them hits so that both kinds can be looked at."""
    name, users = recommender.item_ids, np.flatnonzero(split.test != ABSENT)
    hit = (rows[:, :10] == targets[:, None]).any(axis=1)
    missed = ~hit & (targets >= 0)
    chosen = np.sort(np.concatenate([np.flatnonzero(hit)[: SAMPLES // 2], np.flatnonzero(missed)[: SAMPLES // 2]]))
    return [
        {
            "user_id": split.users[users[i]],
            "history": [name[r] for r in histories[i]],
            "target": name[targets[i]],
            "recommended": [{"item_id": name[r], "sid": recommender.sids[r]} for r in rows[i, :10] if r >= 0],
        }
        for i in chosen
    ]
