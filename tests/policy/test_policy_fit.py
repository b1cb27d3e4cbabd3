"""The training stage on files: what it writes, what it refuses, and that a killed run ends as an undisturbed one."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from tessera.bundle import load_manifest
from tessera.config import PolicySettings
from tessera.decoding.recommender import Recommender
from tessera.errors import BundleError, InputError
from tessera.policy import checkpoints, fit
from tessera.schema import SCHEMAS, read_table, write_table

CHILD = """
import json, sys, time
from pathlib import Path
import torch
from tessera.config import EvaluationSettings, PolicySettings
from tessera.policy import fit, sft
torch.set_num_threads(1)
root, out = Path(sys.argv[1]), Path(sys.argv[2])
epoch = sft._epoch
def slowed(*args):  # leaves the parent time to kill this process between two checkpoints
    time.sleep(0.2)
    return epoch(*args)
sft._epoch = slowed
fit.run(root / "items.parquet", root / "splits.parquet", root / "sids.parquet", root / "tokenizer", out / "policy",
        PolicySettings(**json.loads(sys.argv[3])), EvaluationSettings(), 0, out / "work")
"""


def test_killed_and_run_again_ends_as_undisturbed(
    toy: Any, undisturbed: dict[str, Any], quick: PolicySettings, epochs_run: list[int]
) -> None:
    """kill -9 after the first checkpoint: the next run goes on from there and writes the same bundle."""
    out = toy.folder / "killed"
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(toy.folder), str(out), json.dumps(dataclasses.asdict(quick))],
        stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    state, deadline = out / "work" / checkpoints.STATE, time.monotonic() + 120
    while not state.exists() and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert state.exists()
    assert not (out / "policy").exists()

    resumed = toy.run("killed")
    assert epochs_run
    assert epochs_run == list(range(epochs_run[0], quick.epochs))
    assert epochs_run[0] >= 1
    assert resumed["version"] == undisturbed["version"]
    assert resumed["curve"] == undisturbed["curve"]


@pytest.mark.parametrize("change", ["nothing", "settings", "seed", "splits"])
def test_a_checkpoint_serves_its_own_inputs_only(
    change: str, toy: Any, quick: PolicySettings, stop_early: Callable, epochs_run: list[int], tmp_path: Path
) -> None:
    stop_early(lambda: toy.run(f"stopped-{change}"))
    epochs_run.clear()
    settings = replace(quick, learning_rate=1e-4) if change == "settings" else quick
    other = {}
    if change == "splits":
        other = {"splits": tmp_path / "splits.parquet"}
        write_table("splits", read_table("splits", toy.folder / "splits.parquet").slice(1), other["splits"])
    toy.run(f"stopped-{change}", settings, seed=int(change == "seed"), **other)
    assert epochs_run == list(range(1 if change == "nothing" else 0, quick.epochs))


@pytest.mark.parametrize("name", [f"1.{checkpoints.WEIGHTS}", f"1.{checkpoints.MOMENTS}", checkpoints.STATE])
def test_a_truncated_checkpoint_is_no_checkpoint(
    name: str, toy: Any, undisturbed: dict[str, Any], stop_early: Callable, epochs_run: list[int]
) -> None:
    run = f"truncated-{name}"
    stop_early(lambda: toy.run(run))
    path = toy.folder / run / "work" / name
    path.write_bytes(path.read_bytes()[:40])
    epochs_run.clear()
    again = toy.run(run)
    assert epochs_run[0] == 0
    assert again["version"] == undisturbed["version"]


def test_other_weights_in_a_backbones_folder_are_another_training(quick: PolicySettings, tmp_path: Path) -> None:
    weights, settings = tmp_path / "model.safetensors", replace(quick, backbone=str(tmp_path))
    found = []
    for content in (b"one", b"one", b"two"):
        weights.write_bytes(content)
        found.append(fit._fingerprint([], settings, 0))
    assert found[0] == found[1] != found[2]


def test_a_finished_bundle_is_used_again(toy: Any, undisturbed: dict[str, Any], epochs_run: list[int]) -> None:
    again = toy.run("undisturbed")
    assert epochs_run == []
    assert again["version"] == undisturbed["version"]
    assert again["curve"] == undisturbed["curve"]
    assert again["seconds"] == 0.0


def test_a_damaged_bundle_is_not_used_again(toy: Any, undisturbed: dict[str, Any]) -> None:
    first = toy.run("damaged")
    weights = first["bundle"] / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert toy.run("damaged")["version"] == undisturbed["version"]
    load_manifest(first["bundle"], "policy")


def test_what_the_stage_returns_and_writes(toy: Any, undisturbed: dict[str, Any], quick: PolicySettings) -> None:
    assert undisturbed["epochs"] == quick.epochs
    assert [point["epoch"] for point in undisturbed["curve"]] == [1, 2, 3, 4]
    assert {"train_loss", "hr@5", "ndcg@5", "hr@10", "ndcg@10"} < set(undisturbed["curve"][0])
    best = max(undisturbed["curve"], key=lambda point: point["ndcg@10"])
    assert undisturbed["best_epoch"] == best["epoch"]
    manifest = load_manifest(undisturbed["bundle"], "policy")
    assert manifest.parent == load_manifest(toy.folder / "tokenizer", "tokenizer").version
    assert manifest.config == dataclasses.asdict(quick) | {"seed": 0}
    assert manifest.extra == {"codebook_size": 8, "levels": 3, "max_history": 4}


def test_another_seed_gives_another_policy(toy: Any, undisturbed: dict[str, Any]) -> None:
    assert toy.run("seeded", seed=1)["version"] != undisturbed["version"]


def test_the_policy_learns_the_chains(toy: Any, quick: PolicySettings) -> None:
    """Everybody who bought a chain's first items buys its next: validation finds it, and so does the bundle."""
    settings = replace(quick, hidden=32, epochs=60, validate_every=10, learning_rate=1e-2, dropout=0.0)
    trained = toy.run("learned", settings)
    assert trained["curve"][-1]["train_loss"] < 0.5
    recommender = Recommender.load(trained["bundle"])
    histories = [[f"item-{chain}-0", f"item-{chain}-1"] for chain in range(6)]
    first = [answer[0].item_id for answer in recommender.recommend(histories, 1)]
    assert first == [f"item-{chain}-2" for chain in range(6)]


def test_sids_of_another_tokenizer_are_refused(toy: Any, tmp_path: Path) -> None:
    sids = read_table("sids", toy.folder / "sids.parquet")
    column = sids.schema.get_field_index("tokenizer_version")
    other = sids.set_column(column, "tokenizer_version", pa.array(["other"] * len(sids)))
    write_table("sids", other, tmp_path / "sids.parquet")
    with pytest.raises(BundleError, match=r"written by tokenizer other.*use the SIDs and the bundle of one fit"):
        toy.run("refused", sids=tmp_path / "sids.parquet")


def test_an_item_without_a_sid_is_named(toy: Any, tmp_path: Path) -> None:
    sids = read_table("sids", toy.folder / "sids.parquet")
    write_table("sids", sids.filter(pc.field("item_id") != "item-2-1"), tmp_path / "sids.parquet")
    with pytest.raises(InputError, match=r"'item-2-1' has no SID"):
        toy.run("refused", sids=tmp_path / "sids.parquet")


@pytest.mark.parametrize("name", ["items", "splits", "sids"])
def test_a_missing_table_is_an_input_error(name: str, toy: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        toy.run("refused", **{name: tmp_path / "absent.parquet"})


def test_a_missing_tokenizer_is_a_bundle_error(toy: Any, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="does not exist"):
        toy.run("refused", tokenizer=tmp_path / "absent")


def test_users_too_short_to_evaluate_are_refused(toy: Any, tmp_path: Path) -> None:
    short = [{"user_id": "u", "train": ["item-0-0", "item-0-1"], "validation": None, "test": None}]
    write_table("splits", pa.Table.from_pylist(short, SCHEMAS["splits"]), tmp_path / "splits.parquet")
    with pytest.raises(InputError, match="no user with three or more interactions"):
        toy.run("refused", splits=tmp_path / "splits.parquet")
