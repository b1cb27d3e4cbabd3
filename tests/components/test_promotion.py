"""Promotions on a real registry and feature store: one that fails half way, and one over a replica that follows."""

import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from components.promote import promotion
from components.register import registering
from components.register.features import TABLES
from feature_repo import publish
from feature_repo.store import read_state
from pipelines import cli
from serving import rollout
from serving.canary import announce, assigned
from serving.model_repository import newest, releases
from serving.probe import ask
from serving.registry import Registry, Version
from serving.replicas import Window
from serving.rollout import roll_out, wait_for
from serving.server import TritonServer
from serving.sync import Follower
from tessera.config import PlatformSettings, PolicySettings, Settings, TokenizerSettings
from tessera.errors import ServiceError
from tessera.files import write_json
from tessera.policy.backbone import build
from tessera.policy.bundle import save_policy
from tessera.schema import SCHEMAS, write_table
from tessera.tokenizer.bundle import Tokenizer
from tessera.tokenizer.bundle import build as build_tokenizer

ITEMS = [f"item{i}" for i in range(12)]  # the questions of a roll-out ask for ten
MADE_BY = {"provider": "embedded", "model": "m", "prompt_version": "v1", "status": "ok"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A platform with one registered policy, the challenger, and nothing promoted."""
    folder = tmp_path_factory.mktemp("promotion")
    settings = TokenizerSettings(codebook_size=8, latent_dim=4, hidden_dim=8, fused_dim=8, image_dim=4)
    torch.manual_seed(0)
    tokenizer = Tokenizer(build_tokenizer(settings, 4, 3), settings)
    tokenizer.save(folder / "tokenizer", {"collision_rate_after": 0.0, "utilisation": [0.5]}, "seed 0")
    fixed = {"moved": False, "tokenizer_version": tokenizer.version}
    codes = [[i % 8, i // 8, 0] for i in range(len(ITEMS))]
    sids = [
        {"item_id": item, "sid": "_".join(map(str, row)), "codes": row, **fixed}
        for item, row in zip(ITEMS, codes, strict=True)
    ]
    table = pa.Table.from_pylist(sids, schema=SCHEMAS["sids"])
    for seed in range(2):
        backbone = build(PolicySettings(hidden=16, layers=1, heads=2, text_vocabulary=300), ITEMS, 3, 8, seed)
        described: dict[str, Any] = {"config": {"seed": seed}, "metrics": {}}
        save_policy(folder / f"policy{seed}", backbone, table, codebook_size=8, max_history=5, **described)
    described = {"description": "", "categories": [], "attributes": [], "brand": "", "image_status": "none"}
    rows = {
        "items": [{**described, "item_id": item, "title": item, "image": None} for item in ITEMS],
        "captions": [{**MADE_BY, "item_id": item, "caption": item} for item in ITEMS],
        "intents": [],
        "quality": [],
        "sids": sids,
        "splits": [{"user_id": "ann", "train": ITEMS[:2], "validation": ITEMS[2], "test": ITEMS[3]}],
    }
    for name, content in rows.items():
        write_table(name, pa.Table.from_pylist(content, schema=SCHEMAS[name]), folder / f"{name}.parquet")
    write_json(folder / "evaluation.json", {"test": {}, "validation": {}, "popularity": {}})
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    register(folder / "home", 0)
    return folder / "home"


def register(home: Path, policy: int) -> None:
    """Register a policy as the challenger, with the features of all."""
    folder = home.parent
    registering.run(
        {name: folder / f"{name}.parquet" for name in TABLES}, folder / "tokenizer",
        folder / f"policy{policy}", folder / "evaluation.json", Settings(), str(home), folder / "versions.json",
    )  # fmt: skip


def test_a_first_promotion_that_fails_leaves_no_release_for_the_next_start(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        assert releases(home / "triton" / "models") == [1]  # it had come so far
        raise ServiceError("the registry is gone.")

    with monkeypatch.context() as patch:
        patch.setattr(Registry, "promote", fail)
        with pytest.raises(ServiceError, match="the registry is gone"):
            promotion.promote(home, PlatformSettings())
    assert releases(home / "triton" / "models") == []
    assert Registry(home).aliases().champion is None
    done = promotion.promote(home, PlatformSettings())
    assert done["policy_version"] == newest(home / "triton" / "models").policy_version


@pytest.mark.parametrize("when", ["nobody follows", "one of two follows", "features are published"])
def test_a_rollback_ends_a_roll_out_and_no_more_from_its_beginning_to_its_end(
    home: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    register(home, 1)
    registry, ended = Registry(home), []

    def roll_back(now: str) -> None:
        if now == when and not ended:
            ended.append(promotion.rollback(home, PlatformSettings())["canary_ended"])

    def wait(_: object, version: Version, __: float, check: Callable[[], None]) -> None:
        if version.version == "1":
            follows = assigned(registry, 0)
            assert follows is not None
            assert follows.version == "1"
            roll_back("nobody follows")
        check()

    def watch(_: object, canaries: list[Any], *__: object) -> Window:
        if len(canaries) == 1:
            roll_back("one of two follows")
        return Window()

    monkeypatch.setattr(rollout, "wait_for", wait)
    monkeypatch.setattr(rollout, "_watch", watch)
    replicas = ["http://first:8000", "http://second:8000"]
    outcome = roll_out(registry, "2", replicas, publish=lambda: roll_back("features are published"))
    assert ended == ["2"]
    assert not outcome.promoted
    assert "taken away by hand" in outcome.reason
    assert (registry.aliases().champion, registry.aliases().canary) == ("1", None)


def neighbours() -> int:
    """A free port whose second neighbour, for the metrics, is free as well."""
    while True:
        with socket.socket() as one, socket.socket() as other:
            one.bind(("127.0.0.1", 0))
            port: int = one.getsockname()[1]
            try:
                other.bind(("127.0.0.1", port + 2))
            except (OSError, OverflowError):
                continue
            return port


@pytest.fixture
def replica(home: Path, tmp_path: Path) -> Iterator[str]:
    """A Triton that follows the registry of the home; its URL."""
    ended, url, port = threading.Event(), f"sqlite:///{home / 'mlflow.db'}", neighbours()
    first = Follower(lambda: Registry(tmp_path / "sync", url), 0, tmp_path / "models")
    assert first.look() == "waiting"
    with TritonServer(tmp_path / "models", http_port=port, grpc_port=0, metrics_port=port + 2) as server:
        follower = Follower(lambda: Registry(tmp_path / "sync", url), 0, tmp_path / "models", server.http_url)

        def follow() -> None:
            while not ended.wait(0.5):
                follower.look()

        thread = threading.Thread(target=follow)
        thread.start()
        yield server.http_url
        ended.set()
        thread.join()


@pytest.mark.integration
def test_a_replica_and_the_features_move_together_and_back(
    home: Path, replica: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    platform = PlatformSettings(replicas=(replica,), watch_s=1.0, max_latency_ratio=50.0)
    register(home, 1)
    versions = {one.version: one.bundle_version for one in Registry(home).versions() if one.model == "sid-policy"}

    def state() -> tuple[str | None, str, str, str]:
        """Champion, and the policy that the replica, the features and the home's release are of."""
        served, published = ask(replica).policy_version, read_state(home).policy_version
        return Registry(home).aliases().champion, served, published, newest(home / "triton" / "models").policy_version

    assert state() == ("1", *[versions["1"]] * 3)
    publish_all = publish.run

    def fail(*_: object, **of: Any) -> Any:
        if of["policy_version"] != versions["2"]:
            return publish_all(*_, **of)
        assert ask(replica).policy_version == versions["2"]  # features move when all replicas have moved
        raise ServiceError("the feature store is gone.")

    with monkeypatch.context() as patch:
        patch.setattr(publish, "run", fail)
        with pytest.raises(ServiceError, match="the feature store is gone"):
            promotion.promote(home, platform, who="ann", why="a try")
    wait_for([replica], Registry(home).resolve("1"))
    assert state() == ("1", *[versions["1"]] * 3)

    promotion.promote(home, platform, who="ann", why="better")
    assert state() == ("2", *[versions["2"]] * 3)
    promotion.rollback(home, platform, who="bob")
    assert state() == ("1", *[versions["1"]] * 3)

    announce(Registry(home), Registry(home).resolve("2"))  # as a promotion does that runs elsewhere
    assert promotion.rollback(home, platform)["canary_ended"] == "2"
    assert Registry(home).aliases().champion == "1"
    cli.versions(home)
    said = [line.split("  ", 1)[1] for line in capsys.readouterr().out.splitlines() if line.startswith("20")]
    assert said[-3:] == [
        "version 2 failed by ann: a try (the feature store is gone.)",
        "version 2 promoted by ann: better (version 2 is the champion: all 1 replicas serve it.)",
        "version 1 again champion by bob",
    ]
