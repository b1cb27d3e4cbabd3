"""The front half of training as a pipeline of its own: source to gated SIDs, for catalogues without purchases."""

from typing import NamedTuple

from kfp import dsl
from kfp.dsl import Dataset, Model

from pipelines.steps import enrich, tokenize


class Outputs(NamedTuple):
    """What a run leaves behind."""

    catalogue: Dataset
    captions: Dataset
    intents: Dataset
    quality: Dataset
    embeddings: Dataset
    tokenizer: Model
    sids: Dataset


@dsl.pipeline(name="tessera-tokenization", description="Catalogue to enrichments and semantic IDs")
def tokenization(
    shards: list,
    ingest_settings: str = "{}",
    enrichment_settings: str = "{}",
    relate_settings: str = "{}",
    tokenizer_settings: str = "{}",
    home: str = "/mnt/tessera/home",
    work: str = "/mnt/tessera/work",
    source_digest: str = "",
) -> Outputs:
    """Ingest, enrich, gate and tokenize; the arguments are those of the training pipeline."""
    enriched = enrich(ingest_settings, enrichment_settings, home, source_digest, shards)
    tokenized = tokenize(enriched, relate_settings, tokenizer_settings, home, work)
    return Outputs(
        enriched.catalogue,
        enriched.captions,
        enriched.intents,
        enriched.quality,
        enriched.embeddings,
        tokenized.tokenizer,
        tokenized.sids,
    )
