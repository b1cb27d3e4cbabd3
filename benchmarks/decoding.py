"""Constrained decoding: this engine beside transformers' `generate` with a prefix function, same weights, same run.

    python -m benchmarks.decoding [--items 12000 --beams 20 --history 20 --repeats 5]
"""

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import tyro

from tessera.config import PolicySettings
from tessera.decoding.index import CatalogueIndex
from tessera.decoding.search import beam_search
from tessera.policy import backbone as backbones
from tessera.policy.data import prompts

LEVELS, CODEBOOK = 3, 256


@dataclass
class Case:
    """Size of the comparison."""

    items: int = 12_000
    """Items in the catalogue."""
    beams: int = 20
    """Width of the search, and number of answers."""
    history: int = 20
    """Items in the prompt."""
    repeats: int = 5
    """Timed runs; the median is reported."""
    seed: int = 0
    """Seed of weights and catalogue."""


def main(case: Case) -> None:
    """Time both, compare their answers, print the ratio."""
    flat = np.random.default_rng(case.seed).choice(CODEBOOK**LEVELS, case.items, replace=False)
    codes = np.stack(np.unravel_index(flat, (CODEBOOK,) * LEVELS), axis=1)
    settings = PolicySettings(hidden=256, layers=4, text_vocabulary=300)
    backbone = backbones.build(settings, ["text"], LEVELS, CODEBOOK, case.seed)
    backbone.model.eval()
    index = CatalogueIndex.build(codes, CODEBOOK)
    history = np.arange(case.history)
    tokens, mask = prompts([history], codes, backbone.sid_tokens.numpy(), backbone.bos)

    def engine() -> list[tuple[int, ...]]:
        found = beam_search(
            backbone.model, backbone.sid_tokens, index, tokens, mask, k=case.beams, beams=case.beams
        )
        return [tuple(codes[row]) for row in found.rows[0].tolist()]

    generate = _generate(backbone, codes, tokens, case.beams)
    answers = {"transformers generate": generate(), "this engine": engine()}
    sides = (("transformers generate", generate), ("this engine", engine))
    seconds = {name: _median(run, case.repeats) for name, run in sides}
    print(f"{'':24}{'ms':>10}")
    for name, value in seconds.items():
        print(f"{name:24}{value * 1e3:10.1f}")
    # generate normalises over the whole vocabulary and the engine over a level's codes, so the order may differ.
    first, second = (set(found) for found in answers.values())
    result = {
        "items": case.items,
        "beams": case.beams,
        "prompt_tokens": tokens.shape[1],
        "threads": torch.get_num_threads(),
        "generate_ms": round(seconds["transformers generate"] * 1e3, 2),
        "engine_ms": round(seconds["this engine"] * 1e3, 2),
        "ratio_vs_generate": round(seconds["transformers generate"] / seconds["this engine"], 2),
        "shared_topk": round(len(first & second) / case.beams, 3),
    }
    print(json.dumps(result))


def _generate(
    backbone: backbones.Backbone, codes: np.ndarray, prompt: torch.Tensor, beams: int
) -> Callable[[], list[tuple[int, ...]]]:
    children: dict[tuple[int, ...], set[int]] = {}
    for path in backbone.sid_tokens.numpy()[np.arange(LEVELS), codes].tolist():
        for depth in range(LEVELS):
            children.setdefault(tuple(path[:depth]), set()).add(path[depth])
    allowed = {prefix: sorted(tokens) for prefix, tokens in children.items()}
    start = prompt.shape[1]
    code_of = {int(token): place % CODEBOOK for place, token in enumerate(backbone.sid_tokens.flatten())}

    def run() -> list[tuple[int, ...]]:
        out = backbone.model.generate(
            prompt,
            num_beams=beams,
            num_return_sequences=beams,
            max_new_tokens=LEVELS,
            do_sample=False,
            prefix_allowed_tokens_fn=lambda _, ids: allowed[tuple(ids[start:].tolist())],
            eos_token_id=None,
        )
        return [tuple(code_of[token] for token in row[start:].tolist()) for row in out]

    return run


def _median(run: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


if __name__ == "__main__":
    main(tyro.cli(Case, description=__doc__))
