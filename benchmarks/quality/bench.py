"""The bench itself: measure what is not measured yet, then write tables and figures."""

import dataclasses
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.machine import hardware
from benchmarks.quality.measures import LIST, Ground
from benchmarks.quality.peer import Missing, answers
from benchmarks.quality.report import write_report
from benchmarks.quality.store import key_of, read_cell, write_cell
from benchmarks.quality.systems import BUDGETS, PEERS, PICTURED, SYSTEMS, TABLES
from benchmarks.quality.train import Plan, align_gain, plan, train
from benchmarks.quality.world import World
from tessera.config import Settings, check
from tessera.decoding.recommender import Recommender
from tessera.errors import InputError

BudgetName = Literal["smoke", "small", "full"]
DIAL = (0.0, 0.25, 0.5, 0.75, 1.0)
TURNED = ("sigma",)  # the systems whose dial is turned: each setting ranks all users again


@dataclasses.dataclass(frozen=True)
class Bench:
    """One catalogue under one budget; cells are kept in `out`, what is trained on the way in the world's folder."""

    settings: Settings
    budget: BudgetName
    world: World
    ground: Ground
    out: Path

    def measure(self, name: str, seed: int) -> None:
        """Measure a system with a seed, if that was not done.

        Raises:
            Missing: a peer that is not installed, or what is measured of photos without any.
        """
        if name in PICTURED and not self.ground.pictured:
            raise Missing("needs photos")
        if self.cell(name, seed) is None:
            prepared = self._plan(name, seed)
            found = self._peer(name, seed) if prepared is None else self._system(name, prepared)
            found |= {"hardware": hardware() | {"threads": torch.get_num_threads()}}
            write_cell(self._cells, name, seed, self._key(name, seed, prepared), found)

    def cell(self, name: str, seed: int) -> dict[str, Any] | None:
        """A system's numbers with a seed, if they were measured."""
        return read_cell(self._cells, name, seed, self._key(name, seed, self._plan(name, seed)))

    @property
    def _cells(self) -> Path:
        return self.out / "cells"

    def _plan(self, name: str, seed: int) -> Plan | None:
        if name in PEERS:
            return None
        return plan(SYSTEMS[name], self.settings, BUDGETS[self.budget], self.world, seed)

    def _key(self, name: str, seed: int, prepared: Plan | None) -> str:
        if prepared is None:
            return key_of([name, seed, self.world.digest, self.budget], "peers", "measures")
        dial = DIAL if name in TURNED else ()
        return key_of([prepared.whole, self.settings.evaluation.beam, dial], "measures")

    def _peer(self, name: str, seed: int) -> dict[str, Any]:
        folder = self.world.folder / "peers" / f"{name}-{seed}"
        validation, test, seconds = answers(name, self.ground, folder, seed, self.budget)
        return self.ground.measure(validation, test) | {"seconds": {"policy": seconds}}

    def _system(self, name: str, prepared: Plan) -> dict[str, Any]:
        policy, seconds = train(prepared, self.settings, self.world)
        started = time.monotonic()
        recommender, split = Recommender.load(policy), self.ground.split
        if recommender.item_ids != self.ground.item_ids:
            raise InputError(f"{policy} was trained on another catalogue; remove {self.world.folder} and start again.")
        evaluation, k = self.settings.evaluation, min(LIST, len(self.ground.item_ids))

        def rank(histories: Sequence[np.ndarray], **asked: float) -> np.ndarray:
            return recommender.rank_all(histories, k, evaluation.beam, evaluation.batch_size, "rank", **asked)

        asked = split.test_cases()[0]
        found = self.ground.measure(rank(split.validation_cases()[0]), rank(asked))
        found |= {"parameters": sum(p.numel() for p in recommender.backbone.model.parameters())}
        if name in TURNED:
            found["dial"] = [{"setting": one, **self.ground.brief(rank(asked, diversity=one))} for one in DIAL]
        if prepared.policy.tasks != "next" and not prepared.align:
            found["tasks"] = self.ground.tasks(recommender, prepared, self.world)
        if prepared.align:
            found["gain"] = align_gain(prepared, self.world)
        return found | {"seconds": seconds | {"rank": time.monotonic() - started}}


def run(
    settings: Settings, budget: BudgetName, seeds: int, systems: Sequence[str], out: Path, work: Path, command: str
) -> Path:
    """Measure `systems` with seeds 0..seeds-1, and report them and whatever else was measured before.

    An interrupted run goes on where it was.

    Returns:
        the report, Markdown.

    Raises:
        InputError: settings out of range, no such system, no seed, or peers alone of which none is installed.
    """
    check(settings)
    if unknown := sorted(set(systems) - set(PEERS) - set(SYSTEMS)):
        raise InputError(f"there is no system '{unknown[0]}'; choose among {', '.join([*PEERS, *SYSTEMS])}.")
    if seeds < 1:
        raise InputError("--seeds must be at least 1.")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    world = World(settings, work, BUDGETS[budget].users)
    world.ingest()
    bench = Bench(settings, budget, world, Ground.of(world), out)
    notes: dict[str, str] = {}
    every = [*PEERS, *SYSTEMS]
    todo = [(seed, name) for seed in range(seeds) for name in systems or every]
    try:
        for seed, name in (bar := tqdm(todo, desc="cells", unit="cell")):
            bar.set_postfix_str(f"{name}, seed {seed}")
            try:
                bench.measure(name, seed)
            except Missing as missing:
                notes[name] = str(missing)
    finally:
        stored = {name: [cell for seed in range(seeds) if (cell := bench.cell(name, seed))] for name in every}
        cells = {name: found for name, found in stored.items() if found}
        if cells:
            write_report(cells, notes, bench.ground, settings, budget, command, out)
    if set(notes) == {name for _, name in todo}:
        raise InputError(f"nothing was measured: {', '.join(f'{name} is {note}' for name, note in notes.items())}.")
    return out / "report.md"


def names_of(tables: Sequence[str]) -> list[str]:
    """The systems of some tables, each once."""
    return list(dict.fromkeys(name for table in tables for name in TABLES[table][1]))
