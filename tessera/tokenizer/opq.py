"""OPQ, the peer with parallel codes: one code for each part of a rotated vector, none depends on another.

Ge et al., Optimized Product Quantization (arXiv 1311.4055): the parametric solution as the start, then the
non-parametric one.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tessera.tokenizer.kmeans import kmeans, quantize
from tessera.tokenizer.rqkmeans import RQKMeans

ROUNDS = 25


class OPQ(RQKMeans):
    """Product quantization after a learned rotation of the principal directions.

    The latent space is cut into L parts of nearly equal width, and codebook l is zero outside part l. So the row of
    codebook l nearest to a residual is the one nearest in part l alone, subtracting it leaves the other parts as they
    were, and the sum of the rows is their concatenation: product quantization in the residual quantizer's own terms.
    """

    def fit(self, x: Tensor, generator: torch.Generator) -> "OPQ":
        """Minimise sum_i ||R'z_i - q(R'z_i)||^2 over rotations R and codebooks, z the principal components of x.

        Alternates a step of k-means in every part with R fixed, and the best R with the codes fixed (`procrustes`).

        Args:
            x: [N, Dt + Di], balanced.
        """
        levels, size, width = self.codebooks.shape
        self.basis.copy_(self.principal(x))
        z = x @ self.basis
        parts = np.array_split(np.arange(width), levels)
        order = allocate(z.double().square().mean(0).cpu().numpy(), [len(part) for part in parts])
        turn = torch.eye(width, device=z.device)[:, torch.from_numpy(order).to(z.device)]
        for start in range(ROUNDS + 1):
            turned = z @ turn
            for book, part in zip(self.codebooks, parts, strict=True):
                inside = slice(int(part[0]), int(part[-1]) + 1)
                begin = book[:, inside].clone() if start else None
                book[:, inside] = kmeans(turned[:, inside], size, generator, 1 if start else 10, begin)
            if start < ROUNDS:
                turn = procrustes(z, quantize(turned, self.codebooks)[1])
        self.basis.copy_(self.basis @ turn)
        return self


def allocate(variance: NDArray[np.float64], widths: list[int]) -> NDArray[np.int64]:
    """Directions [D] in the order of the parts that take them, so that the parts' products of variances are near equal.

    From the largest variance [D] down, each goes to the part with room whose product is smallest so far.
    """
    logs = np.log(np.maximum(variance, 1e-12) / max(variance.max(), 1e-12)) + 30.0  # above 0: taking one adds
    parts: list[list[int]] = [[] for _ in widths]
    for direction in np.argsort(-variance, kind="stable"):
        free = [p for p, width in enumerate(widths) if len(parts[p]) < width]
        least = min(free, key=lambda p: float(logs[parts[p]].sum()))
        parts[least].append(int(direction))
    return np.array([direction for part in parts for direction in part], dtype=np.int64)


def procrustes(z: Tensor, y: Tensor) -> Tensor:
    """The rotation R [D, D] of least sum_i ||R'z_i - y_i||^2: U V' of the singular vectors of Z'Y; z, y [N, D]."""
    u, _, vt = torch.linalg.svd(z.double().T @ y.double())
    return (u @ vt).to(z.dtype)
