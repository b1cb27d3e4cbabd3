"""Balance and fusion: by hand, and that what is learned keeps both modalities."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from tessera.config import TokenizerSettings
from tessera.schema import read_table
from tessera.tokenizer.bundle import Tokenizer
from tessera.tokenizer.fusion import IMAGE_WEIGHT, Balance, Fusion
from tessera.tokenizer.inputs import read_inputs
from tessera.tokenizer.report import mean_cosine


def test_balance_by_hand() -> None:
    text = torch.tensor([[3.0, 4.0], [-3.0, 4.0]])
    image = torch.tensor([[0.0, 2.0], [9.0, 9.0]])
    has = torch.tensor([True, False])
    balance = Balance(2, 2).fit(text, image, has)
    # Unit rows (0.6, 0.8) and (-0.6, 0.8) have mean (0, 0.8); what is left points along +x and -x.
    assert torch.allclose(balance.text_mean, torch.tensor([0.0, 0.8]))
    # The image mean is over items with an image only.
    assert torch.allclose(balance.image_mean, torch.tensor([0.0, 1.0]))
    x = balance(text, torch.tensor([[2.0, 0.0], [9.0, 9.0]]), has)
    # (1, 0) - (0, 1) = (1, -1), unit length, weighed by sqrt(IMAGE_WEIGHT); zeros without an image.
    half = (IMAGE_WEIGHT / 2) ** 0.5
    assert torch.allclose(x, torch.tensor([[1.0, 0.0, half, -half], [-1.0, 0.0, 0.0, 0.0]]), atol=1e-6)


def test_an_absent_image_is_a_learned_vector_for_that_item_alone() -> None:
    torch.manual_seed(0)
    fusion = Fusion(text_dim=3, image_dim=2, projected_dim=4, fused_dim=5)
    x, has = torch.randn(2, 5), torch.tensor([True, False])
    before = fusion(x, has)
    with torch.no_grad():
        fusion.absent.add_(1.0)
    after = fusion(x, has)
    assert torch.equal(before[0], after[0])
    assert not torch.allclose(before[1], after[1])
    x[1, 3:] = 100.0
    assert torch.equal(fusion(x, has)[1], after[1])


@pytest.mark.parametrize("method", ["rqvae", "rqkmeans"])
def test_images_part_what_the_text_merges(
    method: Any, make_embeddings: Callable, fit_table: Callable, small: TokenizerSettings
) -> None:
    """Items of one text family, all with a photo, of scenes that only the photo tells: their SIDs differ by scene."""
    table = make_embeddings(items=300, image_dim=16)
    settings = replace(small, method=method, epochs=60, codebook_size=16)
    fused = fit_table(table, f"{method}-fused", settings)
    plain = fit_table(table, f"{method}-text", replace(settings, use_images=False))
    assert (fused["images"], plain["images"]) == (200, 0)

    def same_scene(sids: Any) -> float:
        """Of the pictured pairs of one family that share two codes, the share of one scene; by chance a quarter."""
        codes = np.array(read_table("sids", sids)["codes"].to_pylist())[:, :2]
        rows = np.flatnonzero(np.arange(300) % 3)
        pairs = [(a, b) for a in rows for b in rows if a < b and a % 8 == b % 8 and (codes[a] == codes[b]).all()]
        return float(np.mean([a // 8 % 4 == b // 8 % 4 for a, b in pairs]))

    assert same_scene(fused["sids"]) > 0.9
    assert same_scene(plain["sids"]) < 0.5


@pytest.mark.parametrize("method", ["rqvae", "rqkmeans"])
def test_fusion_does_not_collapse_onto_one_modality(
    method: Any, make_embeddings: Callable, fit_table: Callable, small: TokenizerSettings
) -> None:
    table = make_embeddings(items=300, image_dim=16)
    run = fit_table(table, settings=replace(small, method=method, epochs=60, codebook_size=16))
    tokenizer, inputs = Tokenizer.load(run["bundle"]), read_inputs(table)
    has = inputs.has_image
    target = tokenizer.represent(inputs.text, inputs.image, has)[0].numpy()
    rebuilt = tokenizer.decode(tokenizer.encode(inputs.text, inputs.image, has))
    assert mean_cosine(target[:, :12], rebuilt[:, :12]) > 0.85
    assert mean_cosine(target[has, 12:], rebuilt[has, 12:]) > 0.85


def test_no_images_in_the_catalogue_is_text_only(
    make_embeddings: Callable, fit_table: Callable, small: TokenizerSettings
) -> None:
    """A table without images, and one whose images are not to be used, give the same codes."""
    with_images = make_embeddings(items=100, image_dim=16)
    nulls = with_images.set_column(2, "image", [[None] * 100])
    plain = fit_table(nulls, "plain")
    unused = fit_table(with_images, "unused", replace(small, use_images=False))
    assert Tokenizer.load(plain["bundle"]).image_dim == 0
    assert read_table("sids", plain["sids"])["sid"].equals(read_table("sids", unused["sids"])["sid"])
    assert plain["bundle"] != unused["bundle"]
