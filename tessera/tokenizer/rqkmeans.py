"""RQ-KMeans: residual k-means on a fixed fusion (QARM, arXiv 2411.11739, and OneRec, arXiv 2502.18965)."""

import torch
from torch import Tensor, nn

from tessera.tokenizer.fusion import Balance
from tessera.tokenizer.kmeans import BLOCK, quantize, residual_kmeans


class RQKMeans(nn.Module):
    """Residual k-means after PCA of the balanced [text; image].

    K-means has no gradient to learn CMSA's projections with, so the fusion is their fixed counterpart: the `latent_dim`
    directions that keep most of the balanced pair's variance. The basis is orthonormal, so its transpose is the
    decoder. Few directions are better than many: in hundreds of them residuals are nearly equidistant, and most items
    of the lower levels end in the one code near zero.
    """

    basis: Tensor
    codebooks: Tensor

    def __init__(self, text_dim: int, image_dim: int, latent_dim: int, levels: int, size: int) -> None:
        super().__init__()
        self.balance = Balance(text_dim, image_dim)
        width = min(latent_dim, text_dim + image_dim)
        self.register_buffer("basis", torch.zeros(text_dim + image_dim, width))
        self.register_buffer("codebooks", torch.zeros(levels, size, width))

    def fit(self, x: Tensor, generator: torch.Generator) -> "RQKMeans":
        """Fit basis and codebooks to balanced inputs x [N, Dt + Di]."""
        self.basis.copy_(self.principal(x))
        self.codebooks.copy_(self.learn(x @ self.basis, generator))
        return self

    def principal(self, x: Tensor) -> Tensor:
        """Orthonormal directions [Dt + Di, D] that keep most of the variance of x [N, Dt + Di], by falling variance."""
        moment = sum(part.double().T @ part.double() for part in x.split(BLOCK)) / len(x)
        basis = torch.linalg.eigh(moment).eigenvectors.flip(1)[:, : self.basis.shape[1]]
        # An eigenvector's sign is arbitrary: make its largest component positive.
        return (basis * basis.gather(0, basis.abs().argmax(0, keepdim=True)).sign()).to(x.dtype)

    def learn(self, z: Tensor, generator: torch.Generator) -> Tensor:
        """Codebooks [L, K, D] for latents z [N, D]."""
        levels, size, _ = self.codebooks.shape
        return residual_kmeans(z, levels, size, generator)

    def place(self, z: Tensor) -> Tensor:
        """Codes [N, L] of a whole catalogue's latents z [N, D]: the nearest at every level."""
        return quantize(z, self.codebooks)[0]

    def latents(self, x: Tensor, has_image: Tensor) -> Tensor:  # noqa: ARG002 - same shape as RQVAE.latents
        """x [N, Dt + Di] -> [N, D]."""
        return x @ self.basis

    def reconstruct(self, quantized: Tensor) -> Tensor:
        """Quantized latents [N, D] -> [N, Dt + Di]."""
        return quantized @ self.basis.T
