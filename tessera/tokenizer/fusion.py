"""Multimodal fusion: text and image embedding of an item become one quantizer input.

CMSA (DeepInterestGR, arXiv 2604.20861) projects the image embedding, concatenates it with the text embedding and
projects again; both projections are learned together with RQ-VAE (`Fusion`). What they learn is fixed by a target that
does not depend on them: RQ-VAE must rebuild the balanced, normalised pair [text; image] (`Balance`) from the quantized
latent, so a fusion that drops a modality or collapses to a constant pays for it in the loss.
"""

import torch
from torch import Tensor, nn

# Squared weight of the image part against the text part's 1. Metadata, caption and descriptors already speak for the
# photo in the text, and a vision encoder that is not aligned with text groups by background as readily as by product.
IMAGE_WEIGHT = 0.5


class Balance(nn.Module):
    """Centre each modality by the catalogue's mean, scale rows to unit length, weigh the parts, concatenate.

    Centring removes the direction that all embeddings of one encoder share; without it, cosine similarities crowd near
    1 and the first codebook level is spent on it.
    """

    text_mean: Tensor
    image_mean: Tensor

    def __init__(self, text_dim: int, image_dim: int) -> None:
        super().__init__()
        self.text_dim, self.image_dim = text_dim, image_dim
        self.register_buffer("text_mean", torch.zeros(text_dim))
        self.register_buffer("image_mean", torch.zeros(image_dim))

    def fit(self, text: Tensor, image: Tensor, has_image: Tensor) -> "Balance":
        """Set the means from text [N, Dt] and, where has_image [N], image [N, Di]."""
        self.text_mean.copy_(_unit(text).double().mean(0))
        if self.image_dim and bool(has_image.any()):
            self.image_mean.copy_(_unit(image[has_image]).double().mean(0))
        return self

    def forward(self, text: Tensor, image: Tensor, has_image: Tensor) -> Tensor:
        """text [N, Dt], image [N, Di], has_image [N] bool -> [N, Dt + Di]; an item without an image has zeros there."""
        text = _unit(_unit(text) - self.text_mean)
        if not self.image_dim:
            return text
        image = _unit(_unit(image) - self.image_mean) * IMAGE_WEIGHT**0.5
        return torch.cat([text, torch.where(has_image[:, None], image, 0.0)], 1)


def _unit(x: Tensor) -> Tensor:
    """Rows scaled to length 1; a row of zeros stays zero."""
    return nn.functional.normalize(x, dim=1, eps=1e-8)


class Fusion(nn.Module):
    """CMSA's fusion: f = W_f [text ; W_v image]; an item without a photo has a learned vector in place of W_v image."""

    def __init__(self, text_dim: int, image_dim: int, projected_dim: int, fused_dim: int) -> None:
        super().__init__()
        self.text_dim, self.image_dim = text_dim, image_dim
        if image_dim:
            self.image_projection = nn.Linear(image_dim, projected_dim)
            self.absent = nn.Parameter(torch.zeros(projected_dim))
        self.fused_projection = nn.Linear(text_dim + (projected_dim if image_dim else 0), fused_dim)

    def forward(self, x: Tensor, has_image: Tensor) -> Tensor:
        """x [N, Dt + Di] as `Balance` makes it, has_image [N] -> fused [N, F]."""
        # Unit rows have components of about D^-1/2; linear layers start best from components of about 1.
        text = x[:, : self.text_dim] * self.text_dim**0.5
        if not self.image_dim:
            return self.fused_projection(text)
        image = self.image_projection(x[:, self.text_dim :] * self.image_dim**0.5)
        return self.fused_projection(torch.cat([text, torch.where(has_image[:, None], image, self.absent)], 1))
