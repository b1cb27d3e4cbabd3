"""Two processes that torchrun starts take the same steps as one alone, in each kind of training."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tessera.bundle import load_manifest
from tessera.config import GrpoSettings, PolicySettings, PreferenceSettings, Settings, save_settings
from tessera.decoding.recommender import Recommender
from tessera.policy import checkpoints, distributed, train
from tessera.schema import SCHEMAS, read_table, write_table

# Five cases a batch, so that one process gets more of them than the other; the last batch has two.
GRPO = GrpoSettings(epochs=3, batch=5, group=8, learning_rate=3e-3, validate_every=3, bonus="quality", reward="prefix")
SDPO = PreferenceSettings(epochs=3, batch=5, negatives=5, source="beam", learning_rate=3e-3, validate_every=3)
CHILD = """
import json, logging, sys
from pathlib import Path
import torch
from tessera.policy import distributed, train
torch.set_num_threads(1)
logging.basicConfig(level=logging.INFO, stream=sys.stderr)
arguments = json.loads(sys.argv[1])
with distributed.joined():
    for command in arguments:
        getattr(train, command.pop("command"))(**{name: Path(value) for name, value in command.items()})
    (Path(sys.argv[2]) / str(distributed.rank())).touch()
"""

# The first of the processes is killed as soon as its first checkpoint is whole, the other waits for it then.
KILLED = """
import os, signal
from tessera.policy import checkpoints
write = checkpoints.write
def last(*checkpoint):
    write(*checkpoint)
    os.kill(os.getpid(), signal.SIGKILL)
if (os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"]) == ("0", "0"):
    checkpoints.write = last
"""


@pytest.fixture(scope="module")
def commands(toy: Any, quick: PolicySettings) -> Callable[[Path], list[dict[str, str]]]:
    """Supervised training and both alignments into a folder, as arguments of `tessera.policy.train`."""
    ids = read_table("items", toy.folder / "items.parquet")["item_id"].to_pylist()
    made = {"provider": "p", "model": "m", "prompt_version": "v1", "status": "ok", "reason": None}
    empty = [{"item_id": i, **made, "surface": [], "motives": [], "descriptors": []} for i in ids]
    paid = [{"item_id": i, **made, "labels": [1], "score": n / len(ids)} for n, i in enumerate(ids)]
    tables = {name: toy.folder / f"{name}.parquet" for name in ("items", "splits", "sids")}
    for name, rows in {"intents": empty, "quality": paid}.items():
        tables[name] = toy.folder / f"{name}-for-processes.parquet"
        write_table(name, pa.Table.from_pylist(rows, SCHEMAS[name]), tables[name])

    def write(out: Path) -> list[dict[str, str]]:
        # No dropout: processes drop differently. Steps of three rows, so that one process has two and the other one.
        policy = replace(quick, dropout=0.0, epochs=3, batch_tokens=48)
        base = Settings(policy=policy, grpo=GRPO, preference=SDPO)
        paths: dict[str, Path] = {}
        for alignment in ("grpo", "preference"):
            paths[alignment] = out / f"{alignment}.json"
            save_settings(replace(base, alignment=alignment), paths[alignment])
        inputs = {name: tables[name] for name in ("items", "splits", "sids")} | {"tokenizer": toy.folder / "tokenizer"}
        done: list[dict[str, Any]] = [
            {"command": "sft", "settings": paths["grpo"], **inputs, "bundle": out / "sft", "work": out / "work"}
        ]
        inputs = {name: tables[name] for name in ("splits", "quality", "intents")} | {"policy": out / "sft"}
        for name, path in paths.items():
            done.append({"command": "align", "settings": path, **inputs, "bundle": out / name,
                         "work": out / f"work-{name}"})  # fmt: skip
        return [{key: str(value) for key, value in command.items()} for command in done]

    return write


def curves(out: Path) -> dict[str, list[dict[str, float]]]:
    return {name: load_manifest(out / name, "policy").metrics["curve"] for name in ("sft", "grpo", "preference")}


@pytest.fixture(scope="module")
def alone(commands: Callable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process makes, through the command line."""
    out = tmp_path_factory.mktemp("alone")
    for command in commands(out):
        train.main([command.pop("command"), *(f"--{name}={value}" for name, value in command.items())])
    return out


def _interrupted(command: dict[str, str]) -> None:
    """Supervised training that ends with its first checkpoint."""
    write = checkpoints.write

    def stop(*args: Any) -> None:
        write(*args)
        raise InterruptedError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "write", stop)
        with pytest.raises(InterruptedError):
            train.sft(**{name: Path(value) for name, value in command.items() if name != "command"})


@pytest.fixture(scope="module")
def pair(commands: Callable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes make; supervised training goes on from a checkpoint that one process left."""
    out = tmp_path_factory.mktemp("pair")
    _interrupted(commands(out)[0])
    _in_two(out, CHILD, commands(out))
    return out


def _in_two(out: Path, script: str, told: list[dict[str, str]], *options: str) -> str:
    """What two processes of torchrun that carry out the commands say."""
    (out / "child.py").write_text(script)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *options]
    done = subprocess.run(
        [*torchrun, str(out / "child.py"), json.dumps(told), str(out)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


def test_two_processes_take_the_steps_of_one(alone: Path, pair: Path) -> None:
    assert {(pair / name).exists() for name in "01"} == {True}
    one, two = curves(alone), curves(pair)
    for name, curve in one.items():
        assert [point["epoch"] for point in two[name]] == [point["epoch"] for point in curve]
        for point, other in zip(curve, two[name], strict=True):
            assert other == pytest.approx(point, rel=2e-3, abs=2e-4), name
    # It is training that agrees, not standing still.
    assert one["sft"][-1]["train_loss"] < one["sft"][0]["train_loss"] - 0.05
    assert one["grpo"][-1]["kl"] > 1e-3
    assert one["preference"][-1]["loss"] < one["preference"][1]["loss"] - 0.05


def test_two_processes_end_with_the_weights_of_one(alone: Path, pair: Path) -> None:
    for name in ("sft", "grpo", "preference"):
        one, two = (Recommender.load(out / name).backbone.model for out in (alone, pair))
        for a, b in zip(one.parameters(), two.parameters(), strict=True):
            np.testing.assert_allclose(a.detach(), b.detach(), atol=2e-3)


def test_after_a_kill_torchrun_goes_on_from_the_checkpoint(alone: Path, commands: Callable, tmp_path: Path) -> None:
    said = _in_two(tmp_path, KILLED + CHILD, commands(tmp_path)[:1], "--max-restarts=1")
    assert "Signal 9 (SIGKILL)" in said or "exitcode: -9" in said
    assert said.count("resuming policy training after epoch") == 1
    assert [p["epoch"] for p in load_manifest(tmp_path / "sft", "policy").metrics["curve"]] == [
        point["epoch"] for point in curves(alone)["sft"]
    ]
    one, two = (Recommender.load(out / "sft").backbone.model for out in (alone, tmp_path))
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        np.testing.assert_allclose(a.detach(), b.detach(), atol=2e-3)


@pytest.mark.parametrize("size", [2, 3])
def test_shares_cover_every_row_once(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "together", lambda: True)
    monkeypatch.setattr(distributed.dist, "get_world_size", lambda: size)
    for count in range(1, 8):
        shares = []
        for rank in range(size):
            monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
            shares.append(distributed.share(count))
        assert sorted(row for rows, part in shares if part for row in rows) == list(range(count))
        assert sum(part for _, part in shares) == pytest.approx(1)
        assert all(len(rows) for rows, _ in shares)


def test_restarts_over_a_store_that_outlives_them_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told = {"WORLD_SIZE": "2", "TORCHELASTIC_MAX_RESTARTS": "1", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as ended:
        train.main(["sft"])
    assert ended.value.code == 2
    assert "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1" in capsys.readouterr().err


def test_help_says_how_to_start_it(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--help"], ["sft", "--help"], ["align", "--help"]):
        with pytest.raises(SystemExit):
            train.main(arguments)
        assert "torchrun --nproc-per-node" in " ".join(capsys.readouterr().out.split())


def test_an_expected_failure_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_settings(Settings(), tmp_path / "settings.json")
    paths = ("items", "splits", "sids", "tokenizer", "bundle", "work")
    with pytest.raises(SystemExit) as ended:
        train.main(["sft", f"--settings={tmp_path / 'settings.json'}", *(f"--{n}={tmp_path / n}" for n in paths)])
    assert ended.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
