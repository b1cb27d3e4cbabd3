"""The tokenizer stage: embeddings in, tokenizer bundle and SIDs out."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tessera import bundle as bundles
from tessera.config import TokenizerSettings, check_section, to_json
from tessera.errors import BundleError, InputError
from tessera.files import sha256_file, sha256_of
from tessera.schema import read_table, write_table
from tessera.tokenizer import report
from tessera.tokenizer.bundle import Codes, Tokenizer, build, sid_table
from tessera.tokenizer.grounding import Grounding
from tessera.tokenizer.inputs import Inputs, read_inputs
from tessera.tokenizer.rqkmeans import RQKMeans
from tessera.tokenizer.training import CHECKPOINT, Training

# Raised when equal inputs come to give another tokenizer: checkpoints and bundles of before are not reused then.
METHOD = "1"
log = logging.getLogger(__name__)


def run(
    embeddings: Path,
    bundle: Path,
    sids: Path,
    settings: TokenizerSettings,
    seed: int,
    work: Path,
    grounding: Path | None = None,
) -> dict[str, Any]:
    """Fit a tokenizer, write its bundle and the SIDs of all items, and return its metrics.

    A killed fit, run again with the same inputs, continues at the last checkpoint in `work` and ends with the same
    bundle. A bundle that was made from the same inputs, settings and seed is used again. The same seed gives the same
    bundle on the same machine with the same number of threads.

    Args:
        embeddings: for `aligned` with collaborative vectors as images (tessera.tokenizer.collaborative).
        grounding: weights of SIGMA's grounding (tessera.tokenizer.grounding): the grounded vectors are quantized, and
            the bundle keeps the weights for later items.

    Returns:
        items, images, utilisation and perplexity (a list, one number a level) and reconstruction_cosine (between the
        balanced, centred inputs and what `decode` rebuilds) of the quantizer, collision_rate_before and
        collision_rate_after, moved (share of items that collision resolution moved), epochs and curve (a record an
        epoch: epoch, loss, reconstruction, codebook, commitment, alignment, utilisation, which is 0 in the
        warm-up; empty for methods without gradients).

    Raises:
        InputError: settings out of range, unusable embeddings, or more items than SIDs.
    """
    _check(settings)
    inputs = read(embeddings, settings)
    if len(inputs.item_ids) > settings.codebook_size**settings.levels:
        raise InputError(
            f"{len(inputs.item_ids)} items do not fit into {settings.levels} levels of {settings.codebook_size} codes; "
            "raise tokenizer.codebook_size or tokenizer.levels."
        )
    if settings.method == "aligned" and not inputs.has_image.any():
        raise InputError(
            "alignment tokenization quantizes collaborative vectors and these embeddings have none; make them with "
            "tessera.tokenizer.collaborative."
        )
    fingerprint = _fingerprint(inputs, settings, seed, grounding)
    tokenizer, metrics = _finished(bundle, fingerprint)
    if tokenizer is None:
        tokenizer, curve = _fit(inputs, settings, seed, Path(work), fingerprint, grounding)
        codes, moved = tokenizer.assign(inputs)
        metrics = _metrics(tokenizer, inputs, codes, moved, curve)
        tokenizer.save(bundle, metrics, fingerprint)
    else:
        log.info("%s was fitted on the same inputs and is used again.", bundle)
        codes, moved = tokenizer.assign(inputs)
    write_table("sids", sid_table(inputs.item_ids, codes, moved, tokenizer.version), sids)
    (Path(work) / CHECKPOINT).unlink(missing_ok=True)
    return metrics


def read(embeddings: Path, settings: TokenizerSettings) -> Inputs:
    """What a tokenizer with these settings is fitted on; the collaborative vectors of `aligned` are no images."""
    second = settings.use_images or settings.method == "aligned"
    return read_inputs(read_table("embeddings", embeddings), use_images=second, origin=str(embeddings))


def _check(settings: TokenizerSettings) -> None:
    check_section("tokenizer", settings)
    if settings.method == "opq" and settings.latent_dim < settings.levels:
        raise InputError(
            f"tokenizer.latent_dim is {settings.latent_dim}; OPQ cuts it into {settings.levels} levels, "
            "so give it as many."
        )


def _fingerprint(inputs: Inputs, settings: TokenizerSettings, seed: int, grounding: Path | None) -> str:
    """Digest of everything that the fit depends on."""
    arrays = (inputs.text, inputs.image, inputs.has_image)
    shapes = json.dumps([array.shape for array in arrays])
    weights = [sha256_file(grounding)] if grounding else []
    return sha256_of(
        METHOD, to_json(settings), str(seed), shapes, *(array.tobytes() for array in arrays), *inputs.item_ids, *weights
    )


def _finished(folder: Path, fingerprint: str) -> tuple[Tokenizer | None, dict[str, Any]]:
    """The tokenizer in `folder` and its metrics, if it was made from the same inputs."""
    try:
        manifest = bundles.load_manifest(folder, "tokenizer")
        same = manifest.extra.get("fingerprint") == fingerprint
        return (Tokenizer.load(folder), manifest.metrics) if same else (None, {})
    except BundleError:
        return None, {}


def _fit(
    inputs: Inputs, settings: TokenizerSettings, seed: int, work: Path, fingerprint: str, grounding: Path | None
) -> tuple[Tokenizer, list[dict[str, Any]]]:
    grounder = Grounding.load(grounding) if grounding else None
    if grounder is not None:
        inputs = grounder.ground(inputs)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = build(settings, inputs.text.shape[1], inputs.image.shape[1])
    text, image, has_image = (torch.from_numpy(a) for a in (inputs.text, inputs.image, inputs.has_image))
    model.balance.fit(text, image, has_image)
    x, has_image = model.balance(text, image, has_image).to(device), has_image.to(device)
    model.to(device)
    curve: list[dict[str, Any]] = []
    if isinstance(model, RQKMeans):
        model.fit(x, torch.Generator().manual_seed(seed))
    else:
        curve = Training(model, settings, seed, work, fingerprint).fit(x, has_image)
    return Tokenizer(model.cpu(), settings, grounding=grounder), curve


def _metrics(
    tokenizer: Tokenizer, inputs: Inputs, published: Codes, moved: np.ndarray, curve: list[dict[str, Any]]
) -> dict[str, Any]:
    x, _ = tokenizer.represent(inputs.text, inputs.image, inputs.has_image)
    codes = tokenizer.place(inputs)
    target, rebuilt, width = x.numpy(), tokenizer.decode(codes), tokenizer.model.balance.text_dim
    # The image part of an item without an image is nothing to rebuild.
    rebuilt[:, width:] *= inputs.has_image[:, None]
    return {
        "items": len(codes),
        "images": int(inputs.has_image.sum()),
        "utilisation": report.utilisation(codes, tokenizer.settings.codebook_size),
        "perplexity": report.perplexity(codes),
        "collision_rate_before": report.collision_rate(codes),
        "collision_rate_after": report.collision_rate(published),
        "moved": float(moved.mean()),
        "reconstruction_cosine": report.mean_cosine(target, rebuilt),
        "epochs": len(curve),
        "curve": curve,
    }
