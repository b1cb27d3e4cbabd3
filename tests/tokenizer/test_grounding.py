"""InfoNCE by hand and its direction; a space in which text, world and purchases agree."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from tessera.errors import InputError
from tessera.schema import SCHEMAS, read_table, write_table
from tessera.tokenizer import grounding
from tessera.tokenizer.grounding import Grounding, Views, bought_next, info_nce, no_negatives
from tessera.tokenizer.inputs import Inputs, read_inputs


def test_info_nce_by_hand() -> None:
    # a = b = the axes, temperature 1: each row's logits are (1, 0), so L = ln(1 + e^-1) = 0.3133 both ways.
    axes = torch.eye(2)
    assert info_nce(axes, axes, temperature=1.0).item() == pytest.approx(0.313262, abs=1e-5)
    # b turned round: logits (0, 1), L = ln(1 + e).
    assert info_nce(axes, axes.flip(0), temperature=1.0).item() == pytest.approx(1.313262, abs=1e-5)
    # One temperature for all: 0.5 doubles the logits.
    assert info_nce(axes, axes, temperature=0.5).item() == pytest.approx(0.126928, abs=1e-5)


def test_info_nce_draws_pairs_together_and_others_apart() -> None:
    a, b = torch.eye(2, requires_grad=True), torch.tensor([[0.6, 0.8], [0.8, 0.6]])
    gradient = torch.autograd.grad(info_nce(a, b, temperature=1.0), a)[0]
    stepped = a.detach() - 0.1 * gradient
    before, after = a.detach() @ b.T, stepped @ b.T
    assert (after.diagonal() - before.diagonal() > after.flip(0).diagonal() - before.flip(0).diagonal()).all()


def test_the_same_said_of_two_items_makes_them_no_negatives() -> None:
    a, b = torch.eye(3), torch.eye(3)
    b[1] = b[0]
    same = torch.tensor([5, 5, 7])
    apart, alike = info_nce(a, b, temperature=1.0), info_nce(a, b, same[:, None] == same, temperature=1.0)
    assert alike < apart
    # Rows 0 and 1 have only row 2 as a negative, row 2 has both. a to b: logits (1, -, 0), (-, 0, 0), (0, 0, 1).
    rows = [np.log(1 + np.exp(-1.0)), np.log(2.0), np.log(1 + 2 * np.exp(-1.0))]
    assert alike.item() == pytest.approx(np.mean(rows), abs=1e-5)


def test_an_item_is_no_negative_of_itself_nor_of_what_it_was_bought_with() -> None:
    # Pairs (0, 1), (2, 0), (3, 4): 0 would be compared with itself, its partner in the second row.
    first, second = torch.tensor([0, 2, 3]), torch.tensor([1, 0, 4])
    apart = no_negatives(first, second)
    assert apart.tolist() == [[True, True, False], [False, True, False], [False, False, True]]
    # Pairs (0, 1), (0, 2), (3, 2): 0 was bought with 1 and 2, and 2 with 0 and 3.
    first, second = torch.tensor([0, 0, 3]), torch.tensor([1, 2, 2])
    assert no_negatives(first, second).tolist() == [[True, True, False], [True, True, True], [False, True, True]]
    # All cosines are 0 but that of 0 with itself, which counts for nothing: ln 2 where it stood, ln 3 elsewhere.
    a, b = torch.eye(4)[[0, 2, 3]], torch.eye(4)[[1, 0, 1]]
    rows = [np.log(2.0), np.log(3.0), np.log(3.0)]
    columns = [np.log(3.0), np.log(2.0), np.log(3.0)]
    assert info_nce(a, b, apart, temperature=1.0).item() == pytest.approx(np.mean(rows + columns), abs=1e-5)


def test_only_neighbours_in_a_history_are_pairs() -> None:
    assert bought_next([[3, 1, 1, 2], [4]]).tolist() == [[3, 1], [1, 2]]
    assert bought_next([[1]]).shape == (0, 2)


@pytest.fixture(scope="module")
def world() -> tuple[Inputs, Views, np.ndarray, np.ndarray]:
    """160 items: 8 families in the text, 5 intents that the world alone tells, purchases within (group of) 4 themes."""
    draw = np.random.default_rng(0)
    rows = np.arange(160)
    family, theme = rows % 8, rows // 8 % 4
    text = (draw.normal(size=(8, 12))[family] + 0.5 * draw.normal(size=(160, 12))).astype(np.float32)
    image = (draw.normal(size=(4, 10))[theme] + 0.5 * draw.normal(size=(160, 10))).astype(np.float32)
    knowledge = draw.normal(size=(32, 12)).astype(np.float32)[family * 4 + theme]
    of_theme = [rows[theme == one] for one in range(4)]
    bought = bought_next([draw.permutation(of_theme[user % 4])[:6].tolist() for user in range(80)])
    inputs = Inputs([f"i{row:03d}" for row in rows], text, image, np.ones(160, bool))
    return inputs, Views(text, knowledge, bought), family, theme


def test_views_agree_in_the_grounded_space(world: tuple) -> None:
    inputs, views, family, theme = world
    model, curve = grounding.fit(inputs, views, seed=0, epochs=30)
    assert all(curve[-1][name] < 0.8 * curve[0][name] for name in ("text", "knowledge", "bought"))
    vectors = model.vectors(inputs)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(160), abs=1e-5)
    likeness, other = vectors @ vectors.T, ~np.eye(160, dtype=bool)
    same_theme, same_family = theme[:, None] == theme, family[:, None] == family
    # Bought together: nearer than what is not, within a family and across.
    assert likeness[same_theme & other].mean() > likeness[~same_theme].mean() + 0.2
    assert likeness[same_theme & same_family & other].mean() > likeness[same_family & ~same_theme].mean() + 0.2
    again = grounding.fit(inputs, views, seed=0, epochs=30)[0].vectors(inputs)
    assert np.array_equal(vectors, again)


def test_without_purchases_the_other_views_remain(world: tuple) -> None:
    inputs, views, *_ = world
    curve = grounding.fit(inputs, Views(views.text, views.knowledge, np.empty((0, 2), np.int64)), 0, epochs=3)[1]
    assert [record["bought"] for record in curve] == [0.0] * 3
    assert curve[-1]["knowledge"] < curve[0]["knowledge"]


def test_views_of_other_items_are_refused(world: tuple) -> None:
    inputs, views, *_ = world
    with pytest.raises(InputError, match="not of the 160 items"):
        grounding.fit(inputs, Views(views.text[:5], views.knowledge, views.bought), 0)


def test_saved_weights_ground_as_the_model_did(world: tuple, tmp_path: Path) -> None:
    inputs, views, *_ = world
    model = grounding.fit(inputs, views, 0, epochs=2)[0]
    model.save(tmp_path / "weights")
    grounded = Grounding.load(tmp_path / "weights").ground(inputs)
    assert np.array_equal(grounded.text, model.vectors(inputs))
    assert grounded.item_ids == inputs.item_ids
    assert not grounded.has_image.any()


def test_the_stage_reads_tables_and_holds_out_what_is_held_out(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    paths = {name: tmp_path / f"{name}.parquet" for name in ("embeddings", "knowledge", "splits", "weights", "short")}
    for name, items in (("embeddings", 12), ("knowledge", 12), ("short", 5)):
        rows = [{"item_id": f"i{n:02d}", "text": draw.normal(size=6).tolist(), "image": None} for n in range(items)]
        write_table("embeddings", pa.Table.from_pylist(rows, SCHEMAS["embeddings"]), paths[name])
    user = {"user_id": "u", "train": ["i03", "i01", "i02"], "validation": "i04", "test": "i05"}
    write_table("splits", pa.Table.from_pylist([user], SCHEMAS["splits"]), paths["splits"])
    told = grounding.run(paths["embeddings"], paths["knowledge"], paths["splits"], paths["weights"], seed=0)
    assert (told["items"], told["pairs"]) == (12, 2)
    inputs = read_inputs(read_table("embeddings", paths["embeddings"]))
    found = Grounding.load(paths["weights"]).ground(inputs)
    assert found.item_ids == [f"i{n:02d}" for n in range(12)]
    assert np.linalg.norm(found.text, axis=1) == pytest.approx(np.ones(12), abs=1e-5)
    with pytest.raises(InputError, match="not of the same items"):
        grounding.run(paths["embeddings"], paths["short"], paths["splits"], paths["weights"], seed=0)
