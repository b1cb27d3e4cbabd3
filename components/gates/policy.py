"""The promotion gate: a challenger must beat the champion, measured on the same split with the same beam."""

import logging
from pathlib import Path
from typing import Any

from serving import newer_sids
from serving.registry import Registry, Version
from tessera.config import EvaluationSettings, Settings
from tessera.decoding.recommender import Recommender
from tessera.errors import InputError
from tessera.evaluation.data import UNKNOWN, read_split
from tessera.evaluation.evaluate import measure
from tessera.files import read_json

log = logging.getLogger(__name__)
MEASURE = "ndcg@10"


def decide(version: str, evaluation: Path, splits: Path, settings: Settings, home: str) -> dict[str, Any]:
    """Compare a registered challenger with the champion on the newest holdout, the split's test part.

    Without a champion the bar is popularity. A champion is measured here, now, on this split, over the SIDs that it
    serves, those of refreshes included: items that it has no SID for count as misses.

    Returns:
        `passed`, `reason` in one sentence, and the measure of `challenger`, `champion` and `popularity`.
    """
    report = read_json(evaluation)
    registry = Registry(home, settings.platform.mlflow_url)
    challenger = report["test"][MEASURE]
    popularity = report["popularity"]["test"][MEASURE]
    champion = _champion(registry)
    rival = champion if champion is not None and champion.version != version else None
    other = _measure(registry, rival, splits, settings.evaluation) if rival else None
    found = {"challenger": challenger, "champion": other, "popularity": popularity, "version": version}
    passed, reason = _verdict(version, report, champion, found)
    log.info("%s", reason)
    return {"passed": passed, "reason": reason, "measure": f"test {MEASURE}", **found}


def _verdict(
    version: str, report: dict[str, Any], champion: Version | None, found: dict[str, Any]
) -> tuple[bool, str]:
    mine = f"{MEASURE} {found['challenger']:.4f}"
    if report["test"]["invalid_rate"] > 0:
        return False, f"policy {version} is not promoted: {report['test']['invalid_rate']:.2%} of its SIDs are invalid."
    if champion is None:
        bar = f"popularity's {found['popularity']:.4f}"
        if found["challenger"] > found["popularity"]:
            return True, f"policy {version} is the first: {mine} against {bar}."
        return False, f"policy {version} is not promoted: {mine} is not above {bar}."
    if champion.version == version:
        return True, f"policy {version} is the champion already."
    bar = f"champion {champion.version}'s {found['champion']:.4f}"
    if found["challenger"] > found["champion"]:
        return True, f"policy {version} is better: {mine} against {bar}."
    return False, f"policy {version} is not promoted: {mine} does not beat {bar} (`tessera promote` overrules this)."


def _champion(registry: Registry) -> Version | None:
    return next((v for v in registry.versions() if v.model == "sid-policy" and "champion" in v.aliases), None)


def _measure(registry: Registry, champion: Version, splits: Path, settings: EvaluationSettings) -> float:
    recommender = Recommender.load(registry.bundle(champion), newer_sids.fetch(registry, champion))
    split = read_split(splits, recommender.item_ids, allow_unknown=True)
    if (split.test_cases()[1] == UNKNOWN).all():
        raise InputError(
            f"champion {champion.version} knows none of this catalogue's items; keep each catalogue in a platform home "
            "of its own (--platform.home)."
        )
    return measure(recommender, split, "test", settings)[0][MEASURE]
