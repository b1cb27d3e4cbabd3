"""Embeddings with a known structure: families of items around centres, images that say something else than the text."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from tessera.bundle import load_manifest
from tessera.config import TokenizerSettings
from tessera.schema import write_table
from tessera.tokenizer import fit
from tessera.tokenizer.training import Training


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def small() -> TokenizerSettings:
    return TokenizerSettings(
        levels=3, codebook_size=8, image_dim=8, fused_dim=16, latent_dim=8, hidden_dim=32, epochs=20, batch_size=64,
        checkpoint_every=5, learning_rate=3e-3,
    )


@pytest.fixture(scope="session")
def make_embeddings() -> Callable[..., pa.Table]:
    def make(items: int = 200, text_dim: int = 12, image_dim: int = 0, seed: int = 0, start: int = 0) -> pa.Table:
        """Items of 8 text families; two of three have an image, of one of 4 scenes that the text does not tell."""
        centres, draw = np.random.default_rng(99), np.random.default_rng(seed)
        families, scenes = centres.normal(size=(8, text_dim)), centres.normal(size=(4, max(image_dim, 1)))
        rows = np.arange(start, start + items)
        text = families[rows % 8] + 0.3 * draw.normal(size=(items, text_dim))
        image = scenes[rows // 8 % 4] + 0.1 * draw.normal(size=(items, max(image_dim, 1)))
        photos = image.astype(np.float32).tolist()
        shown = [photo if image_dim and row % 3 else None for row, photo in zip(rows, photos, strict=True)]
        return pa.table({
            "item_id": [f"i{row:05d}" for row in rows],
            "text": pa.array(text.astype(np.float32).tolist(), pa.list_(pa.float32())),
            "image": pa.array(shown, pa.list_(pa.float32())),
        })

    return make


@pytest.fixture
def fit_table(tmp_path: Path, small: TokenizerSettings) -> Callable[..., dict[str, Any]]:
    """Run the stage on a table inside tmp_path/name; returns its metrics, the paths and the bundle's version."""

    def run(table: pa.Table, name: str = "run", settings: TokenizerSettings = small, seed: int = 0) -> dict[str, Any]:
        root = tmp_path / name
        root.mkdir(exist_ok=True)
        write_table("embeddings", table, root / "embeddings.parquet")
        paths = {"bundle": root / "bundle", "sids": root / "sids.parquet", "work": root / "work"}
        metrics = fit.run(root / "embeddings.parquet", **paths, settings=settings, seed=seed)
        return {**metrics, **paths, "version": load_manifest(paths["bundle"], "tokenizer").version}

    return run


@pytest.fixture
def epochs_run(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The epochs (from 0) that training really ran."""
    ran: list[int] = []
    whole = Training.train_epoch

    def counted(self: Training, *args: Any) -> dict[str, Any]:
        ran.append(self.epoch)
        return whole(self, *args)

    monkeypatch.setattr(Training, "train_epoch", counted)
    return ran
