"""RQ-VAE: fusion and encoder, residual quantization with a straight-through gradient, decoder.

Lee et al., RQ-VAE (arXiv 2203.01941), as used for semantic IDs by Rajput et al., TIGER (arXiv 2305.05065), section 3.1.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tessera.config import TokenizerSettings
from tessera.tokenizer.fusion import Balance, Fusion
from tessera.tokenizer.kmeans import lookup, quantize, residual_kmeans, squared_distances


@dataclass(frozen=True)
class Losses:
    """Terms of one batch, each a mean over items of squared lengths, and the codes [N, L] that were chosen.

    `alignment`, already weighted, is what ties the codes to another space; 0 for a method that has no such term.
    """

    reconstruction: Tensor
    codebook: Tensor
    commitment: Tensor
    codes: Tensor
    alignment: Tensor | float = 0.0

    def total(self, beta: float) -> Tensor:
        """L = L_recon + L_codebook + beta L_commit (TIGER, section 3.1) + what a method adds."""
        return self.reconstruction + self.codebook + beta * self.commitment + self.alignment


class RQVAE(nn.Module):
    """Balanced [text; image] -> `Fusion` -> encoder -> residual quantization -> decoder -> balanced [text; image]."""

    # Share of the epochs in which the autoencoder learns alone, so that k-means sees latents that mean something.
    warmup = 0.1

    def __init__(self, settings: TokenizerSettings, text_dim: int, image_dim: int) -> None:
        super().__init__()
        s = settings
        self.balance = Balance(text_dim, image_dim)
        self.fusion = Fusion(text_dim, image_dim, s.image_dim, s.fused_dim)
        self.encoder = network(s.fused_dim, s.hidden_dim, s.latent_dim)
        self.decoder = network(s.latent_dim, s.hidden_dim, text_dim + image_dim)
        self.codebooks = nn.Parameter(torch.zeros(s.levels, s.codebook_size, s.latent_dim))

    def latents(self, x: Tensor, has_image: Tensor) -> Tensor:
        """Balanced inputs x [N, Dt + Di], has_image [N] -> z [N, D]."""
        return self.encoder(self.fusion(x, has_image))

    def reconstruct(self, quantized: Tensor) -> Tensor:
        """Quantized latents [N, D] -> balanced [text; image] [N, Dt + Di]."""
        return self.decoder(quantized)

    def losses(self, x: Tensor, has_image: Tensor, *, quantized: bool = True) -> Losses:
        """The terms of `Losses` for a batch; `quantized=False` (warm-up) is the plain autoencoder."""
        z = self.latents(x, has_image)
        codes, codebook, commitment = residual_terms(z, self.codebooks) if quantized else no_terms(z)
        passed = z + (lookup(codes, self.codebooks) - z).detach() if quantized else z
        return Losses(self.reconstruction(x, has_image, self.reconstruct(passed)), codebook, commitment, codes)

    def reconstruction(self, x: Tensor, has_image: Tensor, rebuilt: Tensor) -> Tensor:
        """Mean over items of ||x - x'||^2, without the image part of items that have no image."""
        error = (x - rebuilt).square()
        text = error[:, : self.balance.text_dim].sum(1)
        return (text + error[:, self.balance.text_dim :].sum(1) * has_image).mean()

    def place(self, z: Tensor) -> Tensor:
        """Codes [N, L] of a whole catalogue's latents z [N, D]: the nearest at every level."""
        return quantize(z, self.codebooks)[0]

    @torch.no_grad()
    def initialise(self, x: Tensor, has_image: Tensor, generator: torch.Generator) -> None:
        """K-means initialisation of every level on the latents of all items."""
        levels, size, _ = self.codebooks.shape
        self.codebooks.copy_(residual_kmeans(self.latents(x, has_image), levels, size, generator))


def network(inner: int, hidden: int, outer: int) -> nn.Sequential:
    """One hidden layer: [N, inner] -> [N, outer]."""
    return nn.Sequential(nn.Linear(inner, hidden), nn.GELU(), nn.Linear(hidden, outer))


def residual_terms(z: Tensor, codebooks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Residual quantization of z [N, D] over codebooks [L, K, D] with the two quantization losses.

    L_codebook = sum_l ||sg[r_l] - e_l||^2 moves codes to residuals, L_commit = sum_l ||r_l - sg[e_l]||^2 moves
    residuals to codes, and r_(l+1) = r_l - sg[e_l]: a level's codes answer for their own residual only.

    Returns:
        codes [N, L], L_codebook, L_commit (both means over items).
    """
    residual, codes = z, []
    codebook = commitment = z.new_zeros(())
    for book in codebooks:
        code = squared_distances(residual.detach(), book.detach()).argmin(1)
        chosen = nn.functional.embedding(code, book)
        codebook = codebook + (residual.detach() - chosen).square().sum(1).mean()
        commitment = commitment + (residual - chosen.detach()).square().sum(1).mean()
        residual = residual - chosen.detach()
        codes.append(code)
    return torch.stack(codes, 1), codebook, commitment


def no_terms(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What `residual_terms` returns, for a batch that is not quantized: no codes and no losses."""
    zero = z.new_zeros(())
    return torch.zeros(len(z), 0, dtype=torch.long, device=z.device), zero, zero
