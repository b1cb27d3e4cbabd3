"""K-means and its residual form in plain torch: RQ-KMeans itself, and the initialisation of RQ-VAE's codebooks."""

import math

import torch
from torch import Tensor

BLOCK = 65_536
"""Rows whose distances to all centres are in memory at once."""


def squared_distances(x: Tensor, centres: Tensor) -> Tensor:
    """||x_i - c_k||^2 as one matrix product; x [N, D], centres [K, D] -> [N, K], not below 0."""
    cross = torch.addmm((centres * centres).sum(1), x, centres.T, beta=1.0, alpha=-2.0)
    return (cross + (x * x).sum(1, keepdim=True)).clamp_min_(0.0)


def nearest_centres(x: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """Squared distance to the nearest centre [N], and which it is [N]; a tie goes to the lowest."""
    found = [squared_distances(part, centres).min(1) for part in x.split(BLOCK)]
    return torch.cat([one.values for one in found]), torch.cat([one.indices for one in found])


def kmeans(
    x: Tensor, size: int, generator: torch.Generator, iterations: int = 25, start: Tensor | None = None
) -> Tensor:
    """Lloyd's algorithm from `start` [size, D] or k-means++ (Arthur and Vassilvitskii, 2007); x [N, D] -> [size, D].

    With fewer distinct rows than `size`, every distinct row is a centre and the spare centres repeat the first.
    """
    centres = _plus_plus(x, size, generator) if start is None else start
    previous: Tensor | None = None
    for _ in range(iterations):
        nearest, assigned = nearest_centres(x, centres)
        if previous is not None and torch.equal(assigned, previous):
            break
        previous = assigned
        counts, sums = x.new_zeros(size), torch.zeros_like(centres)
        for part, codes in zip(x.split(BLOCK), assigned.split(BLOCK), strict=True):
            # Sums by a matrix product and not by scatter: the same bits on every run, on a GPU too.
            member = torch.nn.functional.one_hot(codes, size).to(x.dtype)
            counts += member.sum(0)
            sums += member.T @ part
        centres = torch.where(counts[:, None] > 0, sums / counts.clamp_min(1.0)[:, None], centres)
        empty = (counts == 0).nonzero().squeeze(1)
        farthest = nearest.topk(min(len(empty), len(x))).indices
        farthest = farthest[nearest[farthest] > 1e-9 * x.square().sum(1).mean()]
        centres[empty[: len(farthest)]] = x[farthest]
    return centres


def _plus_plus(x: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Each next centre is a row drawn with probability proportional to its squared distance to the centres so far.

    The greedy form: of several rows drawn, the one that lowers the sum of squared distances most.
    """
    draws = torch.rand(size, 2 + int(math.log(size)), generator=generator, dtype=torch.float64).to(x.device)
    centres = x[(draws[0, 0] * len(x)).long()].repeat(size, 1)
    nearest = squared_distances(x, centres[:1]).squeeze(1).double()
    for k in range(1, size):
        total = nearest.cumsum(0)
        if total[-1] <= 0:
            break
        drawn = torch.searchsorted(total, draws[k] * total[-1], right=True).clamp_max(len(x) - 1)
        left = torch.minimum(nearest[:, None], squared_distances(x, x[drawn]).double())
        best = left.sum(0).argmin()
        centres[k], nearest = x[drawn[best]], left[:, best]
    return centres


def residual_kmeans(z: Tensor, levels: int, size: int, generator: torch.Generator, iterations: int = 25) -> Tensor:
    """K-means level by level, each on what the levels above left over; z [N, D] -> codebooks [levels, size, D]."""
    residual, codebooks = z, []
    for _ in range(levels):
        centres = kmeans(residual, size, generator, iterations)
        residual = residual - centres[nearest_centres(residual, centres)[1]]
        codebooks.append(centres)
    return torch.stack(codebooks)


def quantize(z: Tensor, codebooks: Tensor) -> tuple[Tensor, Tensor]:
    """Residual quantization: c_l = argmin_k ||r_l - e_lk||, r_(l+1) = r_l - e_(l,c_l), r_1 = z.

    Zeghidour et al., SoundStream (arXiv 2107.03312), Algorithm 1; for SIDs: Rajput et al., TIGER (arXiv 2305.05065),
    section 3.1. A tie goes to the lowest code.

    Args:
        z: [N, D]; codebooks: [L, K, D].

    Returns:
        codes [N, L] int64 and the quantized vectors [N, D], the sum of the chosen codebook rows.
    """
    residual, codes = z, []
    for book in codebooks:
        code = nearest_centres(residual, book)[1]
        residual = residual - book[code]
        codes.append(code)
    chosen = torch.stack(codes, 1)
    return chosen, lookup(chosen, codebooks)


def lookup(codes: Tensor, codebooks: Tensor) -> Tensor:
    """Sum of the codebook rows that codes [N, L] name -> [N, D]."""
    return torch.stack([book[codes[:, level]] for level, book in enumerate(codebooks)]).sum(0)
