"""Product quantization inside residual codebooks: allocation and rotation by hand, and what the rotation gains."""

import numpy as np
import pytest
import torch

from tessera.tokenizer.kmeans import kmeans, quantize
from tessera.tokenizer.opq import OPQ, allocate, procrustes


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def fitted(x: torch.Tensor, latent: int, levels: int, size: int) -> OPQ:
    return OPQ(x.shape[1], 0, latent, levels, size).fit(x, generator())


def test_variances_are_shared_out_by_hand() -> None:
    # 8 goes to part 0, 4 to part 1 (still empty), 2 to part 1 (4 < 8), which is full then, 1 to part 0: 8 = 8.
    assert allocate(np.array([8.0, 4.0, 2.0, 1.0]), [2, 2]).tolist() == [0, 3, 1, 2]
    assert allocate(np.array([1.0, 2.0, 4.0]), [2, 1]).tolist() == [2, 0, 1]


def test_procrustes_finds_the_turn() -> None:
    turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    z = torch.randn(50, 2, generator=generator(1))
    assert torch.allclose(procrustes(z, z @ turn), turn, atol=1e-5)


def test_codes_are_parallel_and_codebooks_do_not_overlap() -> None:
    model = fitted(torch.randn(300, 7, generator=generator(2)), 7, 3, 16)
    support = model.codebooks.abs().sum(1) > 0
    assert support.sum(0).tolist() == [1] * 7
    assert support.sum(1).tolist() == [3, 2, 2]
    assert torch.allclose(model.basis.T @ model.basis, torch.eye(7), atol=1e-5)
    z = torch.randn(40, 7, generator=generator(3))
    other = torch.where(support[0], z, torch.randn(40, 7, generator=generator(4)))
    assert torch.equal(quantize(z, model.codebooks)[0][:, 0], quantize(other, model.codebooks)[0][:, 0])


def test_the_rotation_lowers_the_error_of_plain_product_quantization() -> None:
    """Two strong directions hidden across all coordinates: cut without a rotation, every part must pay for both."""
    mix = torch.linalg.qr(torch.randn(8, 8, generator=generator(5)))[0]
    x = torch.randn(600, 8, generator=generator(6)) * torch.tensor([5.0, 5.0, 1, 1, 0.3, 0.3, 0.3, 0.3]) @ mix
    model = fitted(x, 8, 2, 16)
    rebuilt = model.reconstruct(quantize(model.latents(x, torch.zeros(600)), model.codebooks)[1])
    plain = [kmeans(x[:, half], 16, generator()) for half in (slice(0, 4), slice(4, 8))]
    books = torch.stack([torch.nn.functional.pad(plain[0], (0, 4)), torch.nn.functional.pad(plain[1], (4, 0))])
    assert (x - rebuilt).square().sum() < 0.6 * (x - quantize(x, books)[1]).square().sum()


def test_rounds_do_not_raise_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(400, 6, generator=generator(7)) @ torch.randn(6, 6, generator=generator(8))
    errors = []
    for rounds in (0, 5, 25):
        monkeypatch.setattr("tessera.tokenizer.opq.ROUNDS", rounds)
        model = fitted(x, 6, 2, 8)
        z = model.latents(x, torch.zeros(400))
        errors.append((z - quantize(z, model.codebooks)[1]).square().sum().item())
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.995 * errors[0]
