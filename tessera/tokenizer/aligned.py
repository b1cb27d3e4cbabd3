"""Alignment tokenization: purchases decide the codes, and text says where they lie.

Semantic Convergence (arXiv 2412.13771), alignment tokenization module.

The collaborative embedding c of an item (`collaborative`) goes through an encoder and cascaded codebooks; the quantized
vector q must rebuild c and, by a linear map, the embedding t of the item's text:

    L = ||c - c'||^2 + L_codebook + beta L_commit + alpha L_align,    L_align = ||W q - t||^2.

In the paper t is the backbone's own embedding; here it is the text encoder's, because the backbone may be trained from
nothing and then has none.
"""

import torch
from torch import Tensor, nn

from tessera.config import TokenizerSettings
from tessera.tokenizer.kmeans import lookup
from tessera.tokenizer.rqvae import RQVAE, Losses, network, no_terms, residual_terms


class AlignedRQVAE(RQVAE):
    """`RQVAE` over inputs x = [t; c] in which `has_image` says who has a collaborative vector c.

    An item without one (nobody bought it yet) enters by its text: h(t), trained to predict the latents of items that
    have both, without pulling at them. That is not in the paper; without it a new item would get no SID.
    """

    def __init__(self, settings: TokenizerSettings, text_dim: int, image_dim: int) -> None:
        super().__init__(settings, text_dim, image_dim)
        s = settings
        self.fusion = nn.Identity()  # type: ignore[assignment]  # text does not enter the codes
        self.encoder = network(image_dim, s.hidden_dim, s.latent_dim)
        self.decoder = network(s.latent_dim, s.hidden_dim, image_dim)
        self.from_text = network(text_dim, s.hidden_dim, s.latent_dim)
        self.to_text = nn.Linear(s.latent_dim, text_dim)
        self.alpha = s.alignment

    def latents(self, x: Tensor, has_image: Tensor) -> Tensor:
        """x = [t; c] [N, Dt + Dc], has_image [N] -> the encoder's z of c [N, D], h(t) where there is no c."""
        text, other = x[:, : self.balance.text_dim], x[:, self.balance.text_dim :]
        # Unit rows have components of about D^-1/2; linear layers start best from components of about 1.
        seen = self.encoder(other * other.shape[1] ** 0.5)
        return torch.where(has_image[:, None], seen, self.from_text(text * text.shape[1] ** 0.5))

    def reconstruct(self, quantized: Tensor) -> Tensor:
        """Quantized latents [N, D] -> [W q; c'] [N, Dt + Dc]."""
        return torch.cat([self.to_text(quantized), self.decoder(quantized)], 1)

    def losses(self, x: Tensor, has_image: Tensor, *, quantized: bool = True) -> Losses:
        """As `RQVAE.losses`; `alignment` holds alpha L_align and the error of h(t)."""
        z = self.latents(x, has_image)
        codes, codebook, commitment = residual_terms(z, self.codebooks) if quantized else no_terms(z)
        passed = z + (lookup(codes, self.codebooks) - z).detach() if quantized else z
        width = self.balance.text_dim
        rebuilt = self.decoder(passed)
        reconstruction = ((x[:, width:] - rebuilt).square().sum(1) * has_image).mean()
        predicted = self.from_text(x[:, :width] * width**0.5)
        text_path = ((predicted - z.detach()).square().sum(1) * has_image).mean()
        alignment = self.alpha * alignment_loss(self.to_text(passed), x[:, :width]) + text_path
        return Losses(reconstruction, codebook, commitment, codes, alignment)


def alignment_loss(mapped: Tensor, text: Tensor) -> Tensor:
    """L_align = mean over items of ||W q_i - t_i||^2; mapped W q and text t, both [N, Dt]."""
    return (mapped - text).square().sum(1).mean()
