"""Alignment tokenization: its loss by hand, where its gradients go, and what it makes of purchases and of new items."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from tessera.config import TokenizerSettings
from tessera.errors import InputError
from tessera.schema import read_table
from tessera.tokenizer.aligned import AlignedRQVAE, alignment_loss
from tessera.tokenizer.bundle import Tokenizer


def model(alpha: float = 1.0) -> AlignedRQVAE:
    torch.manual_seed(0)
    sizes = {"image_dim": 1, "fused_dim": 1, "hidden_dim": 6, "latent_dim": 2, "levels": 2, "codebook_size": 4}
    made = AlignedRQVAE(TokenizerSettings(**sizes, alignment=alpha), 3, 4)
    with torch.no_grad():
        made.codebooks.copy_(torch.randn(2, 4, 2))
    return made


X = torch.randn(5, 7, generator=torch.Generator().manual_seed(1))
SEEN = torch.tensor([True, True, True, False, True])


def test_alignment_loss_by_hand() -> None:
    # (1, 2) against (1, 0): 4; (0, 1) against (1, 1): 1; mean 2.5.
    mapped = torch.tensor([[1.0, 2.0], [0.0, 1.0]], requires_grad=True)
    loss = alignment_loss(mapped, torch.tensor([[1.0, 0.0], [1.0, 1.0]]))
    assert loss.item() == 2.5
    # d/d(Wq) = 2 (Wq - t) / 2 items: down along the difference.
    assert torch.autograd.grad(loss, mapped)[0].tolist() == [[0.0, 2.0], [-1.0, 0.0]]


def test_terms_add_up() -> None:
    """The alignment term is alpha ||W q - t||^2 and the text path's error, and counts in the total once."""
    terms, doubled = model(1.0).losses(X, SEEN), model(2.0).losses(X, SEEN)
    made = model()
    z = made.latents(X, SEEN)
    quantized = made.codebooks[0][terms.codes[:, 0]] + made.codebooks[1][terms.codes[:, 1]]
    align = (made.to_text(quantized) - X[:, :3]).square().sum(1).mean()
    path = ((made.from_text(X[:, :3] * 3**0.5) - z).square().sum(1) * SEEN).mean()
    assert terms.alignment.item() == pytest.approx((align + path).item(), rel=1e-5)
    assert doubled.alignment.item() == pytest.approx((2 * align + path).item(), rel=1e-5)
    whole = terms.reconstruction + terms.codebook + 0.25 * terms.commitment + terms.alignment
    assert terms.total(0.25).item() == pytest.approx(whole.item())


def test_text_reaches_the_codes_of_bought_items_by_alignment_alone() -> None:
    """The latents of bought items ignore the text; its loss bends their encoder, but the text path does not."""
    made, other = model(), torch.cat([torch.zeros(5, 3), X[:, 3:]], 1)
    assert torch.equal(made.latents(X, SEEN)[SEEN], made.latents(other, SEEN)[SEEN])
    assert not torch.equal(made.latents(X, SEEN)[~SEEN], made.latents(other, SEEN)[~SEEN])
    all_seen = torch.ones(5, dtype=torch.bool)
    bent = torch.autograd.grad(made.losses(X, all_seen).alignment, made.encoder[0].weight)[0]
    unbent = model(alpha=0.0)
    still = torch.autograd.grad(unbent.losses(X, all_seen).alignment, unbent.encoder[0].weight)[0]
    assert bent.abs().max() > 1e-4
    assert not still.any()


def purchases_beside_text(make_embeddings: Callable) -> pa.Table:
    """Purchases follow four groups that the text does not tell, and a little its families; one in eight has none."""
    draw = np.random.default_rng(5)
    groups, families = draw.normal(size=(4, 16)), draw.normal(size=(8, 16))
    table = make_embeddings(items=240)
    rows = np.arange(240)
    vectors = groups[rows // 8 % 4] + 0.2 * families[rows % 8] + 0.1 * draw.normal(size=(240, 16))
    column = [None if row % 8 == 7 else vector for row, vector in enumerate(vectors.astype(np.float32).tolist())]
    return table.set_column(2, "image", pa.array(column, pa.list_(pa.float32())))


def test_codes_follow_purchases_and_new_items_follow_their_text(
    make_embeddings: Callable, fit_table: Callable, small: TokenizerSettings
) -> None:
    table = purchases_beside_text(make_embeddings)
    settings = replace(small, method="aligned", levels=4, epochs=60)
    run = fit_table(table, settings=settings)
    codes = np.array(read_table("sids", run["sids"])["codes"].to_pylist())
    bought, group = np.arange(240) % 8 != 7, np.arange(240) // 8 % 4
    first = codes[bought, 0]
    pure = sum(np.bincount(group[bought][first == code]).max() for code in np.unique(first))
    assert codes.shape == (240, 4)
    assert pure / bought.sum() > 0.9
    tokenizer: Any = Tokenizer.load(run["bundle"])
    fresh = make_embeddings(items=10, start=500).set_column(
        2, "image", pa.array([None] * 10, pa.list_(pa.float32()))
    )
    appended = tokenizer.append(fresh, read_table("sids", run["sids"]))
    assert appended.num_rows == 10


def test_the_weight_ties_codes_to_text(make_embeddings: Callable, fit_table: Callable, small: Any) -> None:
    """With the weight up, decoded text is nearer to the items' text."""
    table, fits = purchases_beside_text(make_embeddings), []
    for weight in (0.01, 4.0):
        settings = replace(small, method="aligned", epochs=40, alignment=weight)
        run = fit_table(table, f"a{weight}", settings)
        tokenizer: Any = Tokenizer.load(run["bundle"])
        rows = [row for row in range(240) if row % 8 != 7]
        codes = np.array(read_table("sids", run["sids"])["codes"].to_pylist())[rows]
        text = np.array(table["text"].to_pylist(), np.float32)[rows]
        target = tokenizer.model.balance(*(torch.from_numpy(a) for a in (
            text, np.zeros((len(rows), 16), np.float32), np.zeros(len(rows), bool)
        )))[:, :12].numpy()
        fits.append(np.square(tokenizer.decode(codes)[:, :12] - target).sum(1).mean())
    assert fits[1] < 0.8 * fits[0]


def test_without_collaborative_vectors_it_is_refused(
    make_embeddings: Callable, fit_table: Callable, small: TokenizerSettings
) -> None:
    with pytest.raises(InputError, match=r"these embeddings have none; make them with tessera\.tokenizer\.collab"):
        fit_table(make_embeddings(items=30), settings=replace(small, method="aligned"))
