"""Checkpoints of a training: its weights, the optimizer's moments, where it stands, and the best weights so far.

A training that is killed at any time and started again with the same inputs goes on from the last whole checkpoint.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tessera.errors import InputError
from tessera.files import read_json, replacing, write_json
from tessera.policy import distributed

log = logging.getLogger(__name__)
STATE, WEIGHTS, BEST, MOMENTS = "state.json", "weights.safetensors", "best.safetensors", "moments.safetensors"


@dataclass
class Progress:
    """Where training stands; written with every checkpoint."""

    fingerprint: str
    epoch: int = 0
    best: float = -1.0
    best_epoch: int = 0
    curve: list[dict[str, float]] = field(default_factory=list)


def write(work: Path, progress: Progress, trained: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> None:
    """A checkpoint in place of the one before, which counts until this one is whole."""
    state = optimizer.state
    moments = {f"{key}.{n}": state[p][key] for n, p in trained.items() for key in ("exp_avg", "exp_avg_sq", "step")}
    save(work / f"{progress.epoch}.{WEIGHTS}", trained)
    save(work / f"{progress.epoch}.{MOMENTS}", moments)
    write_json(work / STATE, progress.__dict__)  # last: it names the checkpoint that counts
    counting = {f"{progress.epoch}.{WEIGHTS}", f"{progress.epoch}.{MOMENTS}", STATE, f"{progress.best_epoch}.{BEST}"}
    for old in work.iterdir():
        if old.name not in counting:
            old.unlink()


def write_best(work: Path, progress: Progress, trained: Mapping[str, Tensor]) -> None:
    """Keep the weights of `progress.best_epoch`; they count once the checkpoint after them says so."""
    save(work / f"{progress.best_epoch}.{BEST}", trained)


def load_best(work: Path, progress: Progress, trained: Mapping[str, Tensor]) -> None:
    """Put the weights of `progress.best_epoch` in place."""
    load(trained, load_file(work / f"{progress.best_epoch}.{BEST}"))


def resumed(work: Path, fingerprint: str, trained: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> Progress:
    """Where an earlier run with this fingerprint stood: its weights and moments are in place, in every process."""
    progress = Progress(**distributed.from_first(lambda: _resume(work, fingerprint, trained, optimizer).__dict__))
    distributed.copy_from_first(trained.values())
    if progress.epoch and distributed.together():
        for parameter in trained.values():
            state = optimizer.state[parameter]
            state.setdefault("step", torch.zeros(()))
            for name in ("exp_avg", "exp_avg_sq"):
                state.setdefault(name, torch.zeros_like(parameter))
            distributed.copy_from_first(state[name] for name in ("step", "exp_avg", "exp_avg_sq"))
    return progress


def _resume(work: Path, fingerprint: str, trained: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> Progress:
    work.mkdir(parents=True, exist_ok=True)
    try:
        state = read_json(work / STATE) if (work / STATE).exists() else {}
        if state.get("fingerprint") != fingerprint:
            return _afresh(work, fingerprint)
        progress = Progress(**state)
        weights, moments = (load_file(work / f"{progress.epoch}.{name}") for name in (WEIGHTS, MOMENTS))
    except (InputError, OSError, SafetensorError) as error:
        log.warning("the checkpoint in %s is damaged (%s); training starts anew", work, error)
        return _afresh(work, fingerprint)
    load(trained, weights)
    for name, parameter in trained.items():
        optimizer.state[parameter] = {
            "step": moments[f"step.{name}"],  # AdamW counts steps on the CPU
            "exp_avg": moments[f"exp_avg.{name}"].to(parameter.device),
            "exp_avg_sq": moments[f"exp_avg_sq.{name}"].to(parameter.device),
        }
    log.info("resuming policy training after epoch %d: %s", progress.epoch, json.dumps(progress.curve[-1]))
    return progress


def _afresh(work: Path, fingerprint: str) -> Progress:
    for old in work.iterdir():
        old.unlink()
    return Progress(fingerprint)


def save(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors by name."""
    with replacing(path) as temporary:
        save_file({name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}, temporary)


def load(trained: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    """Copy saved weights into the trained ones of the same names."""
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(saved[name])
