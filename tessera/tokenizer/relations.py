"""What purchases and the world say of items, brought to the embeddings where a tokenizer asks for it.

| setting | made here | read by |
| --- | --- | --- |
| `tokenizer.method aligned` (Semantic Convergence) | collaborative vectors in place of the photos' | the quantizer |
| `space grounded` (SIGMA) | the weights of grounding | the tokenizer: for all items, and for later ones |
| neither | nothing | |
"""

import tempfile
from pathlib import Path
from typing import Any

from tessera.config import Settings, relation
from tessera.enrichment.embedding import run_knowledge
from tessera.tokenizer import collaborative, grounding


def run(
    items: Path,
    intents: Path,
    splits: Path,
    embeddings: Path,
    related: Path,
    weights: Path,
    settings: Settings,
    ledger_url: str,
) -> dict[str, Any]:
    """Make what the settings want of a catalogue; only training purchases are read, and texts go through the ledger.

    Args:
        embeddings: of texts and photos.
        related: `embeddings` table to write for `aligned`; not written otherwise, because the embeddings stay as they
            are.
        weights: safetensors to write for the grounded space; not written otherwise.

    Returns:
        relation, what `collaborative.run` or `grounding.run` says, and for grounding "model_calls", "reused" and
        "failed" of the world's words.

    Raises:
        InputError: an unusable table, or settings that exclude each other.
    """
    wanted = relation(settings)
    said: dict[str, Any] = {}
    if wanted == "grounding":
        with tempfile.TemporaryDirectory() as folder:
            knowledge = Path(folder) / "knowledge.parquet"
            asked = run_knowledge(items, intents, knowledge, settings, ledger_url)
            images = settings.tokenizer.use_images
            fitted = grounding.run(embeddings, knowledge, splits, weights, settings.seed, use_images=images)
        said = {**asked, **fitted}
    elif wanted == "collaborative":
        said = collaborative.run(embeddings, splits, related, settings.seed)
    return {**said, "relation": wanted}
