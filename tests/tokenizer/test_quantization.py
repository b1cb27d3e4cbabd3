"""Residual quantization and its losses, by hand; k-means by its properties."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.config import TokenizerSettings
from tessera.tokenizer.kmeans import kmeans, lookup, quantize, residual_kmeans, squared_distances
from tessera.tokenizer.rqvae import RQVAE, Losses, residual_terms

BOOKS = torch.tensor([[[0.0, 0.0], [4.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]]])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_two_levels_by_hand() -> None:
    # (4.9, 0.2): nearest to (4, 0), leaves (0.9, 0.2), nearest to (1, 0). (0.1, 0.8): (0, 0), then (0, 1).
    codes, quantized = quantize(torch.tensor([[4.9, 0.2], [0.1, 0.8]]), BOOKS)
    assert codes.tolist() == [[1, 0], [0, 1]]
    assert quantized.tolist() == [[5.0, 0.0], [0.0, 1.0]]
    assert lookup(codes, BOOKS).tolist() == quantized.tolist()


def test_blocks_of_rows_give_what_all_rows_at_once_give(monkeypatch: pytest.MonkeyPatch) -> None:
    z = torch.randn(200, 6, generator=generator())
    whole = residual_kmeans(z, 2, 8, generator(1))
    monkeypatch.setattr("tessera.tokenizer.kmeans.BLOCK", 30)
    parts = residual_kmeans(z, 2, 8, generator(1))
    torch.testing.assert_close(parts, whole)
    assert torch.equal(quantize(z, parts)[0], quantize(z, whole)[0])


def test_a_tie_goes_to_the_lowest_code() -> None:
    assert quantize(torch.tensor([[2.0, 0.0]]), BOOKS)[0][0, 0] == 0


def test_loss_terms_by_hand() -> None:
    # Level 1 leaves (0.9, 0.2): 0.81 + 0.04. Level 2 leaves (-0.1, 0.2): 0.01 + 0.04. Sum 0.90 for either term.
    z, books = torch.tensor([[4.9, 0.2]], requires_grad=True), BOOKS.clone().requires_grad_(True)
    codes, codebook, commitment = residual_terms(z, books)
    assert codes.tolist() == [[1, 0]]
    assert codebook.item() == pytest.approx(0.90)
    assert commitment.item() == pytest.approx(0.90)
    losses = Losses(torch.tensor(2.0), codebook, commitment, codes)
    assert losses.total(0.25).item() == pytest.approx(2.0 + 0.90 + 0.25 * 0.90)


def test_codebook_term_moves_codes_and_commitment_moves_latents() -> None:
    z, books = torch.tensor([[4.9, 0.2]], requires_grad=True), BOOKS.clone().requires_grad_(True)
    _, codebook, commitment = residual_terms(z, books)
    to_z, to_books = torch.autograd.grad(codebook, [z, books], allow_unused=True)
    assert to_z is None
    # d||r - e||^2 / de = -2 (r - e) for the chosen codes alone.
    assert torch.allclose(to_books, torch.tensor([[[0.0, 0.0], [-1.8, -0.4]], [[0.2, -0.4], [0.0, 0.0]]]), atol=1e-5)
    to_z, to_books = torch.autograd.grad(commitment, [z, books], allow_unused=True)
    assert to_books is None
    # 2 (0.9, 0.2) from level 1 and 2 (-0.1, 0.2) from level 2.
    assert torch.allclose(to_z, torch.tensor([[1.6, 0.8]]), atol=1e-5)


def test_terms_are_means_over_items() -> None:
    # (0, 1) leaves itself at level 1 (1.0) and nothing at level 2: (0.90 + 1.0) / 2.
    _, codebook, commitment = residual_terms(torch.tensor([[4.9, 0.2], [0.0, 1.0]]), BOOKS)
    assert codebook.item() == pytest.approx(0.95)
    assert commitment.item() == pytest.approx(0.95)


def test_straight_through_gives_the_encoder_the_decoders_gradient() -> None:
    torch.manual_seed(0)
    sizes = TokenizerSettings(fused_dim=4, hidden_dim=6, latent_dim=2, levels=2, codebook_size=2)
    model = RQVAE(sizes, text_dim=4, image_dim=0)
    with torch.no_grad():
        model.codebooks.copy_(BOOKS)
    x, none = torch.randn(5, 4), torch.zeros(5, dtype=torch.bool)
    losses = model.losses(x, none)
    got = torch.autograd.grad(losses.reconstruction, list(model.encoder.parameters()))
    # By hand: the decoder's gradient at the quantized latents, passed on to the encoder unchanged.
    z = model.latents(x, none)
    quantized = quantize(z.detach(), BOOKS)[1].requires_grad_(True)
    at_codes = torch.autograd.grad(model.reconstruction(x, none, model.decoder(quantized)), quantized)[0]
    expected = torch.autograd.grad(z, list(model.encoder.parameters()), grad_outputs=at_codes)
    assert any(g.abs().max() > 1e-4 for g in expected)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(got, expected, strict=True))


def test_missing_image_is_not_part_of_the_reconstruction_loss() -> None:
    model = RQVAE(TokenizerSettings(), text_dim=1, image_dim=1)
    x, rebuilt = torch.tensor([[1.0, 3.0], [1.0, 0.0]]), torch.zeros(2, 2)
    # With images: 1 + 9; without one: 1 only, whatever the decoder says of the image. Mean 5.5.
    rebuilt[1, 1] = 7.0
    assert model.reconstruction(x, torch.tensor([True, False]), rebuilt).item() == pytest.approx(5.5)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 40), st.integers(1, 12))
def test_distances_are_the_naive_ones(seed: int, rows: int, centres: int) -> None:
    x, c = torch.randn(rows, 5, generator=generator(seed)), torch.randn(centres, 5, generator=generator(seed + 1))
    assert torch.allclose(squared_distances(x, c), (x[:, None] - c[None]).square().sum(2), atol=1e-4)


def test_kmeans_finds_separate_clusters() -> None:
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]])
    x = centres.repeat_interleave(25, 0) + 0.1 * torch.randn(100, 2, generator=generator(1))
    found = kmeans(x, 4, generator())
    assigned = squared_distances(x, found).argmin(1).reshape(4, 25)
    assert (assigned == assigned[:, :1]).all()
    assert len(assigned[:, 0].unique()) == 4
    # Lloyd's fixed point: a centre is the mean of its members.
    assert torch.allclose(found[assigned[:, 0]], x.reshape(4, 25, 2).mean(1), atol=1e-5)


def test_kmeans_uses_all_centres_on_scattered_data_and_repeats_itself() -> None:
    x = torch.randn(300, 4, generator=generator(2))
    first, second = (kmeans(x, 64, generator(5)) for _ in range(2))
    assert torch.equal(first, second)
    assert len(squared_distances(x, first).argmin(1).unique()) == 64


@pytest.mark.parametrize("rows", [1, 3])
def test_more_centres_than_rows_reproduce_the_rows(rows: int) -> None:
    x = torch.arange(rows * 2.0).reshape(rows, 2)
    codes, quantized = quantize(x, residual_kmeans(x, 2, 16, generator()))
    assert torch.allclose(quantized, x, atol=1e-5)
    assert len(codes[:, 0].unique()) == rows


def test_identical_rows_do_not_break_kmeans() -> None:
    x = torch.ones(50, 3)
    books = residual_kmeans(x, 3, 8, generator())
    assert np.isfinite(books.numpy()).all()
    assert torch.allclose(quantize(x, books)[1], x)


def test_every_level_brings_the_quantized_vectors_nearer() -> None:
    x = torch.randn(400, 6, generator=generator(3))
    books = residual_kmeans(x, 3, 16, generator())
    errors = [(x - quantize(x, books[: level + 1])[1]).square().sum().item() for level in range(3)]
    assert errors[0] > 1.2 * errors[1] > 1.2 * 1.2 * errors[2]
