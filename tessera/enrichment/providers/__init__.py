"""Who answers captions, intents and quality labels: `embedded`, `openai` or `transformers`."""

from tessera.config import EnrichmentSettings
from tessera.enrichment.prompts import Kind
from tessera.enrichment.providers.base import Enricher
from tessera.errors import InputError


def open_enricher(kind: Kind, settings: EnrichmentSettings) -> Enricher:
    """The provider that the settings name for `kind`; cheap, weights load when the first item is sent.

    Summaries and paraphrases are asked of the model that mines intents, so that only the question differs.

    Raises:
        InputError: an unknown provider, or a model that it cannot have.
    """
    chosen = {"caption": settings.captions, "quality": settings.quality}.get(kind, settings.intents)
    if chosen.provider == "embedded":
        from tessera.enrichment.providers.embedded import EmbeddedEnricher

        if chosen.model:
            raise InputError(f"the embedded provider has its own model; leave out {chosen.model!r} for {kind}.")
        return EmbeddedEnricher(kind)
    from tessera.enrichment.providers.prompted import PromptedEnricher

    if chosen.provider == "openai":
        from tessera.enrichment.providers.openai import OpenAIModel

        return PromptedEnricher(OpenAIModel(chosen.model, settings))
    if chosen.provider == "transformers":
        from tessera.enrichment.providers.transformers import (
            DEFAULT_TEXT_MODEL,
            DEFAULT_VISION_MODEL,
            TransformersModel,
        )

        default = DEFAULT_VISION_MODEL if kind == "caption" else DEFAULT_TEXT_MODEL
        return PromptedEnricher(TransformersModel(chosen.model or default))
    raise InputError(f"unknown enrichment provider {chosen.provider!r}; use embedded, openai or transformers.")
