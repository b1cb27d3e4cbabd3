"""The tokenizer as a bundle: encode, decode and append with frozen codebooks."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tessera import bundle
from tessera.config import TokenizerSettings
from tessera.errors import BundleError, InputError
from tessera.schema import conform
from tessera.tokenizer.aligned import AlignedRQVAE
from tessera.tokenizer.balanced import BalancedRQKMeans
from tessera.tokenizer.collisions import resolve
from tessera.tokenizer.grounding import Grounding
from tessera.tokenizer.inputs import Inputs, read_inputs
from tessera.tokenizer.kmeans import lookup, quantize
from tessera.tokenizer.opq import OPQ
from tessera.tokenizer.rqkmeans import RQKMeans
from tessera.tokenizer.rqkmeans_plus import RQKMeansPlus
from tessera.tokenizer.rqvae import RQVAE

Codes = NDArray[np.int64]
WEIGHTS, GROUNDING = "tokenizer.safetensors", "grounding.safetensors"
_ROWS = 4096  # items encoded at a time


def build(settings: TokenizerSettings, text_dim: int, image_dim: int) -> RQVAE | RQKMeans:
    """An untrained quantizer; image_dim 0 is text only."""
    s = settings
    clustered: dict[str, type[RQKMeans]] = {"rqkmeans": RQKMeans, "rqkmeans_balanced": BalancedRQKMeans, "opq": OPQ}
    if s.method in clustered:
        return clustered[s.method](text_dim, image_dim, s.latent_dim, s.levels, s.codebook_size)
    learned = {"rqvae": RQVAE, "rqkmeans_plus": RQKMeansPlus, "aligned": AlignedRQVAE}
    return learned[s.method](s, text_dim, image_dim)


class Tokenizer:
    """A frozen quantizer between item embeddings and semantic IDs.

    Attributes:
        settings: what it was fitted with; levels L and codebook_size K are there.
        grounding: SIGMA's, which embeddings go through before they are quantized; None where they do not.
        text_dim, image_dim: widths of the embeddings that a new item brings; image_dim is 0 for a tokenizer that reads
            none of its photo: a text-only one, or `aligned`, to which a new item is its text until it is bought.
        version: digest of the bundle, "" before it is saved.
    """

    def __init__(
        self,
        model: RQVAE | RQKMeans,
        settings: TokenizerSettings,
        version: str = "",
        grounding: Grounding | None = None,
    ) -> None:
        self.model, self.settings, self.version = model.eval().requires_grad_(False), settings, version
        self.grounding = grounding
        self._read = (model if grounding is None else grounding).balance
        self.text_dim = self._read.text_dim
        self.image_dim = 0 if settings.method == "aligned" else self._read.image_dim

    def save(self, folder: str | Path, metrics: dict[str, Any], fingerprint: str) -> bundle.Manifest:
        """Write the bundle and take its version; `fingerprint` names inputs and settings of the fit."""
        tensors = {name: value.detach().cpu().contiguous() for name, value in self.model.state_dict().items()}
        config = {**dataclasses.asdict(self.settings), "text_width": self.text_dim, "image_width": self.image_dim}

        def write(path: Path) -> None:
            save_file(tensors, path / WEIGHTS)
            if self.grounding is not None:
                self.grounding.save(path / GROUNDING)

        manifest = bundle.save(
            folder, "tokenizer", write, config=config, metrics=metrics, extra={"fingerprint": fingerprint}
        )
        self.version = manifest.version
        return manifest

    @classmethod
    def load(cls, folder: str | Path) -> "Tokenizer":
        """Read a tokenizer bundle.

        Raises:
            BundleError: truncated, altered, of another kind or schema version, or not a tokenizer of this release.
        """
        manifest = bundle.load_manifest(folder, "tokenizer")
        try:
            config = {name: value for name, value in manifest.config.items() if not name.endswith("_width")}
            settings = TokenizerSettings(**config)
            weights = load_file(Path(folder) / WEIGHTS)
            model = build(settings, *(len(weights[f"balance.{kind}_mean"]) for kind in ("text", "image")))
            model.load_state_dict(weights)
            grounding = Grounding.load(Path(folder) / GROUNDING) if GROUNDING in manifest.files else None
        except (InputError, KeyError, TypeError, ValueError, RuntimeError, OSError, SafetensorError) as error:
            reason = str(error).splitlines()[0]
            raise BundleError(f"{folder} does not hold a tokenizer of this release ({reason}); fit it again.") from None
        return cls(model, settings, manifest.version, grounding)

    def ground(self, inputs: Inputs) -> Inputs:
        """What is quantized of items: their grounded vectors in place of text and image, or the inputs as they are."""
        return inputs if self.grounding is None else self.grounding.ground(inputs)

    @torch.no_grad()
    def represent(
        self, text: NDArray, image: NDArray | None = None, has_image: NDArray | None = None
    ) -> tuple[Tensor, Tensor]:
        """Balanced inputs [N, Dt + Di] (what `decode` rebuilds) and latents [N, D] of embeddings.

        Args:
            text: [N, Dt]; image: [N, Di], None when no item has one (`aligned` takes collaborative vectors here);
                has_image: [N] bool, None means all of `image`. A grounded tokenizer grounds them first, and the
                balanced inputs are [N, D_grounded] then.

        Raises:
            BundleError: embeddings of another width than the tokenizer was fitted on.
            InputError: NaN or infinity in an embedding.
        """
        text = np.asarray(text, np.float32)
        width = self._read.image_dim
        if text.ndim != 2 or text.shape[1] != self.text_dim:
            raise self._misfit("text", text.shape[-1], self.text_dim)
        absent = image is None or not width or np.shape(image)[-1] == 0
        pixels = np.zeros((len(text), width), np.float32) if absent else np.asarray(image, np.float32)
        if pixels.shape != (len(text), width):
            raise self._misfit("image", pixels.shape[-1], width)
        if not (np.isfinite(text).all() and np.isfinite(pixels).all()):
            raise InputError("an embedding holds NaN or infinity; embed the item again.")
        mask = np.full(len(text), not absent) if absent or has_image is None else np.asarray(has_image, bool)
        inputs = self.ground(Inputs([], text, pixels, mask))
        text, pixels, mask = inputs.text, inputs.image, inputs.has_image
        device = self.model.codebooks.device
        x, z = [], []
        for start in range(0, max(len(text), 1), _ROWS):
            part = slice(start, start + _ROWS)
            seen = torch.from_numpy(mask[part]).to(device)
            x.append(self.model.balance(_tensor(text[part], device), _tensor(pixels[part], device), seen))
            z.append(self.model.latents(x[-1], seen))
        return torch.cat(x), torch.cat(z)

    def _misfit(self, kind: str, found: int, expected: int) -> BundleError:
        return BundleError(
            f"the {kind} embeddings are {found} wide, but tokenizer {self.version} was fitted on {expected}; "
            "use the encoder that it was fitted with, or fit a new tokenizer."
        )

    def encode(self, text: NDArray, image: NDArray | None = None, has_image: NDArray | None = None) -> Codes:
        """Codes [N, L] of embeddings (arguments and errors as `represent`), before collisions are resolved."""
        return quantize(self.represent(text, image, has_image)[1], self.model.codebooks)[0].cpu().numpy()

    @torch.no_grad()
    def decode(self, codes: NDArray[np.integer]) -> NDArray[np.float32]:
        """Codes [N, L] -> the rebuilt balanced pair [text; image] [N, Dt + Di]: centred, text of unit length.

        Raises:
            InputError: another number of levels, or a code out of range.
        """
        chosen = _check_codes(codes, self.settings, "the codes")
        quantized = lookup(torch.from_numpy(chosen).to(self.model.codebooks.device), self.model.codebooks)
        return self.model.reconstruct(quantized).cpu().numpy()

    def place(self, inputs: Inputs) -> Codes:
        """Codes [N, L] of a whole catalogue before collisions are resolved; like `encode` but for bounded clusters."""
        _, latents = self.represent(inputs.text, inputs.image, inputs.has_image)
        return self.model.place(latents).cpu().numpy()

    def assign(self, inputs: Inputs, taken: Codes | None = None) -> tuple[Codes, NDArray[np.bool_]]:
        """SIDs [N, L] of items, all different and none of `taken` [M, L], and which moved (`collisions.resolve`).

        Without `taken` the items are a whole catalogue.
        """
        _, latents = self.represent(inputs.text, inputs.image, inputs.has_image)
        chosen = self.model.place(latents) if taken is None else quantize(latents, self.model.codebooks)[0]
        codes = chosen.cpu().numpy()
        return resolve(inputs.item_ids, codes, latents.cpu().numpy(), self.model.codebooks.cpu().numpy(), taken)

    def append(self, embeddings: pa.Table, published: pa.Table) -> pa.Table:
        """SIDs of new items beside published ones, none of which moves.

        Args:
            embeddings: an `embeddings` table of the new items only, as the embedding stage writes it, also for a
                grounded tokenizer and for `aligned`; published: the `sids` table in use.

        Returns:
            A `sids` table of the new items only.

        Raises:
            InputError: an item is published already, or no SID is free.
            BundleError: `published` is of another tokenizer, or the embeddings are of another width.
        """
        published = conform("sids", published, "the published SIDs")
        inputs = read_inputs(embeddings, use_images=self.image_dim > 0)
        others = sorted(set(published["tokenizer_version"].to_pylist()) - {self.version})
        if others:
            raise BundleError(
                f"the published SIDs are of tokenizer {', '.join(others[:3])}, this is {self.version}; "
                "load the tokenizer that they are of."
            )
        known = sorted(set(inputs.item_ids) & set(published["item_id"].to_pylist()))
        if known:
            raise InputError(
                f"{len(known)} of {len(inputs.item_ids)} items have a published SID already ({', '.join(known[:3])}"
                f"{', ...' if len(known) > 3 else ''}); give only new items: a published SID never moves."
            )
        taken = _check_codes(published["codes"].to_pylist(), self.settings, "the published SIDs")
        codes, moved = self.assign(inputs, taken)
        return sid_table(inputs.item_ids, codes, moved, self.version)


def _check_codes(codes: Any, settings: TokenizerSettings, origin: str) -> Codes:
    try:
        array = np.asarray(codes, dtype=np.int64).reshape(len(codes), settings.levels)
    except (TypeError, ValueError):
        raise InputError(f"{origin} do not have {settings.levels} levels each; use this tokenizer's.") from None
    if array.size and (array.min() < 0 or array.max() >= settings.codebook_size):
        raise InputError(f"{origin} hold a code outside 0 to {settings.codebook_size - 1}; use this tokenizer's.")
    return array


def _tensor(array: NDArray, device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)


def sid_table(item_ids: list[str], codes: Codes, moved: NDArray[np.bool_], version: str) -> pa.Table:
    """A `sids` table; codes [N, L], moved [N]."""
    table = pa.table({
        "item_id": pa.array(item_ids, pa.string()),
        "sid": pa.array(["_".join(map(str, row)) for row in codes.tolist()], pa.string()),
        "codes": pa.array(codes.tolist(), pa.list_(pa.int32())),
        "moved": moved,
        "tokenizer_version": pa.array([version] * len(item_ids), pa.string()),
    })
    return conform("sids", table)
