"""The policy bundle: backbone, vocabulary and the SIDs it was trained on, enough to recommend alone."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import ADAPTER_CONFIG_NAME, CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME
from transformers.utils import logging as transformers_logging

from tessera import bundle
from tessera.bundle import Manifest
from tessera.decoding.index import FILE as INDEX
from tessera.decoding.index import CatalogueIndex
from tessera.errors import BundleError, InputError
from tessera.files import read_json
from tessera.policy import distributed
from tessera.policy.backbone import Backbone, with_more_items, wrap
from tessera.schema import Sizes, codes_of, read_table, write_table
from tessera.tokenizer.hybrid import hybrid_table, hybrid_tokens, tokens_of

KIND = "policy"
MODEL, SIDS = "model", "sids.parquet"
_HERE: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
_REFUSED = ("attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation",
            "quantization_config", "transformers_weights")  # fmt: skip
"""Keys of a model's configuration that choose code or weights: implementations may be fetched from a hub."""


@dataclass(frozen=True)
class Policy:
    """A loaded policy bundle."""

    manifest: Manifest
    backbone: Backbone
    sids: pa.Table
    index: CatalogueIndex
    codebook_size: Sizes
    max_history: int

    @property
    def tokenizer_version(self) -> str:
        """Version of the tokenizer bundle whose SIDs this policy writes."""
        return str(self.manifest.parent)


def save_policy(
    folder: Path,
    backbone: Backbone,
    sids: pa.Table,
    *,
    codebook_size: Sizes,
    max_history: int,
    config: dict[str, Any],
    metrics: dict[str, Any],
) -> Manifest:
    """Write a policy bundle; low-rank adapters are merged into the weights first.

    Args:
        codebook_size: of hybrid SIDs, whose last level are the items' own tokens, a size a level.
    """
    model: Any = backbone.model
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()

    def write(staging: Path) -> None:
        model.save_pretrained(staging / MODEL)
        backbone.tokenizer.save_pretrained(staging / MODEL)
        write_table("sids", sids, staging / SIDS)
        index.save(staging / INDEX)

    levels = len(backbone.sid_tokens)
    index = CatalogueIndex.build(codes_of(sids, levels), codebook_size)
    stated = codebook_size if isinstance(codebook_size, int) else list(codebook_size)
    extra = {"codebook_size": stated, "levels": levels, "max_history": max_history}
    parent = tokenizer_version_of(sids)
    return distributed.from_first(
        lambda: bundle.save(folder, KIND, write, config=config, metrics=metrics, parent=parent, extra=extra)
    )


def load_policy(folder: Path, sids: Path | None = None, *, verify: bool = True) -> Policy:
    """Load a policy bundle, with its own SIDs or with a newer table of the same tokenizer.

    A policy of hybrid SIDs keeps its items' tokens; an item that only the newer table has gets a token beside those of
    its prefix mates (tessera.policy.backbone.with_more_items).

    Raises:
        BundleError: a damaged bundle, or `sids` of another tokenizer.
    """
    manifest = bundle.load_manifest(folder, KIND, verify=verify)
    levels, sizes, max_history = _stated(folder, manifest)
    _check_model(folder / MODEL, {name.removeprefix(f"{MODEL}/") for name in manifest.files})
    table = read_table("sids", sids if sids is not None else folder / SIDS)
    found = tokenizer_version_of(table)
    if found != manifest.parent:
        raise BundleError(
            f"policy {manifest.version} was trained on SIDs of tokenizer {manifest.parent}, the index is of tokenizer "
            f"{found}; use the SIDs that belong to it or train a policy on the new ones."
        )
    was_on = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        model = AutoModelForCausalLM.from_pretrained(folder / MODEL, use_safetensors=True, **_HERE).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder / MODEL, **_HERE)
    except Exception as error:  # over JSON of a stranger transformers raises errors of any type
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise BundleError(f"the model in {folder} cannot be loaded ({reason}); train again.") from None
    finally:
        if was_on:
            transformers_logging.enable_progress_bar()
    backbone = wrap(model, tokenizer, levels, sizes)
    if sids is not None and not isinstance(sizes, int):
        known = tokens_of(read_table("sids", folder / SIDS))
        tokens = hybrid_tokens(table, levels - 1, known)
        table = hybrid_table(table, tokens)
        if len(tokens.item_ids) > len(known.item_ids):
            backbone = with_more_items(backbone, tokens.prefix, len(known.item_ids))
            sizes = list(backbone.sizes)
    return Policy(manifest, backbone, table, _index(folder / INDEX, table, levels, sizes), sizes, max_history)


def _stated(folder: Path, manifest: Manifest) -> tuple[int, Sizes, int]:
    """Levels, codes of a level and the longest history, as the manifest says; BundleError where it does not."""
    stated: list[Any] = [manifest.extra.get(name) for name in ("levels", "codebook_size", "max_history")]
    levels, sizes, max_history = stated
    numbers = [levels, max_history, *(sizes if isinstance(sizes, list) else [sizes])]
    if not all(type(number) is int and number > 0 for number in numbers):
        raise BundleError(f"{folder} states levels, codebook_size and max_history as {stated}; train again.")
    return levels, sizes, max_history


def _check_model(folder: Path, listed: set[str]) -> None:
    """Refuse what has a library load code, or weights from elsewhere, although the folder holds data alone.

    An adapter may name a Python module, the configuration may name attention kernels to be fetched and run, and an
    index may name weights of other folders. `save_policy` writes none of these.

    Raises:
        BundleError: the model has one of them, or its JSON cannot be read.
    """
    try:
        config = json.dumps(read_json(folder / CONFIG_NAME))
        shards = read_json(folder / SAFE_WEIGHTS_INDEX_NAME)["weight_map"] if SAFE_WEIGHTS_INDEX_NAME in listed else {}
        elsewhere = set(shards.values()) - listed
    except (InputError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BundleError(f"the model in {folder} cannot be read ({error}); train again.") from None
    found = sorted({name for name in _REFUSED if f'"{name}":' in config} | (listed & {ADAPTER_CONFIG_NAME}) | elsewhere)
    if found:
        raise BundleError(f"the model in {folder} names {found[0]!r}, which no policy has; do not use this bundle.")


def _index(path: Path, table: pa.Table, levels: int, codebook_size: Sizes) -> CatalogueIndex:
    """The bundle's own index; with the items that a newer table has behind the bundle's, or built anew for another."""
    codes = codes_of(table, levels)
    if not path.exists():  # bundles written before the index was part of them; a lost one fails the manifest's check
        return CatalogueIndex.build(codes, codebook_size)
    saved = CatalogueIndex.load(path, codebook_size)
    if np.array_equal(codes[: saved.size], saved.codes.numpy()):
        return saved.extended(codes[saved.size :])
    return CatalogueIndex.build(codes, codebook_size)


def tokenizer_version_of(sids: pa.Table) -> str:
    """The one tokenizer version in a SIDs table.

    Raises:
        BundleError: none, or several.
    """
    versions = sids["tokenizer_version"].unique().to_pylist()
    if len(versions) != 1:
        raise BundleError(
            f"a SIDs table must come from one tokenizer, this one has {len(versions)} "
            f"({', '.join(map(str, versions))}); write it again from one tokenizer bundle."
        )
    return str(versions[0])
