"""Photos to captions (CMSA path 1)."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Output

from components.images import image


@dsl.component(base_image=image("enrich"), install_kfp_package=False)
def caption(
    catalogue: Input[Dataset],
    items: Input[Dataset],
    settings: str,
    home: str,
    captions: Output[Dataset],
    stats: Output[Artifact],
    shard: str = "",
) -> None:
    """Describe every photo; what the ledger has is not asked again."""
    from pathlib import Path

    from components.stage import run_stage
    from tessera.config import catalogue_url, from_json
    from tessera.enrichment.stages import run_captions

    chosen = from_json(settings)
    images = Path(catalogue.path) / "images"
    ledger = catalogue_url(chosen, home)
    run_stage("caption", stats.path, run_captions, Path(items.path), images, Path(captions.path), chosen, ledger, shard)
