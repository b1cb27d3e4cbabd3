"""Cells: one system with one seed, stored as soon as it is measured and never measured twice.

A cell's file is named by a digest of everything that its numbers depend on, the versions of the code's parts among it,
so that tables grow over several runs and machines: copy the files together.
"""

import base64
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tessera.errors import InputError
from tessera.files import read_json, sha256_of, write_json

# Raised when equal settings come to give other numbers; only the cells that the part had a hand in are measured anew.
VERSIONS = {
    "data": 1, "enrichment": 1, "tokenizer": 1, "grounding": 2, "policy": 2, "align": 1, "peers": 1, "measures": 2,
}  # fmt: skip
NOT_RANKED = 255


def key_of(told: Any, *parts: str) -> str:
    """Digest of what a result depends on: `told`, any JSON value, and the versions of these parts."""
    versions = {part: VERSIONS[part] for part in ("data", *parts)}
    return sha256_of(json.dumps([told, versions], sort_keys=True, default=str))[:12]


def read_cell(folder: Path, name: str, seed: int, key: str) -> dict[str, Any] | None:
    """The cell, if it was measured."""
    path = _path(folder, name, seed, key)
    if not path.exists():
        return None
    cell = read_json(path)
    if not isinstance(cell, dict) or cell.get("key") != key:
        raise InputError(f"{path} is not a cell of this bench; remove it, and it is measured again.")
    return cell


def write_cell(folder: Path, name: str, seed: int, key: str, cell: dict[str, Any]) -> None:
    """Store a cell."""
    write_json(_path(folder, name, seed, key), {**cell, "key": key, "system": name, "seed": seed})


def _path(folder: Path, name: str, seed: int, key: str) -> Path:
    return folder / f"{name}-{seed}-{key}.json"


def pack_ranks(ranks: NDArray[np.integer]) -> str:
    """Ranks [users] from 0 as text; those from NOT_RANKED on (not in the list) are one."""
    return base64.b64encode(zlib.compress(np.minimum(ranks, NOT_RANKED).astype(np.uint8).tobytes(), 9)).decode()


def unpack_ranks(text: str) -> NDArray[np.int64]:
    """[users] what `pack_ranks` wrote."""
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8).astype(np.int64)
