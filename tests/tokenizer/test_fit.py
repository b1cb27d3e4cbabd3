"""The stage: quality on known structure, determinism, small and degenerate catalogues, bad input."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from tessera.config import TokenizerSettings
from tessera.errors import InputError
from tessera.schema import read_table
from tessera.tokenizer import fit
from tessera.tokenizer.inputs import read_inputs
from tessera.tokenizer.training import Training

METHODS = pytest.mark.parametrize("method", ["rqvae", "rqkmeans", "rqkmeans_balanced", "rqkmeans_plus", "opq"])


@pytest.mark.parametrize("method", ["rqvae", "rqkmeans", "rqkmeans_balanced", "rqkmeans_plus"])  # OPQ's have no order
def test_sids_follow_the_families(
    method: Any, make_embeddings: Callable, fit_table: Callable, small: TokenizerSettings
) -> None:
    """Eight text families and eight codes: the first level finds the families, and the report says what was written."""
    run = fit_table(make_embeddings(), settings=replace(small, method=method, epochs=60))
    table = read_table("sids", run["sids"])
    codes = np.array(table["codes"].to_pylist())
    families = np.arange(200) % 8
    pure = sum(np.bincount(families[codes[:, 0] == code]).max() for code in np.unique(codes[:, 0]))
    assert pure / 200 > 0.95
    assert table["item_id"].to_pylist() == [f"i{n:05d}" for n in range(200)]
    assert len(set(table["sid"].to_pylist())) == 200
    assert table["sid"].to_pylist() == ["_".join(map(str, row)) for row in codes.tolist()]
    assert set(table["tokenizer_version"].to_pylist()) == {run["version"]}
    assert run["items"] == 200
    assert run["utilisation"][0] == 1.0
    assert min(run["utilisation"]) > 0.9
    assert run["collision_rate_before"] > 0
    assert run["collision_rate_after"] == 0.0
    assert run["moved"] == pytest.approx(np.mean(table["moved"].to_pylist()))
    assert run["reconstruction_cosine"] > 0.9
    assert 1 <= min(run["perplexity"]) <= max(run["perplexity"]) <= 8


def test_training_lowers_the_loss_and_the_curve_records_it(make_embeddings: Callable, fit_table: Callable) -> None:
    run = fit_table(make_embeddings())
    curve = run["curve"]
    assert [record["epoch"] for record in curve] == list(range(1, 21))
    assert run["epochs"] == 20
    assert curve[-1]["reconstruction"] < 0.3 * curve[0]["reconstruction"]
    last = curve[-1]
    quantization = last["codebook"] + 0.25 * last["commitment"]
    assert last["loss"] == pytest.approx(last["reconstruction"] + quantization, abs=1e-5)


@METHODS
def test_the_seed_decides(
    method: Any, make_embeddings: Callable, fit_table: Callable, small: TokenizerSettings
) -> None:
    table, settings = make_embeddings(image_dim=16), replace(small, method=method)
    a, b, other = (fit_table(table, name, settings, seed) for name, seed in [("a", 0), ("b", 0), ("c", 1)])
    assert a["version"] == b["version"]
    assert a["sids"].read_bytes() == b["sids"].read_bytes()
    codes = [read_table("sids", run["sids"])["sid"] for run in (a, other)]
    assert not codes[0].equals(codes[1])


@METHODS
def test_the_order_of_the_rows_does_not_matter(
    method: Any, make_embeddings: Callable, fit_table: Callable, small: TokenizerSettings
) -> None:
    table, settings = make_embeddings(image_dim=16), replace(small, method=method)
    shuffled = table.take(pa.array(np.random.default_rng(0).permutation(200)))
    assert fit_table(table, "a", settings)["version"] == fit_table(shuffled, "b", settings)["version"]


@METHODS
def test_more_codes_than_items(
    method: Any, make_embeddings: Callable, fit_table: Callable, small: TokenizerSettings
) -> None:
    run = fit_table(make_embeddings(items=20), settings=replace(small, method=method, codebook_size=64, latent_dim=32))
    assert run["collision_rate_after"] == 0.0
    assert 0 < run["utilisation"][0] <= 20 / 64
    assert run["reconstruction_cosine"] > 0.9


@METHODS
def test_identical_items_still_get_sids_of_their_own(
    method: Any, make_embeddings: Callable, fit_table: Callable, small: TokenizerSettings
) -> None:
    one = make_embeddings(items=1)
    table = pa.concat_tables([one.set_column(0, "item_id", [[f"i{n}"]]) for n in range(30)])
    run = fit_table(table, settings=replace(small, method=method, epochs=3))
    assert run["collision_rate_before"] == 1.0
    assert run["collision_rate_after"] == 0.0


def test_dead_codes_are_revived(make_embeddings: Callable, small: TokenizerSettings, tmp_path: Path) -> None:
    """Codes far from every item are put onto residuals of items, and Adam forgets their past; used codes stay."""
    inputs = read_inputs(make_embeddings())
    model = fit.build(small, 12, 0)
    training = Training(model, small, 0, tmp_path, "x")
    x, none = torch.from_numpy(inputs.text), torch.zeros(200, dtype=torch.bool)
    with torch.no_grad():
        model.initialise(x, none, training.generator)
        model.codebooks[0, 3:] = 1e3
        residual = model.latents(x, none)
    training.optimizer.state[model.codebooks] = {
        name: torch.ones_like(model.codebooks) for name in ("exp_avg", "exp_avg_sq")
    }
    used, usage = model.codebooks[0, :3].clone(), torch.ones(3, 8)
    usage[0, 3:] = 0
    training._revive(usage, x, none)
    assert torch.equal(model.codebooks[0, :3], used)
    assert (model.codebooks[0, 3:, None] - residual).abs().sum(2).min(1).values.max() == 0
    moments = training.optimizer.state[model.codebooks]["exp_avg_sq"]
    assert not moments[0, 3:].any()
    assert moments[0, :3].all()


def _with_text(table: pa.Table, row: int, vector: list[float]) -> pa.Table:
    rows = table["text"].to_pylist()
    rows[row] = vector
    return table.set_column(1, "text", pa.array(rows, pa.list_(pa.float32())))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda t: _with_text(t, 3, [float("nan")] * 12), "'i00003' holds NaN"),
        (lambda t: _with_text(t, 3, [1.0] * 5), "'i00003' has 5 components"),
        (lambda t: pa.concat_tables([t, t.slice(4, 1)]), "'i00004' more than once"),
        (lambda t: t.slice(0, 0), "has no row"),
        (lambda t: t.drop_columns(["text"]), "column 'text' is missing"),
    ],
)
def test_unusable_embeddings_are_refused(damage: Callable, message: str, make_embeddings: Callable) -> None:
    with pytest.raises(InputError, match=message):
        read_inputs(damage(make_embeddings(items=20)))


def test_a_refused_fit_leaves_what_was_there(
    make_embeddings: Callable, fit_table: Callable, small: TokenizerSettings
) -> None:
    run = fit_table(make_embeddings(items=30))
    before, sids = (run["bundle"] / "manifest.json").read_bytes(), run["sids"].read_bytes()
    with pytest.raises(InputError, match=r"30 items do not fit into 2 levels of 4 codes; raise tokenizer\."):
        fit_table(make_embeddings(items=30), settings=replace(small, levels=2, codebook_size=4))
    with pytest.raises(InputError, match=r"tokenizer\.levels is 0; it must be at least 1"):
        fit_table(make_embeddings(items=30), settings=replace(small, levels=0))
    with pytest.raises(InputError, match="OPQ cuts it into 3 levels"):
        fit_table(make_embeddings(items=30), settings=replace(small, method="opq", latent_dim=2))
    assert (run["bundle"] / "manifest.json").read_bytes() == before
    assert run["sids"].read_bytes() == sids


def test_a_missing_file_is_an_input_error(small: TokenizerSettings, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        fit.run(tmp_path / "none.parquet", tmp_path / "b", tmp_path / "s", small, 0, tmp_path / "w")

