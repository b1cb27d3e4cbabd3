"""Registering a run: parameters, curves and features with the run, bundles as model versions."""

import dataclasses
from pathlib import Path
from typing import Any

from components.register.features import gathered
from serving.registry import Registry
from tessera.bundle import load_manifest
from tessera.config import Settings
from tessera.files import read_json, write_json


def run(
    tables: dict[str, Path], tokenizer: Path, policy: Path, evaluation: Path, settings: Settings, home: str, out: Path
) -> dict[str, Any]:
    """Log a run and register its bundles; bundles that are registered already keep their versions.

    Args:
        tables: items, splits, captions, intents, quality and sids.
        out: JSON with the version numbers `policy` and `tokenizer`.
    """
    registry = Registry(home, settings.platform.mlflow_url)
    known = {version.bundle_version: version for version in registry.versions()}
    fitted, trained = load_manifest(tokenizer, "tokenizer"), load_manifest(policy, "policy")
    if fitted.version in known and trained.version in known:
        versions = {"tokenizer": known[fitted.version].version, "policy": known[trained.version].version}
        if "champion" not in known[trained.version].aliases:
            registry.set_challenger(versions["policy"])
        write_json(out, versions)
        return {"versions": versions, "registered_before": True}
    report = read_json(evaluation)
    numbers = {part: report[part] for part in ("test", "validation", "popularity")}
    curve = trained.metrics.get("curve", [])
    curves = {
        name: [(int(point["epoch"]), float(point[name])) for point in curve if name in point]
        for name in {key for point in curve for key in point} - {"epoch"}
    }
    with gathered(tables, settings) as features:
        run_id = registry.log_run(
            f"training {trained.version}", dataclasses.asdict(settings), numbers, curves, [features, evaluation]
        )
    versions = {
        "tokenizer": registry.register_tokenizer(tokenizer, fitted.metrics, run_id),
        "policy": registry.register_policy(policy, fitted.version, numbers, run_id),
    }
    registry.set_challenger(versions["policy"])
    write_json(out, versions)
    return {"versions": versions, "run_id": run_id, "registered_before": False}
