"""The tokenizer bundle: encode, decode, append; damaged and foreign bundles."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tessera import bundle as bundles
from tessera.config import TokenizerSettings
from tessera.errors import BundleError, InputError
from tessera.schema import read_table
from tessera.tokenizer.bundle import WEIGHTS, Tokenizer
from tessera.tokenizer.inputs import read_inputs

ANY = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(params=["rqvae", "rqkmeans", "rqkmeans_plus", "opq"])
def fitted(request: Any, make_embeddings: Callable, fit_table: Callable, small: TokenizerSettings) -> dict[str, Any]:
    table = make_embeddings(image_dim=16)
    run = fit_table(table, settings=replace(small, method=request.param, epochs=10))
    published = read_table("sids", run["sids"])
    return {**run, "table": table, "tokenizer": Tokenizer.load(run["bundle"]), "published": published}


def test_loaded_tokenizer_encodes_as_published(fitted: dict[str, Any]) -> None:
    inputs, tokenizer = read_inputs(fitted["table"]), fitted["tokenizer"]
    codes = tokenizer.encode(inputs.text, inputs.image, inputs.has_image)
    published = np.array(fitted["published"]["codes"].to_pylist())
    moved = np.array(fitted["published"]["moved"])
    assert (codes[~moved] == published[~moved]).all()
    assert (codes[moved] != published[moved]).any(1).all()
    assert tokenizer.version == fitted["published"]["tokenizer_version"][0].as_py()


@ANY
@given(rows=st.lists(st.integers(0, 199), min_size=1, max_size=20))
def test_an_items_codes_do_not_depend_on_its_batch(fitted: dict[str, Any], rows: list[int]) -> None:
    inputs, tokenizer = read_inputs(fitted["table"]), fitted["tokenizer"]
    all_codes = tokenizer.encode(inputs.text, inputs.image, inputs.has_image)
    some = tokenizer.encode(inputs.text[rows], inputs.image[rows], inputs.has_image[rows])
    assert (some == all_codes[rows]).all()


@ANY
@given(codes=st.lists(st.lists(st.integers(0, 7), min_size=3, max_size=3), min_size=1, max_size=20))
def test_any_valid_codes_decode_to_finite_vectors(fitted: dict[str, Any], codes: list[list[int]]) -> None:
    rebuilt = fitted["tokenizer"].decode(np.array(codes))
    assert rebuilt.shape == (len(codes), 12 + 16)
    assert np.isfinite(rebuilt).all()


def test_decode_is_nearer_to_its_item_than_to_others(fitted: dict[str, Any]) -> None:
    inputs, tokenizer = read_inputs(fitted["table"]), fitted["tokenizer"]
    target = tokenizer.represent(inputs.text, inputs.image, inputs.has_image)[0].numpy()
    rebuilt = tokenizer.decode(tokenizer.encode(inputs.text, inputs.image, inputs.has_image))
    own = (target * rebuilt).sum(1)
    assert own.mean() > 2 * (np.roll(target, 1, axis=0) * rebuilt).sum(1).mean()
    assert (own > (np.roll(target, 1, axis=0) * rebuilt).sum(1)).mean() > 0.9


@pytest.mark.parametrize("codes", [[[0, 0]], [[0, 0, 8]], [[0, -1, 0]]])
def test_codes_out_of_range_are_refused(fitted: dict[str, Any], codes: list[list[int]]) -> None:
    with pytest.raises(InputError, match="the codes"):
        fitted["tokenizer"].decode(np.array(codes))


def test_embeddings_of_another_encoder_are_refused(fitted: dict[str, Any]) -> None:
    tokenizer = fitted["tokenizer"]
    with pytest.raises(BundleError, match=r"text embeddings are 11 wide, but tokenizer .* was fitted on 12"):
        tokenizer.encode(np.zeros((2, 11)))
    with pytest.raises(BundleError, match="image embeddings are 15 wide"):
        tokenizer.encode(np.zeros((2, 12)), np.zeros((2, 15)))
    with pytest.raises(InputError, match="NaN"):
        tokenizer.encode(np.full((2, 12), np.nan))
    assert tokenizer.encode(np.zeros((0, 12))).shape == (0, 3)


def test_append_never_moves_a_published_sid(fitted: dict[str, Any], make_embeddings: Callable) -> None:
    """New items come from the same families, many of them onto a taken SID, some without an image."""
    tokenizer, published = fitted["tokenizer"], fitted["published"]
    new = make_embeddings(items=150, image_dim=16, seed=1, start=200)
    codes = tokenizer.encode(*(lambda i: (i.text, i.image, i.has_image))(read_inputs(new)))
    taken = set(published["sid"].to_pylist())
    wanted = ["_".join(map(str, row)) for row in codes.tolist()]
    added = tokenizer.append(new, published)
    assert added["item_id"].to_pylist() == new["item_id"].to_pylist()
    assert sum(sid in taken for sid in wanted) > 20
    assert not taken & set(added["sid"].to_pylist())
    assert len(set(added["sid"].to_pylist())) == 150
    assert added["moved"].to_pylist() == [a != b for a, b in zip(wanted, added["sid"].to_pylist(), strict=True)]
    assert all(moved for sid, moved in zip(wanted, added["moved"].to_pylist(), strict=True) if sid in taken)
    assert set(added["tokenizer_version"].to_pylist()) == {tokenizer.version}
    # A second append sees the first.
    later = make_embeddings(items=50, image_dim=16, seed=2, start=350)
    again = tokenizer.append(later, pa.concat_tables([published, added]))
    assert len(set(again["sid"].to_pylist()) | taken | set(added["sid"].to_pylist())) == 400


def test_append_refuses_published_items_foreign_sids_and_a_full_tokenizer(
    fitted: dict[str, Any], make_embeddings: Callable
) -> None:
    tokenizer, published = fitted["tokenizer"], fitted["published"]
    with pytest.raises(InputError, match=r"5 of 10 items have a published SID already \(i00195, i00196, i00197, ...\)"):
        tokenizer.append(make_embeddings(items=10, image_dim=16, start=195), published)
    foreign = published.set_column(4, "tokenizer_version", [["other"] * 200])
    with pytest.raises(BundleError, match="published SIDs are of tokenizer other"):
        tokenizer.append(make_embeddings(items=5, image_dim=16, start=200), foreign)
    with pytest.raises(InputError, match="513 items do not fit into the 512 semantic IDs"):
        tokenizer.append(make_embeddings(items=313, image_dim=16, start=200), published)


def _edit_manifest(folder: Path, **changes: Any) -> None:
    path = folder / bundles.MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _flip_byte(folder: Path) -> None:
    raw = bytearray((folder / WEIGHTS).read_bytes())
    raw[-5] ^= 1
    (folder / WEIGHTS).write_bytes(raw)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / WEIGHTS).unlink(), "truncated: tokenizer.safetensors is missing"),
        (_flip_byte, "does not match its SHA-256"),
        (lambda f: (f / bundles.MANIFEST).unlink(), "no readable manifest.json"),
        (lambda f: _edit_manifest(f, schema_version=2), "schema version 2, this Tessera reads 1"),
        (lambda f: _edit_manifest(f, kind="policy"), "is a policy bundle, but a tokenizer bundle"),
        (lambda f: _edit_manifest(f, config={"levels": 3}), "manifest.json does not match its version"),
    ],
)
def test_damaged_bundles_are_refused(damage: Callable, message: str, make_embeddings: Callable, fit_table: Callable,
                                     small: TokenizerSettings) -> None:
    run = fit_table(make_embeddings(items=30), settings=replace(small, method="rqkmeans"))
    damage(run["bundle"])
    with pytest.raises(BundleError, match=message):
        Tokenizer.load(run["bundle"])


def test_weights_of_another_shape_are_refused(fitted: dict[str, Any], tmp_path: Path) -> None:
    """A bundle whose hashes are right and whose tensors are not those of its config."""
    tensors = load_file(fitted["bundle"] / WEIGHTS)
    tensors["codebooks"] = torch.zeros(2, 8, 8)
    config = bundles.load_manifest(fitted["bundle"], "tokenizer").config
    bundles.save(
        tmp_path / "odd", "tokenizer", lambda path: save_file(tensors, path / WEIGHTS), config=config, metrics={}
    )
    with pytest.raises(BundleError, match="does not hold a tokenizer of this release"):
        Tokenizer.load(tmp_path / "odd")
