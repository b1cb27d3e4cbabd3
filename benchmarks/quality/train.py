"""From a system and a seed to a trained policy; what two systems have in common is trained once."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.quality.store import key_of
from benchmarks.quality.systems import Budget, System
from benchmarks.quality.world import World
from tessera.bundle import load_manifest
from tessera.config import GrpoSettings, PolicySettings, PreferenceSettings, Settings, TokenizerSettings, to_json
from tessera.enrichment.branches import branch_settings
from tessera.files import read_json, write_json
from tessera.policy import align
from tessera.policy import fit as policy_fit
from tessera.policy.mixture import TMT_GROUPS, tasks_of
from tessera.tokenizer import fit as tokenizer_fit

SFT = ("enrichment", "tokenizer", "policy")


@dataclass(frozen=True)
class Plan:
    """A system's settings under a budget; `sft` and `whole` are the keys of its policies before and after alignment."""

    system: System
    seed: int
    tokenizer: TokenizerSettings
    policy: PolicySettings
    align: GrpoSettings | PreferenceSettings | None
    sft: str
    whole: str


def plan(system: System, settings: Settings, budget: Budget, world: World, seed: int) -> Plan:
    """What training this system means."""
    tokenizer = branch_settings(settings, system.branch).tokenizer
    tokenizer = replace(tokenizer, **{**budget.tokenizer, **system.tokenizer})
    policy = replace(settings.policy, **{**budget.policy, **system.policy})
    if not world.pictured and policy.tasks != "next":
        # Tasks about what photos show have no example in a catalogue without any.
        told_in_words = (task for task in tasks_of(policy.tasks) if task not in TMT_GROUPS["visual"])
        policy = replace(policy, tasks=",".join(told_in_words))
    sections = [json.loads(to_json(one)) for one in (tokenizer, policy, settings.evaluation, settings.enrichment)]
    told = [world.digest, system.branch, system.words, system.grounded, seed, *sections]
    parts = (*SFT, "grounding") if system.grounded else SFT
    sft = key_of(told, *parts)
    if not system.align:
        return Plan(system, seed, tokenizer, policy, None, sft, sft)
    section: Any = settings.grpo if system.align == "grpo" else settings.preference
    changes = {name: value for name, value in {**budget.align, **system.tuned}.items() if hasattr(section, name)}
    chosen = replace(section, **changes)
    whole = key_of([*told, system.align, json.loads(to_json(chosen))], *parts, "align")
    return Plan(system, seed, tokenizer, policy, chosen, sft, whole)


def train(plan: Plan, settings: Settings, world: World) -> tuple[Path, dict[str, float]]:
    """The system's policy bundle, and the seconds that each of its stages took when it ran."""
    bundle, seconds = _supervised(plan, settings, world)
    if plan.align is None:
        return bundle, seconds
    kind, branch, folder = plan.system.align, plan.system.branch, _folder(plan.whole, world)
    changes: dict[str, Any] = {"alignment": kind, kind: plan.align, "seed": plan.seed}
    metrics = align.run(
        bundle, world.splits, world.quality(branch), world.intents(branch), folder / "policy",
        replace(settings, **changes), folder / "training",
    )
    return folder / "policy", seconds | {"align": _clocked(folder, "align", metrics["seconds"])}


def align_gain(plan: Plan, world: World) -> dict[str, Any]:
    """Validation of the SFT start, and of the step that alignment kept."""
    metrics = load_manifest(_folder(plan.whole, world) / "policy", "policy").metrics
    curve, step = metrics["curve"], metrics["best_step"]
    kept = next(one for one in curve if one["epoch"] == step)
    shown = ("hr@5", "ndcg@5", "hr@10", "ndcg@10")
    return {"step": step, **{k: {m: one[m] for m in shown} for k, one in (("start", curve[0]), ("kept", kept))}}


def _supervised(plan: Plan, settings: Settings, world: World) -> tuple[Path, dict[str, float]]:
    system, folder = plan.system, _folder(plan.sft, world)
    branch, words = system.branch, system.words
    chosen = replace(
        settings, tokenizer=plan.tokenizer, space="grounded" if system.grounded else "content", seed=plan.seed
    )
    related, weights = world.related(branch, words, chosen)
    tokenizer, sids = folder / "tokenizer", folder / "sids.parquet"
    tokenizer_fit.run(related, tokenizer, sids, plan.tokenizer, plan.seed, folder / "fitting", weights)
    metrics = policy_fit.run(
        world.items, world.splits, sids, tokenizer, folder / "policy", plan.policy, settings.evaluation, plan.seed,
        folder / "training", world.captions(), world.intents(branch),
        world.embeddings(branch, words) if plan.policy.hybrid_prefix else None,
    )
    return folder / "policy", {"policy": _clocked(folder, "policy", metrics["seconds"])}


def _folder(key: str, world: World) -> Path:
    return world.folder / "policies" / key


def _clocked(folder: Path, stage: str, seconds: float) -> float:
    """Seconds of a stage, also when it was done before and is only looked up now."""
    path = folder / f"{stage}.seconds.json"
    if seconds or not path.exists():
        write_json(path, seconds)
    return float(read_json(path))
