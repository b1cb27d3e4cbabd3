"""A fit that was killed goes on where it was; what is finished is used again."""

import dataclasses
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tessera.config import TokenizerSettings
from tessera.schema import read_table, write_table
from tessera.tokenizer.training import CHECKPOINT, Training

CHILD = """
import sys, json, torch
from pathlib import Path
from tessera.config import TokenizerSettings
from tessera.tokenizer import fit
torch.set_num_threads(1)
root = Path(sys.argv[1])
settings = TokenizerSettings(**json.loads(sys.argv[2]))
fit.run(root / "embeddings.parquet", root / "bundle", root / "sids.parquet", settings, 0, root / "work")
"""


def test_killed_and_run_again_ends_as_undisturbed(
    make_embeddings: Callable, fit_table: Callable, small: TokenizerSettings, tmp_path: Path, epochs_run: list[int]
) -> None:
    """kill -9 after some checkpoint: the next run goes on from there and ends with the same bundle and SIDs."""
    settings = replace(small, epochs=80, checkpoint_every=5)
    table, root = make_embeddings(items=400, image_dim=16), tmp_path / "killed"
    write_table("embeddings", table, root / "embeddings.parquet")
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(root), json.dumps(dataclasses.asdict(settings))],
        stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    checkpoint, deadline = root / "work" / CHECKPOINT, time.monotonic() + 60
    while not checkpoint.exists() and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert checkpoint.exists()
    assert not (root / "bundle").exists()

    resumed = fit_table(table, "killed", settings)
    assert epochs_run[0] >= 5
    assert epochs_run == list(range(epochs_run[0], 80))
    epochs_run.clear()
    whole = fit_table(table, "whole", settings)
    assert epochs_run == list(range(80))
    assert resumed["version"] == whole["version"]
    assert resumed["sids"].read_bytes() == whole["sids"].read_bytes()
    assert resumed["curve"] == whole["curve"]
    assert not checkpoint.exists()


class _Stopped(Exception):
    pass


def _stop_after(monkeypatch: pytest.MonkeyPatch, run: Callable[[], Any]) -> None:
    """Run until the first checkpoint is written, then fail."""
    save = Training.save

    def stop(self: Training) -> None:
        save(self)
        raise _Stopped

    with monkeypatch.context() as patch:
        patch.setattr(Training, "save", stop)
        with pytest.raises(_Stopped):
            run()


@pytest.mark.parametrize("change", ["settings", "seed", "data"])
def test_a_checkpoint_of_other_inputs_is_not_continued(
    change: str, make_embeddings: Callable, fit_table: Callable, small: TokenizerSettings,
    monkeypatch: pytest.MonkeyPatch, epochs_run: list[int],
) -> None:
    _stop_after(monkeypatch, lambda: fit_table(make_embeddings()))
    epochs_run.clear()
    settings = replace(small, learning_rate=2e-3) if change == "settings" else small
    fit_table(make_embeddings(seed=int(change == "data")), settings=settings, seed=int(change == "seed"))
    assert epochs_run == list(range(20))


def test_a_damaged_checkpoint_is_reported_and_the_fit_starts_anew(
    make_embeddings: Callable, fit_table: Callable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    epochs_run: list[int], caplog: pytest.LogCaptureFixture,
) -> None:
    _stop_after(monkeypatch, lambda: fit_table(make_embeddings()))
    checkpoint = tmp_path / "run" / "work" / CHECKPOINT
    checkpoint.write_bytes(checkpoint.read_bytes()[:100])
    epochs_run.clear()
    with caplog.at_level(logging.WARNING):
        damaged = fit_table(make_embeddings())
    assert epochs_run == list(range(20))
    assert "no readable checkpoint" in caplog.text
    assert damaged["version"] == fit_table(make_embeddings(), "whole")["version"]


def test_a_finished_bundle_is_used_again(make_embeddings: Callable, fit_table: Callable, epochs_run: list[int]) -> None:
    first = fit_table(make_embeddings())
    before = first["sids"].read_bytes()
    first["sids"].unlink()
    epochs_run.clear()
    second = fit_table(make_embeddings())
    assert epochs_run == []
    assert second["sids"].read_bytes() == before
    assert second["curve"] == first["curve"]
    changed = fit_table(make_embeddings(seed=1))
    assert len(epochs_run) == 20
    assert set(read_table("sids", changed["sids"])["tokenizer_version"].to_pylist()) == {changed["version"]}
