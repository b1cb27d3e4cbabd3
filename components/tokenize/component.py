"""Embeddings to semantic IDs."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Model, Output

from components.images import image


@dsl.component(base_image=image("train"), install_kfp_package=False)
def fit_tokenizer(
    embeddings: Input[Dataset],
    grounding: Input[Model],
    settings: str,
    work: str,
    tokenizer: Output[Model],
    sids: Output[Dataset],
    stats: Output[Artifact],
) -> None:
    """Fit the tokenizer and give every item a unique SID.

    Args:
        settings: JSON of the settings; tokenizer, space and seed are used.
        work: folder of the checkpoints, kept between tries.
    """
    from pathlib import Path

    from components.stage import run_stage
    from tessera.config import from_json
    from tessera.tokenizer.fit import run

    chosen = from_json(settings)
    paths = Path(embeddings.path), Path(tokenizer.path), Path(sids.path)
    options = chosen.tokenizer, chosen.seed, Path(work) / "tokenizer"
    weights = Path(grounding.path) if chosen.space == "grounded" else None
    run_stage("fit-tokenizer", stats.path, run, *paths, *options, weights)
