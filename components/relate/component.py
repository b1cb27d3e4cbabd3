"""What purchases and the world say of items, where the tokenizer asks for it."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Model, Output

from components.images import image


@dsl.component(base_image=image("enrich"), install_kfp_package=False)
def relate_items(
    items: Input[Dataset],
    intents: Input[Dataset],
    splits: Input[Dataset],
    embeddings: Input[Dataset],
    settings: str,
    home: str,
    related: Output[Dataset],
    grounding: Output[Model],
    stats: Output[Artifact],
) -> None:
    """Collaborative vectors for `aligned`, grounding's weights for the grounded space; else the embeddings as they are.

    Args:
        settings: JSON of the settings; seed, space, catalogue, enrichment and of the tokenizer method and use_images
            are used.
    """
    from pathlib import Path

    from components.stage import run_stage
    from tessera.config import catalogue_url, from_json
    from tessera.files import write_text

    chosen = from_json(settings)
    aligned, grounded = chosen.tokenizer.method == "aligned", chosen.space == "grounded"
    if not aligned:
        related.uri = embeddings.uri  # the same table under another name: nothing is copied
    if not grounded:
        write_text(grounding.path, "")  # a file at each output, or the cache counts the step as lost
    if not aligned and not grounded:
        run_stage("relate-items", stats.path, dict, relation="none")
        return
    from tessera.tokenizer.relations import run

    tables = Path(items.path), Path(intents.path), Path(splits.path), Path(embeddings.path)
    made = Path(related.path), Path(grounding.path)
    run_stage("relate-items", stats.path, run, *tables, *made, chosen, catalogue_url(chosen, home))
