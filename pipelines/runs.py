"""The pipelines by name, as `tessera run` starts them on this machine."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pipelines import local
from pipelines.console import plain
from pipelines.precompute import precompute as precompute_pipeline
from pipelines.promotion import promotion as promotion_pipeline
from pipelines.refresh import refresh as refresh_pipeline
from pipelines.settings import shards_of
from pipelines.tokenization import tokenization as tokenization_pipeline
from pipelines.training import training as training_pipeline
from tessera.config import Settings
from tessera.errors import InputError
from tessera.files import read_json

PIPELINES: dict[str, Any] = {
    "training": training_pipeline,
    "tokenization": tokenization_pipeline,
    "refresh": refresh_pipeline,
    "promotion": promotion_pipeline,
    "precompute": precompute_pipeline,
}


def suited(name: str, settings: Settings) -> Settings:
    """The settings that a pipeline runs with: an item that nobody has bought yet is what a refresh is for."""
    if name != "refresh":
        return settings
    return replace(settings, catalogue=replace(settings.catalogue, k_core=0))


def parameters(
    name: str, settings: Settings, home: Path, out: Path, more: Mapping[str, str], source_digest: str | None = None
) -> dict[str, Any]:
    """A pipeline's parameters: what follows from the settings, and what is given beside them.

    Args:
        settings: as `suited` to the pipeline.
        more: parameters that no setting gives, as text.
        source_digest: as in `local.arguments`.

    Raises:
        InputError: the pipeline has no such parameter, or it is of another type.
    """
    wanted = PIPELINES[name].component_spec.inputs
    known = local.arguments(settings, home, out, source_digest)
    given = {key: value for key, value in known.items() if key in wanted}
    return given | {key: _typed(key, text, wanted, given) for key, text in more.items()}


def run(name: str, settings: Settings, out: Path, more: Mapping[str, str] = MappingProxyType({})) -> None:
    """Run a pipeline on this machine and say what came out."""
    if name == "training":
        if more:
            raise InputError("training has no free parameter; its settings say everything (`tessera run --help`).")
        training(settings, out)
        return
    settings, home = suited(name, settings), local.home_of(settings)
    plain(f"{name} on {settings.path or settings.source}; run {out}, platform {home}")
    given = parameters(name, settings, home, out, more)
    local.claim(settings, home)
    if name == "precompute":
        given["shards"] = shards_of(1)
    outputs = local.run(PIPELINES[name], given, settings, out, f"settings-{name}.json")
    if name == "tokenization":
        _tell_sids(out, Path(outputs["tokenizer"]))
    plain(f"  {out / 'run.log'}   {outputs['seconds']:.0f} s")


def training(settings: Settings, out: Path) -> dict[str, Any]:
    """Source to promoted policy; returns what `metrics.json` holds."""
    home = local.home_of(settings)
    plain(f"training on {settings.path or settings.source}; run {out}, platform {home}")
    given = local.arguments(settings, home, out)
    local.claim(settings, home)
    outputs = local.run(training_pipeline, given, settings, out)
    return local.finish(out, outputs)


def _tell_sids(out: Path, tokenizer: Path) -> None:
    metrics = read_json(tokenizer / "manifest.json")["metrics"]
    before, after = metrics["collision_rate_before"], metrics["collision_rate_after"]
    used = ", ".join(f"{share:.2f}" for share in metrics["utilisation"])
    plain(
        f"\n  utilisation by level {used}; collision rate {before:.4f} before, {after:.4f} after resolution\n"
        f"  {out / 'sids.parquet'}"
    )


def _typed(name: str, text: str, wanted: Mapping[str, Any], given: Mapping[str, Any]) -> Any:
    """A parameter's value from its text; JSON where it is not text."""
    free = sorted(set(wanted) - set(given))
    if name not in free:
        raise InputError(f"the pipeline has no free parameter '{name}'; it has {', '.join(free) or 'none'}.")
    kind = wanted[name].type
    if kind == "String":
        return text
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise InputError(f"parameter {name} is '{text}', which is no {kind.lower()}; say it as JSON would.") from None
