"""Bundles to registered model versions."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Model, Output

from components.images import image


@dsl.component(base_image=image("publish"), install_kfp_package=False)
def register(
    items: Input[Dataset],
    splits: Input[Dataset],
    captions: Input[Dataset],
    intents: Input[Dataset],
    quality: Input[Dataset],
    sids: Input[Dataset],
    tokenizer: Input[Model],
    policy: Input[Model],
    evaluation: Input[Artifact],
    settings: str,
    home: str,
    challenger: Output[Artifact],
    stats: Output[Artifact],
) -> None:
    """Log the run, register tokenizer and policy, and let `challenger` name them.

    The tables that go to the feature store are kept with the run, so that a promotion or a rollback of this version
    publishes exactly its features.
    """
    from pathlib import Path

    from components.register.registering import run
    from components.stage import run_stage
    from tessera.config import from_json

    given = {
        "items": items, "splits": splits, "captions": captions, "intents": intents, "quality": quality, "sids": sids,
    }
    tables = {name: Path(artifact.path) for name, artifact in given.items()}
    bundles = Path(tokenizer.path), Path(policy.path)
    options = Path(evaluation.path), from_json(settings), home, Path(challenger.path)
    run_stage("register", stats.path, run, tables, *bundles, *options)
