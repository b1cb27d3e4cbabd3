"""LightGCN by hand on two users and two items, and on purchases with a known structure."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from tessera.errors import InputError
from tessera.schema import SCHEMAS, read_table, write_table
from tessera.tokenizer import collaborative
from tessera.tokenizer.collaborative import adjacency, bpr, lightgcn, propagate


def test_adjacency_and_propagation_by_hand() -> None:
    # User 0 bought items 0 and 1, user 1 bought item 0: |N_u| = 2, 1 and |N_i| = 2, 1.
    graph = adjacency(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 0]), 2, 2)
    a, b, c = 1 / 2, 1 / 2**0.5, 1 / 2**0.5  # (u0, i0), (u0, i1), (u1, i0)
    expected = torch.tensor([[0, 0, a, b], [0, 0, c, 0], [a, c, 0, 0], [b, 0, 0, 0]])
    assert torch.allclose(graph.to_dense(), expected)
    start = torch.tensor([[1.0], [0.0], [0.0], [0.0]])
    # e1 = A e0 = (0, 0, a, b); e2 = A e1 = (a a + b b, c a, 0, 0) = (3/4, c/2, 0, 0); the mean of the three.
    assert torch.allclose(propagate(graph, start, 2), torch.tensor([[1.75], [c / 2], [a], [b]]) / 3)


def test_bpr_by_hand_and_its_direction() -> None:
    # e_u . (e_i - e_j) = 2 - 1 = 1: L = -ln sigmoid(1) = 0.3133, and dL/de_i = -sigmoid(-1) e_u.
    final = torch.tensor([[1.0], [2.0], [1.0]], requires_grad=True)
    loss = bpr(final, torch.tensor([0]), torch.tensor([1]), torch.tensor([2]))
    assert loss.item() == pytest.approx(0.31326, abs=1e-5)
    gradient = torch.autograd.grad(loss, final)[0]
    assert gradient[1].item() == pytest.approx(-0.26894, abs=1e-5)
    assert gradient[2].item() == pytest.approx(0.26894, abs=1e-5)


def two_tastes(users: int = 60, seed: int = 0) -> list[list[int]]:
    """Users buy five of items 0..9 or five of 10..19; item 20 is never bought."""
    draw = np.random.default_rng(seed)
    return [(10 * (user % 2) + draw.permutation(10)[:5]).tolist() for user in range(users)]


def test_items_bought_together_come_together() -> None:
    vectors, bought, loss = lightgcn(two_tastes(), 21, seed=0, width=8, steps=60)
    unit = vectors[:20] / np.linalg.norm(vectors[:20], axis=1, keepdims=True)
    same = np.arange(20)[:, None] // 10 == np.arange(20) // 10
    likeness = unit @ unit.T
    assert likeness[same].mean() > likeness[~same].mean() + 0.8
    assert bought.tolist() == [True] * 20 + [False]
    assert loss < 0.5
    again = lightgcn(two_tastes(), 21, seed=0, width=8, steps=60)[0]
    assert np.array_equal(vectors, again)


def splits(path: Path, histories: list[list[str]], held: str) -> None:
    rows = [{"user_id": f"u{n:03d}", "train": h, "validation": held, "test": held} for n, h in enumerate(histories)]
    write_table("splits", pa.Table.from_pylist(rows, SCHEMAS["splits"]), path)


def test_the_stage_replaces_the_image_and_reads_no_held_out_purchase(
    make_embeddings: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collaborative, "STEPS", 5)
    write_table("embeddings", make_embeddings(items=21, image_dim=4), tmp_path / "embeddings.parquet")
    named = [[f"i{item:05d}" for item in history] for history in two_tastes()]
    for name, held in (("a", "i00020"), ("b", "i00000")):
        splits(tmp_path / f"{name}-splits.parquet", named, held)
        facts = collaborative.run(
            tmp_path / "embeddings.parquet", tmp_path / f"{name}-splits.parquet", tmp_path / f"{name}.parquet", 0
        )
        assert (facts["items"], facts["bought"]) == (21, 20)
    a, b = (read_table("embeddings", tmp_path / f"{name}.parquet") for name in "ab")
    assert a.equals(b)
    assert a["text"].equals(read_table("embeddings", tmp_path / "embeddings.parquet")["text"])
    assert a["image"][20].as_py() is None
    assert len(a["image"][0].as_py()) == collaborative.WIDTH


def test_without_purchases_there_is_nothing_to_learn() -> None:
    with pytest.raises(InputError, match="need purchases"):
        lightgcn([[], []], 3, seed=0)
