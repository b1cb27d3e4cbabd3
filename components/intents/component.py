"""Items to intent descriptors with confidences (DCIM)."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Output

from components.images import image


@dsl.component(base_image=image("enrich"), install_kfp_package=False)
def mine_intents(
    items: Input[Dataset],
    captions: Input[Dataset],
    settings: str,
    home: str,
    intents: Output[Dataset],
    stats: Output[Artifact],
    shard: str = "",
) -> None:
    """Mine why people buy each item, from its metadata and caption."""
    from pathlib import Path

    from components.stage import run_stage
    from tessera.config import catalogue_url, from_json
    from tessera.enrichment.stages import run_intents

    chosen = from_json(settings)
    ledger = catalogue_url(chosen, home)
    tables = Path(items.path), Path(captions.path), Path(intents.path)
    run_stage("mine-intents", stats.path, run_intents, *tables, chosen, ledger, shard)
