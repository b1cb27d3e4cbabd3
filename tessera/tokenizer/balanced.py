"""Balanced RQ-KMeans: no code of a level holds more than its share of the catalogue (OneRec, arXiv 2502.18965).

OneRec caps every cluster at w = |V| / K items, so that the first tokens do not follow the catalogue's few big families.
It fills the clusters one after another, and the last ones take what is left. Here all clusters fill at once: an item
goes to the code that is cheapest after a price on crowded codes, and the prices are those of the optimal transport plan
between items and codes of equal share (Sinkhorn's iterations; Cuturi, arXiv 1306.0895).
"""

import torch
from torch import Tensor

from tessera.tokenizer.kmeans import kmeans, squared_distances
from tessera.tokenizer.rqkmeans import RQKMeans

# Blur of the transport plan as a share of the mean squared distance: small enough to come near the optimal assignment.
BLUR = 0.05
SINKHORN_ITERATIONS, LLOYD_ITERATIONS = 60, 12


def capacity(items: int, size: int) -> int:
    """w = ceil(N / K): most items that one code of a level may hold."""
    return -(-items // size)


def prices(cost: Tensor, iterations: int = SINKHORN_ITERATIONS, start: Tensor | None = None) -> Tensor:
    """Discounts g [K] under which items that choose argmin_k C_ik - g_k fill all codes about equally; cost C [N, K].

    Sinkhorn in logarithms, a_i = 1, b_k = N / K:
    f_i = -eps log sum_k exp((g_k - C_ik) / eps), then g_k = eps log b_k - eps log sum_i exp((f_i - C_ik) / eps).
    """
    items, size = cost.shape
    eps = BLUR * cost.mean().clamp_min(1e-12)
    scaled = cost / eps
    g = torch.zeros_like(cost[0]) if start is None else start / eps
    share = torch.log(cost.new_tensor(items / size))
    for _ in range(iterations):
        f = -torch.logsumexp(g - scaled, 1)
        g = share - torch.logsumexp(f[:, None] - scaled, 0)
    return (g - g.mean()) * eps


def assign(cost: Tensor, limit: int) -> Tensor:
    """A code for every item, none for more than `limit` items; cost [N, K] -> [N], N <= limit K.

    Rounds: every open item asks for its cheapest code that has room; a code with too many takes the cheapest of them.
    A round ends with all items placed or one more code full, so there are at most K.
    """
    items, size = cost.shape
    room = torch.full((size,), limit, device=cost.device)
    assigned = torch.full((items,), -1, dtype=torch.long, device=cost.device)
    pending = torch.arange(items, device=cost.device)
    while len(pending):
        best, choice = cost[pending].masked_fill(room == 0, torch.inf).min(1)
        order = best.argsort(stable=True)
        order = order[choice[order].argsort(stable=True)]
        asked = torch.bincount(choice, minlength=size)
        rank = torch.arange(len(order), device=cost.device) - (asked.cumsum(0) - asked)[choice[order]]
        taken = torch.zeros_like(best, dtype=torch.bool)
        taken[order] = rank < room[choice[order]]
        assigned[pending[taken]] = choice[taken]
        room = room - torch.minimum(asked, room)
        pending = pending[~taken]
    return assigned


def balanced_codes(x: Tensor, centres: Tensor) -> Tensor:
    """Codes [N] of x [N, D] among centres [K, D], at most ceil(N / K) items a code, near the least total distance."""
    cost = squared_distances(x, centres)
    return assign(cost - prices(cost), capacity(len(x), len(centres)))


def balanced_kmeans(x: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Lloyd's algorithm with the bounded assignment; x [N, D] -> centres [size, D], the means of their members."""
    centres, discount = kmeans(x, size, generator, iterations=5), None
    previous: Tensor | None = None
    for _ in range(LLOYD_ITERATIONS):
        cost = squared_distances(x, centres)
        discount = prices(cost, SINKHORN_ITERATIONS if discount is None else 8, discount)
        assigned = assign(cost - discount, capacity(len(x), size))
        if previous is not None and torch.equal(assigned, previous):
            break
        previous = assigned
        member = torch.nn.functional.one_hot(assigned, size).to(x.dtype)
        counts = member.sum(0)
        centres = torch.where(counts[:, None] > 0, member.T @ x / counts.clamp_min(1.0)[:, None], centres)
    return centres


class BalancedRQKMeans(RQKMeans):
    """`RQKMeans` with bounded clusters. The bound holds for the catalogue it is fitted to; a new item takes the nearest
    codes."""

    def learn(self, z: Tensor, generator: torch.Generator) -> Tensor:
        """Codebooks [L, K, D] for latents z [N, D], each level on what the bounded levels above left over."""
        levels, size, _ = self.codebooks.shape
        residual, books = z, []
        for _ in range(levels):
            centres = balanced_kmeans(residual, size, generator)
            residual = residual - centres[balanced_codes(residual, centres)]
            books.append(centres)
        return torch.stack(books)

    def place(self, z: Tensor) -> Tensor:
        """Codes [N, L] of a whole catalogue's latents z [N, D], at most ceil(N / K) items a code at every level."""
        residual, codes = z, []
        for book in self.codebooks:
            code = balanced_codes(residual, book)
            residual = residual - book[code]
            codes.append(code)
        return torch.stack(codes, 1)
