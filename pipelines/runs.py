"""The pipelines by name, as `tessera run` starts them on this machine."""

from pathlib import Path
from typing import Any

from pipelines import local
from pipelines.console import plain
from pipelines.tokenization import tokenization as tokenization_pipeline
from pipelines.training import training as training_pipeline
from tessera.config import Settings
from tessera.files import read_json


def pipeline(name: str) -> Any:
    """The Kubeflow pipeline of a name."""
    return {"training": training_pipeline, "tokenization": tokenization_pipeline}[name]


def training(settings: Settings, out: Path) -> dict[str, Any]:
    """Source to promoted policy; returns what `metrics.json` holds."""
    home = local.home_of(settings)
    plain(f"training on {settings.path or settings.source}; run {out}, platform {home}")
    outputs = local.run(training_pipeline, local.arguments(settings, home, out), settings, out)
    return local.finish(out, outputs)


def tokenization(settings: Settings, out: Path) -> None:
    """Source to gated SIDs."""
    home = local.home_of(settings)
    plain(f"tokenizing {settings.path or settings.source}; run {out}, platform {home}")
    parameters = local.arguments(settings, home, out)
    wanted = {name: parameters[name] for name in tokenization_pipeline.component_spec.inputs}
    outputs = local.run(tokenization_pipeline, wanted, settings, out)
    metrics = read_json(Path(outputs["tokenizer"]) / "manifest.json")["metrics"]
    before, after = metrics["collision_rate_before"], metrics["collision_rate_after"]
    used = ", ".join(f"{share:.2f}" for share in metrics["utilisation"])
    plain(
        f"\n  utilisation by level {used}; collision rate {before:.4f} before, {after:.4f} after resolution\n"
        f"  {out / 'sids.parquet'}   {outputs['seconds']:.0f} s"
    )
