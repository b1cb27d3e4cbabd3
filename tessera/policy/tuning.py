"""The loop that GRPO and S-DPO share: steps from a supervised policy on, which stays at hand as the reference."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from tessera.policy import checkpoints, distributed
from tessera.policy.checkpoints import Progress

log = logging.getLogger(__name__)
WARMUP = 0.05
DECIDES = "ndcg@10"


class Reference:
    """The trained weights as they were at the start; adapters alone where adapters are all that is trained."""

    def __init__(self, trained: Mapping[str, Tensor]) -> None:
        self.trained = trained
        self.start = {name: parameter.detach().clone() for name, parameter in trained.items()}

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within, the model is the reference; nothing is copied."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for name, parameter in self.trained.items():
            parameter.data, self.start[name] = self.start[name], parameter.data


Step = Callable[[int, np.ndarray, Reference], Iterator[tuple[Tensor, dict[str, Tensor]]]]


def generator_of(device: torch.device, seed: int, number: int) -> torch.Generator:
    """The generator of a step, another one in each process."""
    return torch.Generator(device).manual_seed(seed * 1_000_003 + number + distributed.APART * distributed.rank())


def precision(device: torch.device) -> AbstractContextManager[object]:
    """bfloat16 on a GPU, where supervised training uses it too."""
    return torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext()


def tune(
    model: PreTrainedModel,
    step: Step,
    order: Sequence[np.ndarray],
    learning_rate: float,
    validate_every: int,
    validate: Callable[[], dict[str, float]],
    work: Path,
    fingerprint: str,
    name: str,
) -> Progress:
    """Take a step for each batch of `order` and leave the weights with the best NDCG@10 in the model.

    The start's are left where none were better.

    Dropout is off throughout: rollouts and likelihoods are those of the policy that is served. The rate rises over the
    first 5% of the steps and stays.

    Args:
        step: of a step's number, its cases and the reference, yields losses, each with values to log, all means over
            the cases; the optimizer acts on a loss before the next is asked for. It must draw from `generator_of` the
            step, so that a killed run which is started again with the same `fingerprint` ends with the same weights.
        order: the numbers of each step's cases; under torchrun each process is given its share of them.
        work: folder of the checkpoints, of this training alone.

    Returns:
        progress: `epoch` counts steps, and the curve holds the start (0) and each validation.
    """
    model.eval()
    trained = {key: p for key, p in model.named_parameters() if p.requires_grad}
    reference = Reference(trained)
    optimizer = torch.optim.AdamW(trained.values(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.0)
    progress = checkpoints.resumed(work, fingerprint, trained, optimizer)
    steps, first = len(order), distributed.first()
    if not progress.curve:
        measured = distributed.from_first(validate)
        progress.best = measured[DECIDES]
        progress.curve.append({"epoch": 0, **measured})
    seen: list[dict[str, Tensor]] = []
    bar = tqdm(total=steps, initial=progress.epoch, desc=name, unit="step", disable=not first)
    for number in range(progress.epoch, steps):
        optimizer.param_groups[0]["lr"] = learning_rate * min(1.0, (number + 1) / (WARMUP * steps))
        mine, part = distributed.share(len(order[number]))
        for loss, values in step(number, order[number][mine], reference):
            optimizer.zero_grad(set_to_none=True)
            (loss * part).backward()
            distributed.sum_gradients(trained.values())
            torch.nn.utils.clip_grad_norm_(trained.values(), 1.0)
            optimizer.step()
            seen.append({key: value.detach() * part for key, value in {"loss": loss, **values}.items()})
        bar.update()
        progress.epoch = number + 1
        if progress.epoch % validate_every and progress.epoch < steps:
            continue
        means = {key: float(distributed.total(torch.stack([one[key] for one in seen])).mean()) for key in seen[0]}
        measured = means | distributed.from_first(validate)
        seen.clear()
        progress.curve.append({"epoch": progress.epoch, **measured})
        bar.set_postfix({key: f"{measured[key]:.4f}" for key in ("loss", DECIDES)})
        if measured[DECIDES] > progress.best:
            progress.best, progress.best_epoch = measured[DECIDES], progress.epoch
            if first:
                checkpoints.write_best(work, progress, trained)
        if first:
            checkpoints.write(work, progress, trained, optimizer)
    bar.close()
    if first and progress.best_epoch:
        checkpoints.load_best(work, progress, trained)
    elif first:
        checkpoints.load(trained, reference.start)
    distributed.copy_from_first(trained.values())
    log.info("%s: step %d of %d was best", name, progress.best_epoch, progress.epoch)
    return progress
