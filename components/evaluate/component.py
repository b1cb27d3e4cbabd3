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
) -> None:
    """Full-ranking metrics on validation and test, beside popularity."""
    from pathlib import Path

    from components.stage import run_stage
    from tessera.config import from_json
    from tessera.evaluation.evaluate import run

    chosen = from_json(settings)
    paths = Path(policy.path), Path(splits.path), Path(evaluation.path)
    report = run_stage("evaluate", stats.path, run, *paths, chosen.evaluation)
    for part in ("test", "validation"):
        for name, value in report[part].items():
            metrics.log_metric(f"{part}/{name}", value)
    # Metrics travel as metadata; a cache keeps only outputs whose file is there.
    Path(metrics.path).write_text("{}", encoding="utf-8")
