"""The promotion gate on a real registry: who wins, over which SIDs the champion is measured, and who is refused."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from kfp.dsl import Artifact, Dataset, Metrics, Model

from components.evaluate.component import evaluate
from components.fetch.component import fetch_policy
from components.gates.policy import MEASURE, decide
from serving import newer_sids
from serving.aliases import Aliases
from serving.registry import Registry
from tessera.config import PolicySettings, Settings, TokenizerSettings
from tessera.errors import InputError
from tessera.files import read_json, write_json
from tessera.policy.backbone import build
from tessera.policy.bundle import save_policy
from tessera.schema import SCHEMAS, read_table, write_table
from tessera.tokenizer.bundle import Tokenizer
from tessera.tokenizer.bundle import build as build_tokenizer

ITEMS = [f"item{i}" for i in range(7)]
NEW = "new"
CHALLENGER, CHAMPION, REFRESHED = "1", "2", "3"


def sids(items: list[str], version: str) -> pa.Table:
    fixed = {"moved": False, "tokenizer_version": version}
    rows = [{"item_id": item, "sid": f"{i}_0_0", "codes": [i, 0, 0], **fixed} for i, item in enumerate(items)]
    return pa.Table.from_pylist(rows, SCHEMAS["sids"])


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A platform with three untrained policies over seven items; to the third a refresh has added one."""
    folder = tmp_path_factory.mktemp("gate")
    settings = TokenizerSettings(codebook_size=8, latent_dim=4, hidden_dim=8, fused_dim=8, image_dim=4)
    torch.manual_seed(0)
    tokenizer = Tokenizer(build_tokenizer(settings, 4, 3), settings)
    tokenizer.save(folder / "tokenizer", {"collision_rate_after": 0.0, "utilisation": [0.5]}, "seed 0")
    registry = Registry(folder / "home")
    registry.register_tokenizer(folder / "tokenizer")
    for seed in range(3):
        backbone = build(PolicySettings(hidden=16, layers=1, heads=2, text_vocabulary=300), ITEMS, 3, 8, seed)
        described: dict[str, Any] = {"config": {"seed": seed}, "metrics": {}}
        bundle = folder / f"policy{seed}"
        save_policy(bundle, backbone, sids(ITEMS, tokenizer.version), codebook_size=8, max_history=5, **described)
        registry.register_policy(bundle)
    write_table("sids", sids([*ITEMS, NEW], tokenizer.version), folder / "newer.parquet")
    newer_sids.publish(registry, registry.resolve(REFRESHED), folder / "newer.parquet")
    return folder / "home"


@pytest.fixture
def registry(home: Path) -> Registry:
    """Nothing is promoted."""
    registry = Registry(home)
    registry.restore(Aliases())
    return registry


def splits(folder: Path, bought: list[str]) -> Path:
    """One user, whose last item is the test item."""
    row = {"user_id": "ann", "train": bought[:-2], "validation": bought[-2], "test": bought[-1]}
    write_table("splits", pa.Table.from_pylist([row], SCHEMAS["splits"]), folder / "splits.parquet")
    return folder / "splits.parquet"


def decided(home: Path, folder: Path, mine: float, bought: list[str] = ITEMS[:4], invalid: float = 0.0) -> Any:
    """The gate's answer about the challenger, where popularity reaches 0.2."""
    report = {"test": {MEASURE: mine, "invalid_rate": invalid}, "popularity": {"test": {MEASURE: 0.2}}}
    write_json(folder / "evaluation.json", report)
    return decide(CHALLENGER, folder / "evaluation.json", splits(folder, bought), Settings(), str(home))


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize(("mine", "passed"), [(0.21, True), (0.2, False), (0.1, False)])
def test_the_first_policy_must_beat_popularity(home: Path, tmp_path: Path, mine: float, passed: bool) -> None:
    answer = decided(home, tmp_path, mine)
    assert (answer["passed"], answer["champion"], answer["popularity"]) == (passed, None, 0.2)
    assert ("is the first" if passed else "is not above popularity's 0.2000") in answer["reason"]


def test_a_challenger_must_beat_the_champion_as_it_is_measured_now(
    home: Path, registry: Registry, tmp_path: Path
) -> None:
    registry.promote(CHAMPION)
    better, worse = decided(home, tmp_path, 1.01), decided(home, tmp_path, 0.001)
    assert 0.2 < better["champion"] == worse["champion"] <= 1  # all seven items are within the first ten
    assert (better["passed"], worse["passed"]) == (True, False)
    assert f"is better: {MEASURE} 1.0100 against champion {CHAMPION}'s {better['champion']:.4f}" in better["reason"]
    assert f"does not beat champion {CHAMPION}'s" in worse["reason"]
    assert not decided(home, tmp_path, better["champion"])["passed"]  # as good is not better


def test_the_champion_itself_passes_unmeasured(home: Path, registry: Registry, tmp_path: Path) -> None:
    registry.promote(CHALLENGER)
    answer = decided(home, tmp_path, 0.0)
    assert (answer["passed"], answer["champion"]) == (True, None)
    assert "is the champion already" in answer["reason"]


@pytest.mark.parametrize("champion", [None, CHALLENGER, CHAMPION])
def test_invalid_sids_are_always_a_no(home: Path, registry: Registry, tmp_path: Path, champion: str | None) -> None:
    if champion:
        registry.promote(champion)
    answer = decided(home, tmp_path, 1.0, invalid=0.01)
    assert not answer["passed"]
    assert "1.00% of its SIDs are invalid" in answer["reason"]


def test_a_champion_of_another_catalogue_is_refused(home: Path, registry: Registry, tmp_path: Path) -> None:
    registry.promote(CHAMPION)
    with pytest.raises(InputError, match=f"champion {CHAMPION} knows none of this catalogue's items"):
        decided(home, tmp_path, 1.0, ["a", "b", "c", "d"])


def test_a_refreshed_champion_is_measured_over_the_items_that_it_serves(
    home: Path, registry: Registry, tmp_path: Path
) -> None:
    registry.promote(REFRESHED)
    assert decided(home, tmp_path, 0.001, [*ITEMS[:3], NEW])["champion"] > 0.2


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize(("version", "hits"), [(CHAMPION, False), (REFRESHED, True)])
def test_what_is_fetched_to_be_measured_is_what_would_serve(
    home: Path, tmp_path: Path, version: str, hits: bool
) -> None:
    """The pipeline `promotion` with a version that was champion before, and refreshed."""
    policy, table = Model(uri=str(tmp_path / "policy")), Dataset(uri=str(tmp_path / "sids"))
    stats = Artifact(uri=str(tmp_path / "stats"))
    fetch_policy.python_func(
        version=version, settings="{}", home=str(home), challenger=Artifact(uri=str(tmp_path / "challenger")),
        policy=policy, sids=table, stats=stats,
    )  # fmt: skip
    assert read_json(tmp_path / "challenger") == {"policy": version}
    if hits:
        assert read_table("sids", tmp_path / "sids")["item_id"].to_pylist() == [*ITEMS, NEW]
    evaluate.python_func(
        policy=policy, splits=Dataset(uri=str(splits(tmp_path, [*ITEMS[:3], NEW]))), settings="{}",
        evaluation=Artifact(uri=str(tmp_path / "evaluation")), metrics=Metrics(uri=str(tmp_path / "metrics")),
        stats=stats, allow_unknown=True, sids=table,
    )  # fmt: skip
    assert (read_json(tmp_path / "evaluation")["test"][MEASURE] > 0.2) == hits
