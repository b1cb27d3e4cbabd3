"""RQ-KMeans+ starts exactly where RQ-KMeans ends, and training takes it further."""

from collections.abc import Callable
from dataclasses import replace

import torch

from tessera.config import TokenizerSettings
from tessera.tokenizer.kmeans import quantize
from tessera.tokenizer.rqkmeans import RQKMeans
from tessera.tokenizer.rqkmeans_plus import RQKMeansPlus

SETTINGS = TokenizerSettings(image_dim=3, fused_dim=7, hidden_dim=9, latent_dim=5, levels=3, codebook_size=8)


def test_the_start_is_rqkmeans() -> None:
    x, seen = torch.randn(200, 10, generator=torch.Generator().manual_seed(0)), torch.ones(200, dtype=torch.bool)
    start = RQKMeans(6, 4, 5, 3, 8).fit(x, torch.Generator().manual_seed(1))
    model = RQKMeansPlus(SETTINGS, 6, 4)
    model.initialise(x, seen, torch.Generator().manual_seed(1))
    assert torch.equal(model.latents(x, seen), start.latents(x, seen))
    codes, quantized = quantize(start.latents(x, seen), start.codebooks)
    assert torch.equal(model.place(model.latents(x, seen)), codes)
    assert torch.equal(model.reconstruct(quantized), start.reconstruct(quantized))


def test_all_of_it_learns() -> None:
    """Gradients reach both networks from their zero start; the codes are means of their members and so at rest."""
    x, seen = torch.randn(200, 10, generator=torch.Generator().manual_seed(0)), torch.ones(200, dtype=torch.bool)
    model = RQKMeansPlus(SETTINGS, 6, 4)
    model.initialise(x, seen, torch.Generator().manual_seed(1))
    model.losses(x, seen).total(0.25).backward()
    for weight in (model.encoder[-1].weight, model.decoder[-1].weight):
        assert weight.grad.abs().max() > 1e-3
    assert model.codebooks.grad.abs().max() < 1e-5
    assert not model.basis.requires_grad


def test_training_beats_its_start(make_embeddings: Callable, fit_table: Callable, small: TokenizerSettings) -> None:
    settings = replace(small, latent_dim=4, epochs=60)
    table = make_embeddings(items=400, image_dim=16)
    start, plus = (fit_table(table, m, replace(settings, method=m)) for m in ("rqkmeans", "rqkmeans_plus"))
    assert plus["reconstruction_cosine"] > start["reconstruction_cosine"] + 0.01
    assert min(plus["utilisation"]) == 1.0
    assert plus["curve"][0]["utilisation"] == [1.0, 1.0, 1.0]  # no warm-up: quantized from the first epoch
