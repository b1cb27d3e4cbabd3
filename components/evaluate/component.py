"""A policy measured on the split."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Metrics, Model, Output

from components.images import image


@dsl.component(base_image=image("train"), install_kfp_package=False)
def evaluate(
    policy: Input[Model],
    splits: Input[Dataset],
    settings: str,
    evaluation: Output[Artifact],
    metrics: Output[Metrics],
    stats: Output[Artifact],
    allow_unknown: bool = False,
    sids: Input[Dataset] = None,
) -> None:
    """Full-ranking metrics on validation and test, beside popularity.

    Args:
        settings: JSON of the settings; evaluation is used.
        allow_unknown: the split may be younger than the policy: an item that it has no SID for counts as a miss.
        sids: a newer SIDs table to measure it over; none, or an empty file, for the bundle's own.
    """
    from pathlib import Path

    from components.stage import run_stage
    from tessera.config import from_json
    from tessera.evaluation.evaluate import run

    chosen = from_json(settings)
    paths = Path(policy.path), Path(splits.path), Path(evaluation.path)
    newer = Path(sids.path) if sids is not None and Path(sids.path).stat().st_size else None
    report = run_stage("evaluate", stats.path, run, *paths, chosen.evaluation, allow_unknown, newer)
    for part in ("test", "validation"):
        for name, value in report[part].items():
            metrics.log_metric(f"{part}/{name}", value)
    # Metrics travel as metadata; a cache keeps only outputs whose file is there.
    Path(metrics.path).write_text("{}", encoding="utf-8")
