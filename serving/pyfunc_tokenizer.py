"""`sid-tokenizer` as an MLflow model: text and image embeddings in, semantic IDs out.

MLflow copies this file into the model and runs it when the model is loaded ("models from code"), so nothing is pickled;
the codebooks come from the tokenizer bundle that lies beside it as an artefact.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

CODE = Path(__file__).with_name("code") / "tessera.zip"
if CODE.exists():  # in a registered model, which brings the package along
    sys.path.insert(0, str(CODE))

from tessera.errors import InputError  # noqa: E402


class TokenizerModel(PythonModel):
    """Quantizes embeddings. A published SID may differ in its last codes, where collision resolution moved it."""

    def load_context(self, context: Any) -> None:
        """Load the bundle; raises BundleError if it is damaged."""
        from tessera.tokenizer.bundle import Tokenizer

        self.tokenizer = Tokenizer.load(context.artifacts["bundle"])

    def predict(self, model_input: pd.DataFrame) -> pd.DataFrame:
        """Encode every row.

        Args:
            model_input: column `text` [Dt] and, optionally, `image` [Di] (None or empty where an item has no photo).

        Returns:
            A frame with the index of `model_input`, column `sid` ("a_b_c") and column `codes` [levels].

        Raises:
            InputError: the column `text` is missing, or the embeddings of a column differ in width.
            BundleError: the embeddings are not of the width that the tokenizer was fitted on.
        """
        if "text" not in getattr(model_input, "columns", ()):
            raise InputError("the input has no column 'text'; give one with the text embedding of an item in each row.")
        text = _matrix("text", list(model_input["text"]))
        images = list(model_input["image"]) if "image" in model_input.columns else [None] * len(text)
        has_image = np.array([_present(image) for image in images], dtype=bool)
        pixels = np.zeros((len(images), self.tokenizer.image_dim), dtype=np.float32)
        if has_image.any() and self.tokenizer.image_dim:
            given = _matrix("image", [image for image, present in zip(images, has_image, strict=True) if present])
            if given.shape[1] != pixels.shape[1]:
                raise InputError(f"image embeddings are {given.shape[1]} wide; this tokenizer takes {pixels.shape[1]}.")
            pixels[has_image] = given
        codes = np.asarray(self.tokenizer.encode(text, pixels, has_image))
        return pd.DataFrame(
            {"sid": ["_".join(map(str, row)) for row in codes.tolist()], "codes": codes.tolist()},
            index=model_input.index,
        )


def _present(vector: Any) -> bool:
    return vector is not None and not isinstance(vector, float) and len(vector) > 0


def _matrix(name: str, rows: list[Any]) -> np.ndarray:
    try:
        return np.stack([np.asarray(row, dtype=np.float32) for row in rows])
    except ValueError as error:
        raise InputError(f"the embeddings in column '{name}' are not rows of one width ({error}).") from None


set_model(TokenizerModel())
