"""Rollouts for GRPO: groups of sampled items beside transformers' `generate`, on the same weights in one process.

    python -m benchmarks.rollouts

`generate` samples with a prefix function (`do_sample`, `num_return_sequences`, `prefix_allowed_tokens_fn`), which draws
from the same distribution. The rollouts' side includes what has to be made anew after each training step: the fused
weights. Sides take turns; medians are reported.
"""

import dataclasses
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import tyro
from torch import Tensor
from tqdm import tqdm

from benchmarks.decoding import Case, random_backbone, random_codes
from tessera.decoding.index import CatalogueIndex
from tessera.policy.data import prompts
from tessera.policy.rollouts import Kind, roll_out

BASE = Case(beams=16, batch=16, hidden=128)


class Sides:
    """Both ways of sampling `case.beams` items for each of `case.batch` prompts."""

    def __init__(self, case: Case, seed: int) -> None:
        self.case = case
        generator = np.random.default_rng(seed)
        self.codes = random_codes(case.items, case.levels, case.codebook, generator)
        self.backbone, self.index = random_backbone(case, seed), CatalogueIndex.build(self.codes, case.codebook)
        histories = [generator.integers(0, case.items, case.history) for _ in range(case.batch)]
        tokens = self.backbone.sid_tokens.numpy()
        self.tokens, self.mask = prompts(histories, self.codes, tokens, self.backbone.bos)
        self.generator = torch.Generator().manual_seed(seed)
        self.allowed: dict[tuple[int, ...], list[int]] = {}
        children: dict[tuple[int, ...], set[int]] = {}
        for path in tqdm(tokens[np.arange(case.levels), self.codes].tolist(), desc="prefixes", leave=False):
            for depth in range(case.levels):
                children.setdefault(tuple(path[:depth]), set()).add(path[depth])
        self.allowed = {prefix: sorted(tokens) for prefix, tokens in children.items()}

    def rollouts(self, kind: Kind) -> Tensor:
        """This project's; [batch, group, levels] codes."""
        made = roll_out(
            self.backbone, self.index, self.tokens, self.mask, self.case.beams, kind, 1.0, self.generator
        )
        return made.codes

    @torch.inference_mode()
    def generate(self) -> Tensor:
        """transformers'; the same."""
        case, start = self.case, self.tokens.shape[1]
        model: Any = self.backbone.model
        out = model.generate(
            self.tokens, attention_mask=self.mask.long(), do_sample=True, top_k=0, top_p=1.0,
            num_return_sequences=case.beams, max_new_tokens=case.levels, eos_token_id=None,
            prefix_allowed_tokens_fn=lambda _, ids: self.allowed[tuple(ids[start:].tolist())],
        )  # fmt: skip
        codes: Tensor = out[:, start:] - self.backbone.sid_tokens[:, 0]
        return codes.view(case.batch, case.beams, case.levels)


def compare(case: Case, repeats: int, seed: int) -> dict[str, Any]:
    """Median milliseconds of each side, and how many times faster the rollouts are."""
    made = Sides(case, seed)
    sides: dict[str, Callable[[], Tensor]] = {
        "sampled": lambda: made.rollouts("sampled"), "beam": lambda: made.rollouts("beam"), "generate": made.generate,
    }  # fmt: skip
    times: dict[str, list[float]] = {name: [] for name in sides}
    items = {tuple(codes) for codes in made.codes.tolist()}
    for number in range(repeats + 1):
        for name, run in sides.items():
            started = time.perf_counter()
            codes = run()
            if number:  # the first round warms up
                times[name].append(time.perf_counter() - started)
            assert {tuple(sid) for sid in codes.flatten(0, 1).tolist()} <= items
    ms = {name: statistics.median(taken) * 1e3 for name, taken in times.items()}
    return dataclasses.asdict(case) | {
        **{f"{name}_ms": round(value, 1) for name, value in ms.items()},
        "times_faster": round(ms["generate"] / ms["sampled"], 1),
        "beam_times_faster": round(ms["generate"] / ms["beam"], 1),
    }


def main(case: Case = BASE, repeats: int = 5, seed: int = 0) -> None:
    """Print one JSON object a batch size: the case's own and one prompt alone.

    Args:
        case: the sizes; `beams` is the group.
        repeats: rounds of measurement.
        seed: seed of weights, catalogue and histories.
    """
    for one in (case, dataclasses.replace(case, batch=1)):
        print(json.dumps({"threads": torch.get_num_threads(), **compare(one, repeats, seed)}))


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
