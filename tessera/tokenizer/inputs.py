"""The embeddings table as arrays, checked at the door."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from tessera.errors import InputError
from tessera.schema import conform


@dataclass(frozen=True)
class Inputs:
    """Embeddings in order of item_id, so that nothing depends on the order of a file.

    text [N, Dt] float32; image [N, Di] float32, zeros where has_image [N] is false; Di is 0 if no item has an image.
    """

    item_ids: list[str]
    text: NDArray[np.float32]
    image: NDArray[np.float32]
    has_image: NDArray[np.bool_]


def read_inputs(table: pa.Table, *, use_images: bool = True, origin: str = "the embeddings table") -> Inputs:
    """Turn an `embeddings` table into `Inputs`.

    Raises:
        InputError: no row, a duplicate item_id, vectors of unequal length, or NaN or infinity in one.
    """
    table = conform("embeddings", table, origin).sort_by("item_id")
    ids = table["item_id"].to_pylist()
    if not ids:
        raise InputError(f"{origin} has no row; run the embedding stage over a catalogue with items.")
    repeated = sorted({a for a, b in pairwise(ids) if a == b})
    if repeated:
        shown = ", ".join(map(repr, repeated[:3]))
        raise InputError(f"{origin} has item_id {shown} more than once; keep one row an item.")
    text = _matrix(table["text"], ids, "text", origin)
    has_image = np.array(table["image"].is_valid()) if use_images else np.zeros(len(ids), dtype=bool)
    image = np.zeros((len(ids), 0), np.float32)
    if has_image.any():
        pictured = [item for item, has in zip(ids, has_image, strict=True) if has]
        found = _matrix(table["image"].filter(has_image), pictured, "image", origin)
        image = np.zeros((len(ids), found.shape[1]), np.float32)
        image[has_image] = found
    return Inputs(ids, text, image, has_image)


def _matrix(column: pa.ChunkedArray, ids: list[str], name: str, origin: str) -> NDArray[np.float32]:
    lengths = np.asarray(pc.list_value_length(column))
    odd = np.flatnonzero((lengths != lengths[0]) | (lengths == 0))
    if len(odd):
        raise InputError(
            f"{origin}: the {name} vector of item {ids[odd[0]]!r} has {lengths[odd[0]]} components, that of {ids[0]!r} "
            f"has {lengths[0]}; embed all items with one encoder."
        )
    flat = pc.list_flatten(column)
    if flat.null_count:
        raise InputError(f"{origin}: a {name} vector has a null component; embed the items again.")
    matrix = np.asarray(flat).reshape(len(ids), -1).copy()  # arrow's own memory is read-only
    bad = np.flatnonzero(~np.isfinite(matrix).all(1))
    if len(bad):
        raise InputError(
            f"{origin}: the {name} vector of item {ids[bad[0]]!r} holds NaN or infinity ({len(bad)} such items); "
            "embed them again."
        )
    return matrix
