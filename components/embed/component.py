"""Text and photos to embeddings (CMSA path 2)."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Output

from components.images import image


@dsl.component(base_image=image("enrich"), install_kfp_package=False)
def embed(
    catalogue: Input[Dataset],
    items: Input[Dataset],
    captions: Input[Dataset],
    intents: Input[Dataset],
    settings: str,
    home: str,
    embeddings: Output[Dataset],
    stats: Output[Artifact],
    shard: str = "",
) -> None:
    """Embed metadata, caption and descriptors as one text, and each photo."""
    from pathlib import Path

    from components.stage import run_stage
    from tessera.config import catalogue_url, from_json
    from tessera.enrichment.stages import run_embeddings

    chosen = from_json(settings)
    tables = Path(items.path), Path(catalogue.path) / "images", Path(captions.path), Path(intents.path)
    ledger = catalogue_url(chosen, home)
    run_stage("embed", stats.path, run_embeddings, *tables, Path(embeddings.path), chosen, ledger, shard)
