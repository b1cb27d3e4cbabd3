"""The training stage: from SIDs and histories to a policy bundle."""

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from tessera import bundle as bundles
from tessera.config import EvaluationSettings, PolicySettings, to_json
from tessera.decoding.recommender import Recommender
from tessera.enrichment.weights import identify
from tessera.errors import BundleError, InputError
from tessera.evaluation.data import Split, read_split
from tessera.evaluation.metrics import ranking_metrics, ranks
from tessera.files import sha256_file, sha256_of
from tessera.policy import backbone as backbones
from tessera.policy import distributed, sft
from tessera.policy.bundle import KIND, save_policy, tokenizer_version_of
from tessera.policy.materials import read_materials
from tessera.policy.mixture import Mixture, tasks_of
from tessera.policy.task_ranking import task_metrics
from tessera.policy.tasks import held_out
from tessera.policy.templates import load_templates, template_file
from tessera.schema import Sizes, read_table
from tessera.tokenizer.bundle import Tokenizer
from tessera.tokenizer.hybrid import hybrid_table, hybrid_tokens
from tessera.tokenizer.inputs import read_inputs

K = 20
TASK_CASES = 256  # of each task in a validation during training; a hit rate's standard error is 0.03 at most


def run(
    items: Path,
    splits: Path,
    sids: Path,
    tokenizer: Path,
    bundle: Path,
    settings: PolicySettings,
    evaluation: EvaluationSettings,
    seed: int,
    work: Path,
    captions: Path | None = None,
    intents: Path | None = None,
    item_vectors: Path | None = None,
) -> dict[str, Any]:
    """Train a policy and write its bundle; a killed run goes on from its last checkpoint in `work`.

    Args:
        captions, intents: what tasks beside "next" (settings.tasks) are written from, as far as they need it; their
            losses and hit rates then join the curve as "loss/<task>" and "hr@10/<task>".
        item_vectors: an `embeddings` table from which the items' own tokens start (settings.hybrid_prefix): with its
            `text` vectors, or with what a tokenizer of the grounded space makes of them; without it at random.

    Returns:
        metrics: the best epoch, its validation numbers on the sampled users, the curve, and seconds.

    Raises:
        BundleError: no tokenizer bundle, or `sids` are not of it.
        InputError: a missing or unusable table, a backbone that cannot be loaded, or tasks that are unknown or that
            these tables hold nothing for.
    """
    started = time.monotonic()
    manifest = bundles.load_manifest(tokenizer, "tokenizer")
    told = [path for path in (template_file(), captions, intents) if path] if settings.tasks != "next" else []
    told += [item_vectors] if item_vectors else []
    fingerprint = _fingerprint([items, splits, sids, tokenizer / bundles.MANIFEST, *told], settings, seed)
    if (finished := distributed.from_first(lambda: _finished(bundle, fingerprint))) is not None:
        return finished
    table = read_table("sids", sids)
    if tokenizer_version_of(table) != manifest.version:
        raise BundleError(
            f"{sids} was written by tokenizer {tokenizer_version_of(table)}, but {tokenizer} is {manifest.version}; "
            "use the SIDs and the bundle of one fit."
        )
    codebook = int(manifest.config["codebook_size"])
    sizes: Sizes = codebook
    vectors = None
    if settings.hybrid_prefix:
        tokens = hybrid_tokens(table, settings.hybrid_prefix)
        table = hybrid_table(table, tokens)
        sizes = [codebook] * settings.hybrid_prefix + [len(table)]
        vectors = _vectors(item_vectors, tokens.item_ids, tokenizer) if item_vectors else None
    levels = len(table["codes"][0].as_py())
    texts = _texts(read_table("items", items), settings, captions, intents)
    backbone = backbones.build(settings, texts, levels, sizes, seed, vectors)
    nn.Module.to(backbone.model, "cuda" if torch.cuda.is_available() else "cpu")
    recommender = Recommender(backbone, table, sizes, settings.max_history)
    split = read_split(splits, recommender.item_ids)
    histories = [history for history in split.train if len(history)]
    mixture = None
    if settings.tasks != "next":
        materials = read_materials(
            backbone, recommender.item_ids, recommender.codes, histories, settings, items, captions, intents
        )
        mixture = Mixture(histories, materials, settings)
    progress = sft.train(
        backbone,
        histories,
        recommender.codes,
        _validator(recommender, split, settings, evaluation, seed, mixture),
        settings,
        seed,
        work,
        fingerprint,
        mixture,
    )
    metrics = {
        "best_epoch": progress.best_epoch,
        "epochs": progress.epoch,
        "curve": progress.curve,
        "parameters": sum(p.numel() for p in backbone.model.parameters()),
        "fingerprint": fingerprint,
    }
    save_policy(
        bundle,
        backbone,
        table,
        codebook_size=sizes,
        max_history=settings.max_history,
        config=dataclasses.asdict(settings) | {"seed": seed},
        metrics=metrics,
    )
    return metrics | {"seconds": time.monotonic() - started}


def _validator(
    recommender: Recommender,
    split: Split,
    settings: PolicySettings,
    evaluation: EvaluationSettings,
    seed: int,
    mixture: Mixture | None,
) -> Callable[[], dict[str, float]]:
    histories, targets = split.validation_cases()
    chosen = np.sort(np.random.default_rng(seed).permutation(len(targets))[: settings.validation_users])
    histories, targets = [histories[i] for i in chosen], targets[chosen]
    k = min(K, len(recommender.item_ids))
    asked = held_out(histories, targets, settings.max_history)

    def validate() -> dict[str, float]:
        rows = recommender.rank_all(histories, k, k, evaluation.batch_size)
        measured = ranking_metrics(ranks(rows, targets), (5, 10))
        if mixture is not None:
            of_task = task_metrics(
                recommender, mixture.tasks, mixture.materials, asked,
                limit=TASK_CASES, beams=k, batch_size=evaluation.batch_size, seed=seed,
            )
            measured |= {f"hr@10/{task}": found["hr@10"] for task, found in of_task.items()}
        return measured

    return validate


def _texts(items: pa.Table, settings: PolicySettings, captions: Path | None, intents: Path | None) -> list[str]:
    """What `tiny` learns its vocabulary from; with tasks, also what else they say and the words of their templates."""
    columns = items["title"].to_pylist(), items["description"].to_pylist()
    texts = [f"{title}. {text}" for title, text in zip(*columns, strict=True)]
    if settings.tasks != "next":
        templates = load_templates()
        words = [" ".join(templates[task].words) for task in tasks_of(settings.tasks)]
        texts += words * len(items)  # as often as titles, so that the words become whole pieces
        texts += [text for text in read_table("captions", captions)["caption"].to_pylist() if text] if captions else []
        mined = read_table("intents", intents)["descriptors"].to_pylist() if intents else []
        texts += [one["text"] for descriptors in mined for one in descriptors or ()]
    return texts


def _vectors(embeddings: Path, item_ids: list[str], tokenizer: Path) -> np.ndarray:
    """[items, D] text vectors, grounded if the tokenizer grounds, in the order of the ids."""
    reader = Tokenizer.load(tokenizer)
    inputs = read_inputs(read_table("embeddings", embeddings), use_images=reader.image_dim > 0, origin=str(embeddings))
    place = {item: row for row, item in enumerate(inputs.item_ids)}
    if missing := [item for item in item_ids if item not in place]:
        raise InputError(f"{embeddings}: item '{missing[0]}' has no vector to start its token from; embed it first.")
    return reader.ground(inputs).text[[place[item] for item in item_ids]]


def _fingerprint(files: list[Path], settings: PolicySettings, seed: int) -> str:
    # A pretrained model may change under its name, and adapters of one are no adapters of another.
    weights = [] if settings.backbone == "tiny" else [identify(settings.backbone)[0]]
    return sha256_of(*map(sha256_file, files), to_json(settings), str(seed), *weights)


def _finished(bundle: Path, fingerprint: str) -> dict[str, Any] | None:
    """Metrics of a bundle that an earlier run made from the same inputs."""
    try:
        manifest = bundles.load_manifest(bundle, KIND)
    except BundleError:
        return None
    metrics: dict[str, Any] = json.loads(json.dumps(manifest.metrics))
    return metrics | {"seconds": 0.0} if metrics.get("fingerprint") == fingerprint else None
