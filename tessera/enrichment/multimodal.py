"""One vector for an item's text and photo together: the multimodal embedding of TriAlignGR.

`enrichment.multimodal` names one model that reads both:

| provider | who embeds |
| --- | --- |
| transformers | an embedding VLM, text and photo in one prompt; or a dual encoder (CLIP, SigLIP), v = unit(t + p) |
| openai | an embedding VLM behind /embeddings |
| embedded | no such model comes in a wheel: text and photo are embedded apart and fused by the tokenizer (CMSA) |

For a dual encoder, unit(t + p) of unit vectors is score fusion: v . w is proportional to t . w + p . w (UniIR, arXiv
2311.17136, calls it CLIP with score fusion). An item without a photo is embedded by its text alone, and lies on the
text's side of the gap between modalities that dual encoders have.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tessera.config import EnrichmentSettings
from tessera.enrichment.encoders import IMAGE_BATCH, TEXT_BATCH, not_loaded
from tessera.enrichment.providers.base import Failure, Message, ModelRequest
from tessera.enrichment.providers.openai import OpenAIEmbedder
from tessera.enrichment.weights import identify
from tessera.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

Vector = NDArray[np.float32]


class JointEncoder(Protocol):
    """Text and photo, or text alone, to a unit vector; `provider` and `identity` are the ledger's key."""

    provider: str
    identity: str

    def encode(self, texts: Sequence[str], photos: "Sequence[Image | None]") -> list[Vector | Failure]:
        """A vector [D] of length 1 for each text with its photo, where it has one."""


class HubJointEncoder:
    """A model of a hub or folder, through sentence-transformers."""

    provider = "transformers"

    def __init__(self, name: str) -> None:
        self.name = name
        self.identity, self.revision = identify(name)
        self._model: Any = None

    def encode(self, texts: Sequence[str], photos: "Sequence[Image | None]") -> list[Vector | Failure]:
        """As `JointEncoder.encode`.

        Raises:
            InputError: the model cannot be loaded, or does not embed both text and photos.
        """
        if self._model is None:
            self._model = self._load()
        together = self._model.supports(("image", "text"))
        pictured = [row for row, photo in enumerate(photos) if photo is not None]
        plain = [row for row, photo in enumerate(photos) if photo is None]
        rows: dict[int, Vector | Failure] = {}
        if plain:
            rows |= zip(plain, self._embed([{"text": texts[row]} for row in plain], TEXT_BATCH), strict=True)
        if pictured and together:
            pairs = [{"image": photos[row], "text": texts[row]} for row in pictured]
            rows |= zip(pictured, self._embed(pairs, IMAGE_BATCH), strict=True)
        elif pictured:
            said = self._embed([{"text": texts[row]} for row in pictured], TEXT_BATCH)
            seen = self._embed([{"image": photos[row]} for row in pictured], IMAGE_BATCH)
            both = said + seen
            rows |= zip(pictured, both / np.linalg.norm(both, axis=1, keepdims=True), strict=True)
        return [rows[row] for row in range(len(texts))]

    def _embed(self, inputs: list[dict[str, Any]], batch: int) -> Vector:
        # Dicts and not bare strings, because a title that looks like the address of a photo would be fetched as one.
        vectors = self._model.encode(inputs, batch_size=batch, normalize_embeddings=True, show_progress_bar=False)
        return np.asarray(vectors, dtype=np.float32)

    def _load(self) -> Any:
        from sentence_transformers import SentenceTransformer
        from transformers.utils import logging

        logging.disable_progress_bar()
        try:
            model = SentenceTransformer(self.name, revision=self.revision)
        except Exception as error:  # OSError, ValueError, SafetensorError, KeyError, ... as the files are broken
            raise not_loaded("multimodal", self.name, error) from None
        if not (model.supports("text") and model.supports("image")):
            raise InputError(
                f"{self.name} embeds {', '.join(map(str, model.modalities))}; enrichment.multimodal needs a model for "
                "text and images: CLIP, SigLIP, or an embedding vision-language model."
            )
        return model


class EndpointJointEncoder:
    """A model behind an OpenAI-compatible endpoint; text and photo travel as one chat message."""

    provider = "openai"

    def __init__(self, model: str, settings: EnrichmentSettings) -> None:
        self._endpoint = OpenAIEmbedder(model, settings)
        self.identity = model

    def encode(self, texts: Sequence[str], photos: "Sequence[Image | None]") -> list[Vector | Failure]:
        """As `JointEncoder.encode`; an item that the endpoint refuses is a Failure.

        Raises:
            ModelCallError: the endpoint cannot be reached, or refuses the key or model.
        """
        pairs = zip(texts, photos, strict=True)
        return self._endpoint.complete([ModelRequest((Message("user", text, photo),)) for text, photo in pairs])


def open_joint_encoder(settings: EnrichmentSettings) -> JointEncoder | None:
    """The model that the settings name, None for the stand-in; cheap, weights load at the first call.

    Raises:
        InputError: no model is named.
    """
    chosen = settings.multimodal
    if chosen.provider == "embedded":
        return None
    if not chosen.model:
        raise InputError(
            "enrichment.multimodal needs a model that embeds text and photos; set e.g. --enrichment.multimodal.model "
            "google/siglip-base-patch16-224."
        )
    if chosen.provider == "openai":
        return EndpointJointEncoder(chosen.model, settings)
    return HubJointEncoder(chosen.model)
