"""Descriptors to binary quality labels and item scores (QARM labels)."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Output

from components.images import image


@dsl.component(base_image=image("enrich"), install_kfp_package=False)
def label_quality(
    items: Input[Dataset],
    captions: Input[Dataset],
    intents: Input[Dataset],
    settings: str,
    home: str,
    quality: Output[Dataset],
    stats: Output[Artifact],
    shard: str = "",
) -> None:
    """Judge each descriptor: specific, actionable and grounded in the item, or not."""
    from pathlib import Path

    from components.stage import run_stage
    from tessera.config import catalogue_url, from_json
    from tessera.enrichment.stages import run_quality

    chosen = from_json(settings)
    ledger = catalogue_url(chosen, home)
    tables = Path(items.path), Path(captions.path), Path(intents.path), Path(quality.path)
    run_stage("label-quality", stats.path, run_quality, *tables, chosen, ledger, shard)
