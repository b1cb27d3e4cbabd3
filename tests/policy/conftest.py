"""A toy shop of chains: whoever bought an item buys the next of its chain, so a policy can know the answer."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tessera.bundle import load_manifest
from tessera.config import EvaluationSettings, PolicySettings, TokenizerSettings
from tessera.policy import checkpoints, fit, sft
from tessera.schema import SCHEMAS, write_table
from tessera.tokenizer import fit as tokenizer_fit

CHAINS, LENGTH = 6, 5
QUICK = PolicySettings(
    hidden=16, layers=1, heads=2, text_vocabulary=300, dropout=0.1, max_history=4, epochs=4, validate_every=1,
    batch_tokens=40, learning_rate=3e-3,
)


@dataclass(frozen=True)
class Toy:
    """The input files of the training stage."""

    folder: Path

    def run(self, name: str, settings: PolicySettings = QUICK, seed: int = 0, **other: Path) -> dict[str, Any]:
        """Train into folder/name; `other` replaces input files. Returns metrics, the bundle's folder and version."""
        bundle, work = self.folder / name / "policy", self.folder / name / "work"
        inputs = {table: self.folder / f"{table}.parquet" for table in ("items", "splits", "sids")}
        inputs |= {"tokenizer": self.folder / "tokenizer"} | other
        metrics = fit.run(
            **inputs, bundle=bundle, settings=settings, evaluation=EvaluationSettings(), seed=seed, work=work
        )
        return metrics | {"bundle": bundle, "work": work, "version": load_manifest(bundle, "policy").version}


def item(chain: int, place: int) -> str:
    return f"item-{chain}-{place}"


@pytest.fixture(scope="session")
def make_toy() -> Callable[[Path], Toy]:
    def make(folder: Path) -> Toy:
        ids = [item(chain, place) for chain in range(CHAINS) for place in range(LENGTH)]
        drawn = np.random.default_rng(3).normal(size=(len(ids), 6)).astype(np.float32).tolist()
        vectors = pa.table({"item_id": ids, "text": pa.array(drawn, pa.list_(pa.float32()))})
        folder.mkdir(parents=True, exist_ok=True)
        write_table(
            "embeddings",
            vectors.append_column("image", pa.nulls(len(ids), pa.list_(pa.float32()))),
            folder / "embeddings.parquet",
        )
        tokenizer_fit.run(
            folder / "embeddings.parquet",
            folder / "tokenizer",
            folder / "sids.parquet",
            TokenizerSettings(method="rqkmeans", use_images=False, levels=3, codebook_size=8, latent_dim=4),
            0,
            folder / "tokenizer-work",
        )
        fixed = {"brand": "", "categories": [], "attributes": [], "image_status": "none", "image": None}
        rows = [{"item_id": i, "title": f"Title {i}", "description": "A thing.", **fixed} for i in ids]
        write_table("items", pa.Table.from_pylist(rows, SCHEMAS["items"]), folder / "items.parquet")
        users = [
            {
                "user_id": f"user-{chain}",
                "train": [item(chain, place) for place in range(LENGTH - 2)],
                "validation": item(chain, LENGTH - 2),
                "test": item(chain, LENGTH - 1),
            }
            for chain in range(CHAINS)
        ]
        write_table("splits", pa.Table.from_pylist(users, SCHEMAS["splits"]), folder / "splits.parquet")
        return Toy(folder)

    return make


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory, make_toy: Callable[[Path], Toy]) -> Toy:
    return make_toy(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="session")
def undisturbed(toy: Toy) -> dict[str, Any]:
    """A run with the quick settings that nothing interrupted."""
    return toy.run("undisturbed")


@pytest.fixture
def epochs_run(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The epochs (from 0) that training really ran."""
    ran: list[int] = []
    whole = sft._epoch

    def counted(*args: Any) -> float:
        ran.append(args[4])
        return whole(*args)

    monkeypatch.setattr(sft, "_epoch", counted)
    return ran


class _Stopped(Exception):
    pass


@pytest.fixture
def stop_early(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Any]], None]:
    """Run a training until its first checkpoint is written, then fail."""
    write = checkpoints.write

    def stop(*args: Any) -> None:
        write(*args)
        raise _Stopped

    def run(training: Callable[[], Any]) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(checkpoints, "write", stop)
            with pytest.raises(_Stopped):
                training()

    return run


@pytest.fixture(scope="session")
def quick() -> PolicySettings:
    """Settings of a training that takes a second."""
    return QUICK


@pytest.fixture(scope="session")
def make_sids() -> Callable[..., pa.Table]:
    """A table of schema "sids" for rows of codes; items are "item-0", "item-1", …"""

    def make(codes: np.ndarray, version: str = "tok-1") -> pa.Table:
        rows = [
            {"item_id": f"item-{n}", "sid": "_".join(map(str, c)), "codes": c, "moved": False,
             "tokenizer_version": version}
            for n, c in enumerate(codes.tolist())
        ]
        return pa.Table.from_pylist(rows, SCHEMAS["sids"])

    return make
