"""The numbers of a run, from what each step said of itself."""

from pathlib import Path
from typing import Any

from tessera.files import read_json

# The step that makes each kind of enrichment; embed makes two and says both.
ENRICHMENTS = {
    "captions": "caption",
    "intents": "mine-intents",
    "quality": "label-quality",
    "text_embeddings": "embed",
    "image_embeddings": "embed",
    "knowledge_embeddings": "relate-items",
}


def collect(steps: list[Path], evaluation: Path) -> dict[str, Any]:
    """`metrics.json`: test metrics at the top, validation and popularity beside them, tokenizer, costs.

    Args:
        steps: the stats file of every step, each `{"stage", "seconds", ...}`.
    """
    said = {stats["stage"]: stats for stats in map(read_json, steps)}
    report = read_json(evaluation)
    tokenizer, ingest = said["fit-tokenizer"], said["ingest"]
    return {
        **report["test"],
        "validation": report["validation"],
        "popularity": report["popularity"],
        "popularity_hr@10": report["popularity"]["test"]["hr@10"],
        **{
            name: tokenizer[name]
            for name in (
                "collision_rate_before", "collision_rate_after", "utilisation", "perplexity", "reconstruction_cosine"
            )
        },
        "items": report["items"],
        "users": report["users"],
        "interactions": ingest.get("interactions"),
        "policy_version": report["policy_version"],
        "tokenizer_version": report["tokenizer_version"],
        "promotion": {name: said["gate-policy"][name] for name in ("passed", "reason", "challenger", "champion")},
        "seconds": {name: stats["seconds"] for name, stats in said.items()},
        **{
            name: {kind: _count(said[stage].get(told), kind) for kind, stage in ENRICHMENTS.items()}
            for name, told in (("model_calls", "model_calls"), ("reused", "reused"), ("failed", "failed"))
        },
    }  # fmt: skip


def _count(told: Any, kind: str) -> int:
    return int(told[kind.split("_")[0]] if isinstance(told, dict) else told or 0)
