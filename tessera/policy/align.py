"""The alignment stages: a supervised policy bundle becomes one that GRPO or S-DPO has trained further."""

import dataclasses
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tessera import bundle as bundles
from tessera.bundle import Manifest
from tessera.config import EvaluationSettings, GrpoSettings, PolicySettings, PreferenceSettings, Settings, to_json
from tessera.decoding.recommender import Recommender
from tessera.errors import BundleError, InputError
from tessera.evaluation.data import read_split
from tessera.evaluation.metrics import ranking_metrics, ranks
from tessera.files import sha256_file, sha256_of
from tessera.policy import distributed, grpo, labels, sdpo
from tessera.policy.backbone import with_lora
from tessera.policy.bundle import KIND, load_policy, save_policy
from tessera.policy.cases import NextItemCases, next_item_cases
from tessera.policy.checkpoints import Progress
from tessera.policy.rewards import reward_function
from tessera.schema import read_table
from tessera.tokenizer.collaborative import lightgcn

K = 20
AlignSettings = GrpoSettings | PreferenceSettings


@dataclass(frozen=True)
class Start:
    """A supervised policy, what it can be trained on, and how it is measured."""

    manifest: Manifest
    recommender: Recommender
    cases: NextItemCases
    validate: Callable[[], dict[str, float]]


def run(
    policy: Path, splits: Path, quality: Path, intents: Path, bundle: Path, settings: Settings, work: Path
) -> dict[str, Any]:
    """What `settings.alignment` asks for: `run_grpo` or `run_preference`, with the tables that a bonus may need.

    The collaborative reward is paid by LightGCN's vectors of the training purchases.
    """
    if settings.alignment == "grpo":
        paid_by_likeness = settings.grpo.reward == "collaborative"
        return run_grpo(
            policy, splits, bundle, settings.grpo, settings.evaluation, settings.seed, work, quality, intents,
            _collaborative(policy, splits, settings.seed) if paid_by_likeness else None,
        )
    if settings.alignment == "preference":
        return run_preference(
            policy, splits, bundle, settings.preference, settings.evaluation, settings.seed, work
        )
    raise InputError("alignment is none: there is nothing to train further; choose grpo or preference.")


def run_grpo(
    policy: Path,
    splits: Path,
    bundle: Path,
    settings: GrpoSettings,
    evaluation: EvaluationSettings,
    seed: int,
    work: Path,
    quality: Path | None = None,
    intents: Path | None = None,
    vectors: dict[str, np.ndarray] | None = None,
) -> dict[str, Any]:
    """Train a policy bundle with GRPO and write the new bundle; a killed run goes on from `work`.

    Args:
        policy: bundle of supervised training; bundle: the folder to write; both are of one tokenizer.
        quality, intents: tables that a bonus is paid by: `quality` for "quality" and "uniform", both for "random",
            `intents` for "heuristic".
        vectors: collaborative embedding [D] of each item id, for the collaborative reward; an item without has none.

    Returns:
        metrics: the best step (0: the start), the curve of rewards, KL and validation numbers, and seconds.

    Raises:
        BundleError: no policy bundle.
        InputError: a table that is missing, or not given though the bonus needs it; items without a SID.
    """

    def train(start: Start, fingerprint: str) -> Progress:
        recommender = start.recommender
        device = recommender.backbone.model.device
        scores = _scores(settings, recommender.item_ids, quality, intents, seed)
        reward = reward_function(
            settings, recommender.index.codes.long(),
            torch.from_numpy(scores).to(device) if scores is not None else None,
            _matrix(vectors, recommender.item_ids).to(device) if vectors else None,
        )
        return grpo.train(
            recommender.backbone, recommender.index, start.cases, reward, start.validate, settings, seed, work,
            fingerprint,
        )

    told = [_digest(vectors)] if vectors else []
    files = [path for path in (quality, intents) if path is not None]
    return _run(policy, splits, bundle, settings, evaluation, seed, files, told, train)


def run_preference(
    policy: Path,
    splits: Path,
    bundle: Path,
    settings: PreferenceSettings,
    evaluation: EvaluationSettings,
    seed: int,
    work: Path,
) -> dict[str, Any]:
    """Train a policy bundle with S-DPO and write the new bundle; all as `run_grpo`."""

    def train(start: Start, fingerprint: str) -> Progress:
        recommender = start.recommender
        if recommender.index.size < 2:
            raise InputError(f"{policy} knows one item alone; S-DPO needs others that the one bought is preferred to.")
        return sdpo.train(
            recommender.backbone, recommender.index, start.cases, start.validate, settings, seed, work, fingerprint
        )

    return _run(policy, splits, bundle, settings, evaluation, seed, [], [], train)


def _run(
    policy: Path,
    splits: Path,
    bundle: Path,
    settings: AlignSettings,
    evaluation: EvaluationSettings,
    seed: int,
    files: list[Path],
    told: list[str],
    train: Callable[[Start, str], Progress],
) -> dict[str, Any]:
    started = time.monotonic()
    inputs = [policy / bundles.MANIFEST, splits, *files]
    start_version = bundles.load_manifest(policy, KIND).version
    for path in inputs[1:]:
        if not path.exists():
            raise InputError(f"{path} does not exist; check the path or run the stage that writes it.")
    fingerprint = sha256_of(*map(sha256_file, inputs), to_json(settings), to_json(evaluation), str(seed), *told)
    if (finished := distributed.from_first(lambda: _finished(bundle, fingerprint))) is not None:
        return finished
    start = _start(policy, splits, evaluation, seed)
    progress = train(start, fingerprint)
    metrics = {
        "best_step": progress.best_epoch, "steps": progress.epoch, "curve": progress.curve, "fingerprint": fingerprint,
    }
    name = "grpo" if isinstance(settings, GrpoSettings) else "preference"
    extra = start.manifest.extra
    save_policy(
        bundle,
        start.recommender.backbone,
        read_table("sids", policy / "sids.parquet"),
        codebook_size=extra["codebook_size"],
        max_history=extra["max_history"],
        config=start.manifest.config | {name: dataclasses.asdict(settings) | {"seed": seed}, "start": start_version},
        metrics=metrics,
    )
    return metrics | {"seconds": time.monotonic() - started}


def _start(policy: Path, splits: Path, evaluation: EvaluationSettings, seed: int) -> Start:
    loaded = load_policy(policy)
    trained = _policy_settings(loaded.manifest.config)
    nn.Module.to(loaded.backbone.model, "cuda" if torch.cuda.is_available() else "cpu")
    backbone = with_lora(loaded.backbone, trained) if trained.adaptation == "lora" else loaded.backbone
    recommender = Recommender(
        backbone, loaded.sids, loaded.codebook_size, loaded.max_history, index=loaded.index
    )
    split = read_split(splits, recommender.item_ids)
    sid_tokens = backbone.sid_tokens.numpy(force=True)
    cases = next_item_cases(split.train, recommender.codes, sid_tokens, backbone.bos, loaded.max_history)
    if not len(cases.targets):
        raise InputError(f"{splits}: no training history has two purchases; there is no next item to train further on.")
    histories, targets = split.validation_cases()
    chosen = np.sort(np.random.default_rng(seed).permutation(len(targets))[: trained.validation_users])
    asked, wanted = [histories[i] for i in chosen], targets[chosen]
    k = min(K, len(recommender.item_ids))

    def validate() -> dict[str, float]:
        rows = recommender.rank_all(asked, k, k, evaluation.batch_size)
        return ranking_metrics(ranks(rows, wanted), (5, 10))

    return Start(loaded.manifest, recommender, cases, validate)


def _policy_settings(config: dict[str, Any]) -> PolicySettings:
    """The settings that a policy was trained with, as far as this version has them."""
    known = {field.name for field in dataclasses.fields(PolicySettings)}
    return PolicySettings(**{name: value for name, value in config.items() if name in known})


def _collaborative(policy: Path, splits: Path, seed: int) -> dict[str, np.ndarray]:
    """Collaborative vectors by item id, of the items that were bought in training."""
    item_ids = read_table("sids", policy / "sids.parquet")["item_id"].to_pylist()
    histories = [history.tolist() for history in read_split(splits, item_ids).train]
    vectors, bought, _ = lightgcn(histories, len(item_ids), seed)
    return {item: row for item, row, seen in zip(item_ids, vectors, bought, strict=True) if seen}


def _scores(
    settings: GrpoSettings, item_ids: list[str], quality: Path | None, intents: Path | None, seed: int
) -> np.ndarray | None:
    """What the bonus pays for each item."""

    def table(name: str, path: Path | None) -> Any:
        if path is None:
            raise InputError(f"grpo.bonus is {settings.bonus}, which is paid by the '{name}' table; give it.")
        return read_table(name, path)

    if settings.bonus == "none":
        return None
    if settings.bonus == "quality":
        return labels.quality(item_ids, table("quality", quality))
    if settings.bonus == "uniform":
        return labels.uniform(item_ids, table("quality", quality))
    if settings.bonus == "random":
        return labels.random(item_ids, table("quality", quality), table("intents", intents), seed)
    return labels.heuristic(item_ids, table("intents", intents))


def _matrix(vectors: dict[str, np.ndarray], item_ids: list[str]) -> Tensor:
    """[items, D], zeros for an item without."""
    missing = np.zeros_like(next(iter(vectors.values())))
    return torch.from_numpy(np.stack([vectors.get(item, missing) for item in item_ids]))


def _digest(vectors: dict[str, np.ndarray]) -> str:
    return sha256_of(*(part for item in sorted(vectors) for part in (item, vectors[item].tobytes())))


def _finished(bundle: Path, fingerprint: str) -> dict[str, Any] | None:
    """Metrics of a bundle that an earlier run made from the same inputs."""
    try:
        metrics: dict[str, Any] = json.loads(json.dumps(bundles.load_manifest(bundle, KIND).metrics))
    except BundleError:
        return None
    return metrics | {"seconds": 0.0} if metrics.get("fingerprint") == fingerprint else None
