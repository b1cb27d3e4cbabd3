"""Two tiny policies, a published catalogue with its feature server, and one Triton for all tests that ask it."""

import socket
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from feature_repo import publish
from feature_repo.server import FeatureServer
from serving.model_repository import export
from serving.server import TritonServer
from tessera.config import PolicySettings
from tessera.decoding.recommender import Recommender
from tessera.policy.backbone import build
from tessera.policy.bundle import save_policy
from tessera.schema import SCHEMAS, write_table

# Integers as in many catalogues, and ids that a careless encoding would break.
ITEMS = [str(100 + i) for i in range(58)] + ["tasse-é", "two words"]
HISTORIES = [["100"], ["103", "117", "104"], ["tasse-é", "101"], ["150", "unknown", "two words", "149", "101", "102"]]
USERS = {"ann": ["103", "117", "104"], "bob": ["tasse-é", "101", "150", "100"]}
TOKENIZER = "tok-1"
PROVENANCE = {"provider": "embedded", "model": "m", "prompt_version": "v1", "status": "ok"}
MADE = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)


NEW_ITEMS = [f"new-{i}" for i in range(4)]


def sid_rows(items: list[str] = ITEMS, tokenizer: str = TOKENIZER) -> list[dict[str, object]]:
    codes = [[i % 8, i // 8, i % 3] for i in range(len(items))]
    return [
        {"item_id": item, "sid": "_".join(map(str, row)), "codes": row, "moved": False, "tokenizer_version": tokenizer}
        for item, row in zip(items, codes, strict=True)
    ]


def make_policy(folder: Path, seed: int) -> Path:
    """A policy that was never trained: it recommends, if badly, and every seed another list."""
    settings = PolicySettings(hidden=32, layers=2, heads=2, text_vocabulary=300)
    torch.manual_seed(seed)
    backbone = build(settings, ITEMS, levels=3, codebook_size=8, seed=seed)
    torch.nn.init.normal_(backbone.model.get_input_embeddings().weight)  # else all scores are near one another
    sids = pa.Table.from_pylist(sid_rows(), schema=SCHEMAS["sids"])
    save_policy(folder, backbone, sids, codebook_size=8, max_history=5, config={"seed": seed}, metrics={})
    return folder


@pytest.fixture(scope="session")
def policies(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two policy bundles over one catalogue."""
    folder = tmp_path_factory.mktemp("policies")
    return make_policy(folder / "a", 1), make_policy(folder / "b", 2)


@pytest.fixture(scope="session")
def sids() -> pa.Table:
    """The SIDs of the policies' catalogue."""
    return pa.Table.from_pylist(sid_rows(), schema=SCHEMAS["sids"])


@pytest.fixture(scope="session")
def models_of() -> Callable[[int | None], list[int]]:
    """The model processes of a server, by its process id."""

    def find(server: int | None) -> list[int]:
        found = []
        for status in Path("/proc").glob("[0-9]*/stat"):
            try:
                name, _, rest = status.read_text().rpartition(") ")
            except OSError:
                continue
            if int(rest.split()[1]) == server and "triton_python" in name:
                found.append(int(status.parent.name))
        return found

    return find


@pytest.fixture(scope="session")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The SIDs of the policies' catalogue and of four new items."""
    path = tmp_path_factory.mktemp("grown") / "sids.parquet"
    write_table("sids", pa.Table.from_pylist(sid_rows(ITEMS + NEW_ITEMS), schema=SCHEMAS["sids"]), path)
    return path


@pytest.fixture(scope="session")
def engines(policies: tuple[Path, Path]) -> dict[str, Recommender]:
    """The same policies in this process, by version: what a server must answer."""
    return {one.policy_version: one for one in map(Recommender.load, policies)}


@pytest.fixture(scope="session")
def features(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FeatureServer]:
    """Feast's feature server over the catalogue of the policies."""
    folder = tmp_path_factory.mktemp("features")
    item = {"description": "", "categories": ["toys"], "attributes": [], "brand": "acme", "image_status": "ok"}
    descriptors = [{"text": "for gardens", "confidence": 0.5}, {"text": "gift", "confidence": None}]
    intent = {"surface": ["round"], "motives": ["play"], "descriptors": descriptors}
    tables = {
        "items": [{**item, "item_id": i, "title": f"Title {i}", "image": f"{i}.jpg"} for i in ITEMS],
        "captions": [{**PROVENANCE, "item_id": i, "caption": f"A photo of {i}"} for i in ITEMS],
        "intents": [{**PROVENANCE, **intent, "item_id": i} for i in ITEMS if i != "101"],
        "quality": [{**PROVENANCE, "item_id": i, "labels": [1, 0], "score": 0.5} for i in ITEMS if i != "101"],
        "sids": sid_rows(),
        "splits": [{"user_id": u, "train": h[:-2], "validation": h[-2], "test": h[-1]} for u, h in USERS.items()],
    }
    paths = {name: folder / f"{name}.parquet" for name in tables}
    for name, rows in tables.items():
        write_table(name, pa.Table.from_pylist(rows, schema=SCHEMAS[name]), paths[name])
    publish.run(folder / "home", **paths)
    top = {"user_id": "ann", "item_ids": ["100", "101"], "sids": ["0_0_0", "1_0_1"], "scores": [-0.5, -1.5]}
    versions = {"policy_version": "pol-1", "tokenizer_version": TOKENIZER, "computed_at": MADE}
    publish.publish_topk(folder / "home", pa.Table.from_pylist([top | versions]))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with FeatureServer(folder / "home", port=port) as server:
        yield server


@pytest.fixture(scope="session")
def triton(
    policies: tuple[Path, Path], features: FeatureServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TritonServer]:
    """A real Triton server with the first policy; a test that loads another puts the first back."""
    repository = tmp_path_factory.mktemp("triton") / "models"
    export(policies[0], repository, feature_server="http://127.0.0.1:9", threads=1, prefix_cache_mb=4)
    ports = {"http_port": 0, "grpc_port": 0, "metrics_port": 0}
    with TritonServer(repository, feature_server=features.url, **ports) as server:
        yield server
