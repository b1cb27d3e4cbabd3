"""Collaborative item embeddings from purchases: LightGCN (He et al., arXiv 2002.02126), compact.

Semantic Convergence (arXiv 2412.13771) quantizes what purchases say of an item and aligns it to what its text says.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from tessera.errors import InputError
from tessera.schema import read_table, write_table

WIDTH, LAYERS, STEPS = 64, 2, 300
LEARNING_RATE, DECAY = 2e-2, 1e-4


def run(embeddings: Path, splits: Path, out: Path, seed: int) -> dict[str, Any]:
    """Write an `embeddings` table whose second vector is collaborative: what stood in `image` gives way to it.

    Only training purchases are read. An item that nobody bought in training has null there and is quantized from its
    text (`aligned.AlignedRQVAE`). The same inputs and seed give the same table on the same machine.

    Returns:
        items, bought (items with a collaborative vector), loss (of the last step), seconds.

    Raises:
        InputError: a table is unusable, or no training purchase is of a known item.
    """
    started = time.monotonic()
    table = read_table("embeddings", embeddings).sort_by("item_id")
    position = {item: row for row, item in enumerate(table["item_id"].to_pylist())}
    histories = read_table("splits", splits).sort_by("user_id")["train"].to_pylist()
    known = [[position[item] for item in history if item in position] for history in histories]
    vectors, bought, loss = lightgcn(known, len(position), seed)
    column = pa.array(
        [row if seen else None for row, seen in zip(vectors.tolist(), bought, strict=True)], pa.list_(pa.float32())
    )
    write_table("embeddings", table.set_column(table.column_names.index("image"), "image", column), out)
    seconds = round(time.monotonic() - started, 3)
    return {"items": len(position), "bought": int(bought.sum()), "loss": loss, "seconds": seconds}


def lightgcn(
    histories: Sequence[Sequence[int]], items: int, seed: int, width: int = WIDTH, steps: int | None = None
) -> tuple[NDArray[np.float32], NDArray[np.bool_], float]:
    """Item embeddings [items, width], which were bought at all [items], and the last loss.

    Args:
        histories: rows of items for each user.

    Raises:
        InputError: there is no purchase.
    """
    pairs = np.array([(u, i) for u, history in enumerate(histories) for i in set(history)], dtype=np.int64)
    if not len(pairs):
        raise InputError("no training purchase is of an item with an embedding; collaborative vectors need purchases.")
    pairs = pairs[np.lexsort(pairs.T[::-1])]
    users, bought = torch.from_numpy(pairs[:, 0]), torch.from_numpy(pairs[:, 1])
    graph = adjacency(users, bought, len(histories), items)
    generator = torch.Generator().manual_seed(seed)
    start = torch.nn.Parameter(0.1 * torch.randn(len(histories) + items, width, generator=generator))
    optimizer = torch.optim.Adam([start], lr=LEARNING_RATE)
    loss = start.new_zeros(())
    for _ in tqdm(range(STEPS if steps is None else steps), desc="LightGCN", unit="step"):
        final = propagate(graph, start, LAYERS)
        others = torch.randint(items, (len(pairs),), generator=generator)
        loss = bpr(final, users, len(histories) + bought, len(histories) + others)
        loss = loss + DECAY * start.square().sum(1).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        vectors = propagate(graph, start, LAYERS)[len(histories) :].numpy()
    seen = np.zeros(items, dtype=bool)
    seen[pairs[:, 1]] = True
    return vectors.astype(np.float32), seen, loss.item()


def adjacency(users: Tensor, bought: Tensor, user_count: int, item_count: int) -> Tensor:
    """Sparse [U + I, U + I] with 1 / sqrt(|N_u| |N_i|) for each distinct purchase (u, i), both ways (equation 3)."""
    weight = (torch.bincount(users)[users] * torch.bincount(bought)[bought]).float().rsqrt()
    rows, columns = torch.cat([users, bought + user_count]), torch.cat([bought + user_count, users])
    shape = (user_count + item_count, user_count + item_count)
    places = torch.stack([rows, columns])
    return torch.sparse_coo_tensor(places, weight.repeat(2), shape, check_invariants=True).coalesce()


def propagate(graph: Tensor, start: Tensor, layers: int) -> Tensor:
    """Mean of e^(0), ..., e^(K) with e^(k+1) = A e^(k); start [U + I, D], the same shape back (equations 3 and 4)."""
    total, layer = start, start
    for _ in range(layers):
        layer = torch.sparse.mm(graph, layer)
        total = total + layer
    return total / (layers + 1)


def bpr(final: Tensor, users: Tensor, bought: Tensor, others: Tensor) -> Tensor:
    """L = -mean ln sigmoid(e_u . e_i - e_u . e_j) over users [B], items bought [B] and others [B], rows of `final`."""
    of, likes, not_bought = (torch.nn.functional.embedding(rows, final) for rows in (users, bought, others))
    return torch.nn.functional.softplus((of * (not_bought - likes)).sum(1)).mean()
