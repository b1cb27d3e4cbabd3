"""RQ-KMeans+: codebooks from RQ-KMeans, then a residual encoder trained around them (GPR, arXiv 2511.10138).

RQ-VAE started from nothing wastes codes; RQ-KMeans wastes none but cannot learn. Here the encoder is z = P x + f(x)
with P the projection that RQ-KMeans clusters in and f a network whose last layer starts at zero, so that the first
step already stands where RQ-KMeans ends, and training bends latents and codes from there.
"""

import torch
from torch import Tensor, nn

from tessera.config import TokenizerSettings
from tessera.tokenizer.rqkmeans import RQKMeans
from tessera.tokenizer.rqvae import RQVAE


class RQKMeansPlus(RQVAE):
    """`RQVAE` around a fixed linear path; the decoder has the same form, x' = P'z + g(z) with g starting at zero."""

    warmup = 0.0
    basis: Tensor

    def __init__(self, settings: TokenizerSettings, text_dim: int, image_dim: int) -> None:
        super().__init__(settings, text_dim, image_dim)
        self.register_buffer("basis", torch.zeros(text_dim + image_dim, settings.latent_dim))
        for network in (self.encoder, self.decoder):
            nn.init.zeros_(network[-1].weight)  # type: ignore[arg-type]
            nn.init.zeros_(network[-1].bias)  # type: ignore[arg-type]

    def latents(self, x: Tensor, has_image: Tensor) -> Tensor:
        """Balanced inputs x [N, Dt + Di], has_image [N] -> z = P x + f(x) [N, D]."""
        return x @ self.basis + self.encoder(self.fusion(x, has_image))

    def reconstruct(self, quantized: Tensor) -> Tensor:
        """Quantized latents [N, D] -> P'z + g(z) [N, Dt + Di]."""
        return quantized @ self.basis.T + self.decoder(quantized)

    @torch.no_grad()
    def initialise(self, x: Tensor, has_image: Tensor, generator: torch.Generator) -> None:  # noqa: ARG002
        """Fit RQ-KMeans to x [N, Dt + Di] and take over its projection and codebooks."""
        levels, size, latent_dim = self.codebooks.shape
        start = RQKMeans(self.balance.text_dim, self.balance.image_dim, latent_dim, levels, size).to(x.device)
        start.fit(x, generator)
        width = start.basis.shape[1]  # less than latent_dim when the embeddings are narrower than that
        self.basis[:, :width], self.codebooks[:, :, :width] = start.basis, start.codebooks
