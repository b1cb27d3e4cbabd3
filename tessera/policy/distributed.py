"""Training in several processes that torchrun started: each takes its share of a step's rows, gradients are summed.

A step's loss is a mean over the rows (or targets) of all processes, so a process weighs what it computes by its share;
the sum of the gradients is then the gradient of the whole, and all processes take the same step as one alone would.
Without torchrun there is one process, and everything here does nothing.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from tessera.errors import InputError

T = TypeVar("T")
PATIENCE = timedelta(days=2)
"""How long others wait for the first, which alone validates; torchrun ends them all if one fails."""
APART = 1_000_000_007
"""Between the seeds of two processes' generators."""


@contextmanager
def joined() -> Iterator[None]:
    """Within, the processes that torchrun started know each other, each with a GPU of its own where there are GPUs.

    Raises:
        InputError: torchrun may restart them, and would let new ones meet by the addresses of dead ones.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    # What torchrun shares with its processes outlives them. Restarted ones then failed or hung every other time.
    if os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0" and os.environ["TORCHELASTIC_USE_AGENT_STORE"] == "True":
        raise InputError(
            "torchrun --max-restarts needs --standalone or --rdzv-backend c10d, and in its environment "
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1; restarted processes would look for dead ones otherwise."
        )
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("cpu:gloo,cuda:nccl", timeout=PATIENCE)
    else:
        dist.init_process_group("gloo", timeout=PATIENCE)
    try:
        yield
    finally:
        dist.destroy_process_group()


def together() -> bool:
    """Whether there are other processes."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if together() else 0


def first() -> bool:
    """Whether this is the process that validates, writes files and draws bars."""
    return rank() == 0


def share(count: int) -> tuple[np.ndarray, float]:
    """Which of a step's `count` rows are this process's, and their part of all.

    A process that none are left for takes the first row at no weight, because all must take part in every step.
    """
    if not together():
        return np.arange(count), 1.0
    mine = np.arange(rank(), count, dist.get_world_size())
    return (mine, len(mine) / count) if len(mine) else (np.zeros(1, np.int64), 0.0)


def sum_gradients(parameters: Iterable[Tensor]) -> None:
    """Add up every parameter's gradient over the processes, in place."""
    if not together():
        return
    waiting = []
    for parameter in parameters:
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.contiguous()
        parameter.grad = gradient
        waiting.append(dist.all_reduce(gradient, async_op=True))
    for one in waiting:
        one.wait()


def total(values: Tensor) -> Tensor:
    """The sum of each value over the processes."""
    if together():
        values = values.clone()
        dist.all_reduce(values)
    return values


def from_first(make: Callable[[], T]) -> T:
    """What the first process makes of it; the others wait and get a copy."""
    if not together():
        return make()
    box: list[Any] = [make() if first() else None]
    dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    return box[0]


def copy_from_first(tensors: Iterable[Tensor]) -> None:
    """Overwrite tensors with those of the first process."""
    if not together():
        return
    with torch.no_grad():
        for tensor in tensors:
            sent = tensor.detach().clone(memory_format=torch.contiguous_format)
            dist.broadcast(sent, src=0)
            tensor.copy_(sent)  # unlike a broadcast in place, the decoder notices this
