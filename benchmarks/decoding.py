"""Constrained decoding: this engine beside transformers' `generate`, on the same weights and catalogue in one process.

    python -m benchmarks.decoding                     the base case alone and in a batch of 16
    python -m benchmarks.decoding --sweep             items, beams, history, batch and levels in turn

Four sides take turns: `generate` with a prefix function, `generate` with a vectorised logits processor, this engine,
and the floor: the engine's bare forward of the same numbers of tokens. All score alike (a softmax over a level's
codes, which `generate` gets from a logits processor), so that their answers can be compared item by item.
"""

import dataclasses
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import tyro
from torch import Tensor
from tqdm import tqdm
from transformers import LogitsProcessor, LogitsProcessorList, PrefixConstrainedLogitsProcessor

from tessera.config import PolicySettings
from tessera.decoding.forward import Prompts, decoder_of
from tessera.decoding.index import CatalogueIndex
from tessera.decoding.search import CodeHead, beam_search, columns
from tessera.policy import backbone as backbones
from tessera.policy.backbone import Backbone
from tessera.policy.data import prompts

PREFIX_FUNCTION_ITEMS = 1_000_000
"""Largest catalogue that the prefix function's dictionary is built for; it takes a kilobyte an item."""
Answer = list[list[tuple[int, ...]]]


@dataclass(frozen=True)
class Case:
    """Size of a comparison."""

    items: int = 12_000
    """Items in the catalogue."""
    beams: int = 20
    """Width of the search, and number of answers."""
    history: int = 20
    """Items in the prompt."""
    batch: int = 1
    """Requests decoded together."""
    levels: int = 3
    """Codes a SID."""
    codebook: int = 256
    """Codes a level."""
    hidden: int = 256
    """Width of the model."""
    layers: int = 4
    """Layers of the model."""


SWEEP: dict[str, list[int]] = {
    "items": [10_000, 100_000, 1_000_000, 10_000_000],
    "beams": [10, 20, 50, 100, 200],
    "history": [10, 20, 50, 100, 200],
    "batch": [1, 4, 16, 64],
    "levels": [3, 4],
}


def random_codes(items: int, levels: int, codebook: int, generator: np.random.Generator) -> np.ndarray:
    """Codes [items, levels] of a catalogue in which no two items share all."""
    flat = generator.integers(0, codebook**levels, int(items * 1.6) + 16)
    if items * 4 > codebook**levels:  # too full to draw with replacement
        flat = generator.permutation(codebook**levels)
    flat = generator.permutation(np.unique(flat))[:items]
    return np.stack(np.unravel_index(flat, (codebook,) * levels), axis=1)


def random_backbone(case: Case, seed: int) -> Backbone:
    """A model of the case's size that was never trained."""
    settings = PolicySettings(hidden=case.hidden, layers=case.layers, text_vocabulary=300)
    backbone = backbones.build(settings, ["text"], case.levels, case.codebook, seed)
    with torch.no_grad():  # fresh weights score all items nearly alike; spread them
        for parameter in backbone.model.eval().parameters():
            parameter.mul_(3.0)
    return backbone


class TimedIndex(CatalogueIndex):
    """Adds up the seconds that the constraint takes within a search."""

    seconds = 0.0

    def constrain(self, depth: int, nodes: Tensor, logp: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As in the index."""
        started = time.perf_counter()
        found = super().constrain(depth, nodes, logp)
        self.seconds += time.perf_counter() - started
        return found


class LevelSoftmax(LogitsProcessor):
    """Turns `generate`'s softmax over the vocabulary into one over the level's codes."""

    def __init__(self, sid_tokens: Tensor, start: int) -> None:
        self.sid_tokens, self.start = sid_tokens, start

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores [rows, vocabulary], log-probabilities of which only the level's will be looked at."""
        level = scores[:, self.sid_tokens[input_ids.shape[1] - self.start]]
        return scores - level.logsumexp(1, keepdim=True)


class VectorisedTrie(LogitsProcessor):
    """Masks all beams at once from the index's arrays, walking down from the root at each step."""

    def __init__(self, index: CatalogueIndex, sid_tokens: Tensor, start: int) -> None:
        self.index, self.sid_tokens, self.start = index, sid_tokens, start

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores [rows, vocabulary] with -inf wherever no item goes on."""
        nodes = torch.zeros(len(input_ids), dtype=torch.int64)
        depth = input_ids.shape[1] - self.start
        for level in range(depth):
            codes, child, missing = self.index.children(level, nodes)
            code = input_ids[:, self.start + level, None] - self.sid_tokens[level, 0]
            nodes = child.gather(1, ((codes == code) & ~missing).int().argmax(1, keepdim=True)).squeeze(1)
        codes, _, missing = self.index.children(depth, nodes)
        tokens = self.sid_tokens[depth][codes]
        masked = torch.full_like(scores, -torch.inf)
        # Slots beyond a node's last child repeat a code that may be there: write them first, to nothing.
        kept = scores.gather(1, tokens).masked_fill(missing, -torch.inf)
        return masked.scatter_reduce_(1, tokens, kept, "amax")


class Comparison:
    """The four sides on one case."""

    def __init__(self, case: Case, seed: int) -> None:
        self.case = case
        generator = np.random.default_rng(seed)
        self.codes = random_codes(case.items, case.levels, case.codebook, generator)
        self.backbone = random_backbone(case, seed)
        self.model = self.backbone.model
        started = time.perf_counter()
        built = TimedIndex.build(self.codes, case.codebook)
        self.build_s, self.index = time.perf_counter() - started, built
        histories = [generator.integers(0, case.items, case.history) for _ in range(case.batch)]
        tokens, mask = prompts(histories, self.codes, self.backbone.sid_tokens.numpy(), self.backbone.bos)
        self.prompts = Prompts(tokens, mask.sum(1), torch.zeros(case.batch, dtype=torch.int64))
        self.decoder, self.head = decoder_of(self.model), CodeHead.of(self.backbone)

    def engine(self) -> Answer:
        """This engine."""
        case = self.case
        found = beam_search(self.decoder, self.head, self.index, self.prompts, k=case.beams, beams=case.beams)
        return [[tuple(self.codes[row].tolist()) for row in rows] for rows in found.rows.tolist()]

    @torch.inference_mode()
    def floor(self) -> None:
        """The forward of the same numbers of tokens, and nothing else."""
        case = self.case
        cache = self.decoder.cache(case.batch, columns(self.prompts, self.index, case.beams))
        self.decoder.prefill(self.prompts, cache)
        for depth in range(1, case.levels):
            count = min(case.beams, self.index.nodes(depth))
            tokens = self.backbone.sid_tokens[depth - 1, :count].expand(case.batch, -1)
            used = self.prompts.tokens.shape[1] + count * depth
            visible = torch.ones(case.batch, count, used, dtype=torch.bool)
            self.decoder.extend(tokens, self.prompts.length + depth - 1, visible, cache)

    def generate(self) -> Callable[[], Answer]:
        """transformers with `PrefixConstrainedLogitsProcessor`, which is what `prefix_allowed_tokens_fn` makes."""
        children: dict[tuple[int, ...], set[int]] = {}
        paths = self.backbone.sid_tokens.numpy()[np.arange(self.case.levels), self.codes].tolist()
        for path in tqdm(paths, desc="dictionary of prefixes", leave=False):
            for depth in range(self.case.levels):
                children.setdefault(tuple(path[:depth]), set()).add(path[depth])
        allowed = {prefix: sorted(tokens) for prefix, tokens in children.items()}
        start = self.prompts.tokens.shape[1]
        constrain = PrefixConstrainedLogitsProcessor(
            lambda _, ids: allowed[tuple(ids[start:].tolist())], num_beams=self.case.beams
        )
        return self._generate([LevelSoftmax(self.backbone.sid_tokens, start), constrain])

    def vectorised(self) -> Callable[[], Answer]:
        """transformers with all beams masked at once."""
        start, tokens = self.prompts.tokens.shape[1], self.backbone.sid_tokens
        return self._generate([LevelSoftmax(tokens, start), VectorisedTrie(self.index, tokens, start)])

    def _generate(self, processors: list[LogitsProcessor]) -> Callable[[], Answer]:
        case, start = self.case, self.prompts.tokens.shape[1]
        first = self.backbone.sid_tokens[:, 0]

        def run() -> Answer:
            out: Any = self.model.generate(
                self.prompts.tokens, attention_mask=self.prompts.real.long(), num_beams=case.beams,
                num_return_sequences=case.beams, max_new_tokens=case.levels, do_sample=False, eos_token_id=None,
                logits_processor=LogitsProcessorList(processors),
            )  # fmt: skip
            found = (out[:, start:] - first).view(case.batch, case.beams, case.levels)
            return [[tuple(sid) for sid in row] for row in found.tolist()]

        return run


def compare(case: Case, repeats: int, seed: int) -> dict[str, Any]:
    """Measure one case: medians of interleaved runs."""
    setting = Comparison(case, seed)
    sides: dict[str, Callable[[], Any]] = {"engine": setting.engine, "floor": setting.floor}
    if case.items <= PREFIX_FUNCTION_ITEMS:
        sides["generate"] = setting.generate()
    sides["vectorised"] = setting.vectorised()
    answers = {name: run() for name, run in sides.items()}
    times: dict[str, list[float]] = {name: [] for name in sides}
    setting.index.seconds, engine_s = 0.0, 0.0
    for number in range(repeats):
        for name, run in sides.items():
            # generate is slow and its time varies little beside the ratio; it takes part in every third round.
            if name in ("generate", "vectorised") and number % 3:
                continue
            for _ in range(5 if name in ("engine", "floor") else 1):
                started = time.perf_counter()
                run()
                times[name].append(time.perf_counter() - started)
    engine_s = sum(times["engine"])
    ms = {name: statistics.median(taken) * 1e3 for name, taken in times.items()}
    same = all(answers[name] == answers["engine"] for name in answers if name != "floor")
    return dataclasses.asdict(case) | {
        **{f"{name}_ms": round(value, 2) for name, value in ms.items()},
        "ratio_vs_generate": round(ms["generate"] / ms["engine"], 2) if "generate" in ms else None,
        "ratio_vs_vectorised": round(ms["vectorised"] / ms["engine"], 2),
        "fraction_of_floor": round(ms["floor"] / ms["engine"], 3),
        "times_floor": round(ms["engine"] / ms["floor"], 3),
        "constraint_share": round(setting.index.seconds / engine_s, 4),
        "index_build_s": round(setting.build_s, 3),
        "index_mb": round(setting.index.nbytes / 1e6, 2),
        "same_topk": same,
    }


def growth(case: Case, repeats: int, seed: int) -> dict[str, Any]:
    """The engine on the sweep's smallest and largest catalogue in turns, since the machine's pace may change."""
    sizes = min(SWEEP["items"]), max(SWEEP["items"])
    sides = [Comparison(dataclasses.replace(case, items=items), seed) for items in sizes]
    times: list[list[float]] = [[], []]
    for _ in range(20 * repeats):
        for side, taken in zip(sides, times, strict=True):
            started = time.perf_counter()
            side.engine()
            taken.append((time.perf_counter() - started) * 1e3)
    few, many = (statistics.median(taken[repeats:]) for taken in times)
    return {"items": sizes, "engine_ms": [round(few, 2), round(many, 2)], "ratio": round(many / few, 3)}


COLUMNS = ("items", "beams", "history", "batch", "levels", "generate_ms", "vectorised_ms", "engine_ms", "floor_ms",
           "ratio_vs_generate", "ratio_vs_vectorised", "times_floor", "constraint_share", "index_build_s", "index_mb",
           "same_topk")  # fmt: skip


def main(case: Case = Case(), sweep: bool = False, repeats: int = 9, seed: int = 0) -> None:
    """Print a table and, as last line, one JSON object.

    Args:
        case: the base case.
        sweep: vary items, beams, history, batch and levels, one at a time.
        repeats: rounds of measurement; medians are reported.
        seed: seed of weights, catalogue and histories.
    """
    cases = [case, dataclasses.replace(case, batch=16)]
    if sweep:
        varied = [dataclasses.replace(case, **{name: value}) for name, values in SWEEP.items() for value in values]
        cases += [one for one in varied if one not in cases]
    print("  ".join(f"{name:>{max(7, len(name))}}" for name in COLUMNS))
    rows = []
    for one in cases:
        rows.append(compare(one, repeats, seed))
        print("  ".join(f"{rows[-1].get(name, '-')!s:>{max(7, len(name))}}" for name in COLUMNS), flush=True)
    more: dict[str, Any] = {"sweep": rows[2:]}
    if sweep:
        grown = more["growth"] = growth(case, repeats, seed)
        print("engine on {} and {} items in turns: {} and {} ms".format(*grown["items"], *grown["engine_ms"]))
    print(json.dumps({"threads": torch.get_num_threads(), **rows[0], "batch_16": rows[1], **more}))


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
