"""What is made beside the embeddings, and that a tokenizer of it takes ordinary embeddings of later items."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tessera import config
from tessera.bundle import load_manifest
from tessera.config import Settings, TokenizerSettings
from tessera.errors import BundleError, InputError
from tessera.schema import SCHEMAS, read_table, write_table
from tessera.tokenizer import fit, grounding, relations
from tessera.tokenizer.bundle import GROUNDING, Tokenizer
from tessera.tokenizer.grounding import Grounding
from tessera.tokenizer.inputs import Inputs, read_inputs

ITEMS, USERS, WIDTH = 60, 12, 384  # the embedded encoder's width
ALIGNED = Settings(tokenizer=TokenizerSettings(method="aligned"))
GROUNDED = Settings(space="grounded")


@pytest.fixture(scope="module")
def catalogue(make_embeddings: Callable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of tables: 60 items of which the last 20 were never bought in training."""
    folder = tmp_path_factory.mktemp("catalogue")
    table = make_embeddings(items=ITEMS, text_dim=WIDTH, image_dim=10)
    ids = table["item_id"].to_pylist()
    fixed = {"description": "", "attributes": [], "image_status": "none", "image": None}
    items = [
        {"item_id": item, "title": f"Thing {n}", "brand": f"Brand {n % 5}", "categories": [f"Kind {n % 3}"], **fixed}
        for n, item in enumerate(ids)
    ]
    made = {"provider": "p", "model": "m", "prompt_version": "v", "status": "ok", "reason": None}
    tags = [{"text": "a day out", "confidence": 0.9}]
    intents = [{"item_id": i, "surface": [], "motives": [], "descriptors": tags, **made} for i in ids]
    users = [
        {"user_id": f"u{u:02d}", "train": [ids[(u * 7 + step) % 40] for step in range(6)], "validation": ids[u],
         "test": ids[50]}
        for u in range(USERS)
    ]  # fmt: skip
    write_table("embeddings", table, folder / "embeddings.parquet")
    for name, rows in {"items": items, "intents": intents, "splits": users}.items():
        write_table(name, pa.Table.from_pylist(rows, SCHEMAS[name]), folder / f"{name}.parquet")
    write_table("splits", pa.Table.from_pylist([], SCHEMAS["splits"]), folder / "nobody.parquet")
    return folder


def relate(catalogue: Path, out: Path, settings: Settings, splits: str = "splits") -> dict[str, Any]:
    tables = [catalogue / f"{name}.parquet" for name in ("items", "intents", splits, "embeddings")]
    url = f"sqlite:///{out / 'ledger.db'}"
    return relations.run(*tables, out / "related.parquet", out / "weights", settings, url)


def test_the_settings_say_what_is_made() -> None:
    assert [config.relation(one) for one in (Settings(), ALIGNED, GROUNDED)] == ["none", "collaborative", "grounding"]
    with pytest.raises(InputError, match="choose --space content or another method"):
        config.relation(replace(ALIGNED, space="grounded"))


def test_without_a_wish_nothing_is_made(catalogue: Path, tmp_path: Path) -> None:
    assert relate(catalogue, tmp_path, Settings()) == {"relation": "none"}
    assert not (tmp_path / "weights").exists()
    assert not (tmp_path / "related.parquet").exists()


def test_collaborative_vectors_stand_where_photos_stood(catalogue: Path, tmp_path: Path) -> None:
    said = relate(catalogue, tmp_path, ALIGNED)
    assert (said["relation"], said["bought"]) == ("collaborative", 40)
    before = read_inputs(read_table("embeddings", catalogue / "embeddings.parquet"))
    now = read_inputs(read_table("embeddings", tmp_path / "related.parquet"))
    assert np.array_equal(now.text, before.text)
    assert now.has_image.tolist() == [True] * 40 + [False] * 20
    assert not (tmp_path / "weights").exists()


@pytest.fixture(scope="module")
def grounded(catalogue: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("grounded")
    said = relate(catalogue, out, GROUNDED)
    assert (said["relation"], said["items"], said["failed"]) == ("grounding", ITEMS, 0)
    assert said["model_calls"] == ITEMS
    return out


def test_grounding_again_asks_no_model_and_ends_the_same(catalogue: Path, grounded: Path) -> None:
    before = (grounded / "weights").read_bytes()
    said = relate(catalogue, grounded, GROUNDED)
    assert (said["model_calls"], said["reused"]) == (0, ITEMS)
    assert (grounded / "weights").read_bytes() == before


def test_without_purchases_and_photos_words_are_left(catalogue: Path, grounded: Path, tmp_path: Path) -> None:
    hidden = replace(GROUNDED, tokenizer=TokenizerSettings(use_images=False))
    (tmp_path / "ledger.db").write_bytes((grounded / "ledger.db").read_bytes())
    said = relate(catalogue, tmp_path, hidden, "nobody")
    assert said["pairs"] == 0
    assert Grounding.load(tmp_path / "weights").balance.image_dim == 0


def test_words_by_another_encoder_are_refused(catalogue: Path, make_embeddings: Callable, tmp_path: Path) -> None:
    write_table("embeddings", make_embeddings(items=ITEMS), tmp_path / "knowledge.parquet")
    files = catalogue / "embeddings.parquet", tmp_path / "knowledge.parquet", catalogue / "splits.parquet"
    with pytest.raises(InputError, match="embed both with one encoder"):
        grounding.run(*files, tmp_path / "weights", 0)


def test_a_split_of_other_items_is_refused(catalogue: Path, tmp_path: Path) -> None:
    stray = {"user_id": "u", "train": ["i00001", "stranger"], "validation": None, "test": None}
    write_table("splits", pa.Table.from_pylist([stray], SCHEMAS["splits"]), tmp_path / "splits.parquet")
    embeddings = catalogue / "embeddings.parquet"
    with pytest.raises(InputError, match="item 'stranger' has no embedding"):
        grounding.run(embeddings, embeddings, tmp_path / "splits.parquet", tmp_path / "weights", 0)


@pytest.fixture(scope="module")
def fitted(catalogue: Path, grounded: Path, small: TokenizerSettings) -> dict[str, Any]:
    paths = {"bundle": grounded / "bundle", "sids": grounded / "sids.parquet", "work": grounded / "work"}
    told = {"settings": small, "seed": 0, "grounding": grounded / "weights"}
    metrics = fit.run(catalogue / "embeddings.parquet", **paths, **told)
    return {**paths, **told, "metrics": metrics, "embeddings": catalogue / "embeddings.parquet"}


def test_what_is_quantized_is_the_grounded_vector(fitted: dict[str, Any], tmp_path: Path) -> None:
    """The same codes as of a tokenizer that is given the grounded vectors as text."""
    inputs = read_inputs(read_table("embeddings", fitted["embeddings"]))
    vectors = Grounding.load(fitted["grounding"]).vectors(inputs)
    text = pa.array(vectors.tolist(), pa.list_(pa.float32()))
    table = pa.table({"item_id": inputs.item_ids, "text": text, "image": pa.nulls(ITEMS)})
    write_table("embeddings", table, tmp_path / "embeddings.parquet")
    plain = {"bundle": tmp_path / "bundle", "sids": tmp_path / "sids.parquet", "work": tmp_path / "work"}
    metrics = fit.run(tmp_path / "embeddings.parquet", **plain, settings=fitted["settings"], seed=0)
    columns = ["item_id", "codes", "moved"]
    one, two = (read_table("sids", path).select(columns) for path in (fitted["sids"], plain["sids"]))
    assert one.equals(two)
    assert fitted["metrics"]["reconstruction_cosine"] == pytest.approx(metrics["reconstruction_cosine"])
    assert fitted["metrics"]["collision_rate_after"] == 0.0
    tokenizer = Tokenizer.load(fitted["bundle"])
    assert np.array_equal(tokenizer.ground(inputs).text, vectors)
    assert (tokenizer.text_dim, tokenizer.image_dim) == (WIDTH, 10)
    assert load_manifest(fitted["bundle"], "tokenizer").config["image_width"] == 10


def test_later_items_are_appended_from_ordinary_embeddings(fitted: dict[str, Any], make_embeddings: Callable) -> None:
    """An item that says what a published one says, in words and photo, gets its first codes."""
    tokenizer, published = Tokenizer.load(fitted["bundle"]), read_table("sids", fitted["sids"])
    known = read_table("embeddings", fitted["embeddings"])
    twins = known.set_column(0, "item_id", pa.array([f"new-{n:03d}" for n in range(ITEMS)]))
    added = tokenizer.append(twins, published)
    inputs = read_inputs(known)
    own = tokenizer.encode(inputs.text, inputs.image, inputs.has_image)
    unmoved = ~np.array(added["moved"])
    assert (np.array(added["codes"].to_pylist())[unmoved] == own[unmoved]).all()
    assert (np.array(added["codes"].to_pylist())[:, 0] == own[:, 0]).mean() > 0.9
    assert not set(added["sid"].to_pylist()) & set(published["sid"].to_pylist())
    with pytest.raises(BundleError, match="image embeddings are 7 wide"):
        tokenizer.append(make_embeddings(items=4, text_dim=WIDTH, image_dim=7, start=500), published)


def test_the_same_fit_is_used_again_and_other_weights_are_not(fitted: dict[str, Any], tmp_path: Path) -> None:
    told = {name: fitted[name] for name in ("embeddings", "bundle", "sids", "settings", "seed", "work")}
    version = load_manifest(fitted["bundle"], "tokenizer").version
    assert fit.run(**told, grounding=fitted["grounding"])["curve"] == fitted["metrics"]["curve"]
    assert load_manifest(fitted["bundle"], "tokenizer").version == version
    inputs = read_inputs(read_table("embeddings", fitted["embeddings"]))
    views = grounding.Views(inputs.text, inputs.text, np.empty((0, 2), np.int64))
    grounding.fit(inputs, views, seed=1, epochs=1)[0].save(tmp_path / "other")
    places = {"bundle": tmp_path / "bundle", "sids": tmp_path / "sids", "work": tmp_path / "work"}
    fit.run(**told | places, grounding=tmp_path / "other")
    assert load_manifest(tmp_path / "bundle", "tokenizer").version != version


def test_weights_that_are_none_are_refused(fitted: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"no weights")
    told = {name: fitted[name] for name in ("embeddings", "settings", "seed")}
    for bad in (tmp_path / "weights", tmp_path / "missing"):
        with pytest.raises(InputError, match=f"{bad.name} does not"):
            fit.run(**told, bundle=tmp_path / "b", sids=tmp_path / "s", work=tmp_path / "w", grounding=bad)
    (fitted["bundle"] / GROUNDING).rename(tmp_path / "kept")
    try:
        with pytest.raises(BundleError, match=r"grounding\.safetensors is missing"):
            Tokenizer.load(fitted["bundle"])
    finally:
        (tmp_path / "kept").rename(fitted["bundle"] / GROUNDING)


def test_a_new_item_of_aligned_is_its_text_whatever_its_photo(
    catalogue: Path, make_embeddings: Callable, small: TokenizerSettings, tmp_path: Path
) -> None:
    relate(catalogue, tmp_path, ALIGNED)
    settings = replace(small, method="aligned", use_images=False, epochs=5)  # collaborative vectors are no images
    paths = {"bundle": tmp_path / "bundle", "sids": tmp_path / "sids.parquet", "work": tmp_path / "work"}
    assert fit.run(tmp_path / "related.parquet", **paths, settings=settings, seed=0)["images"] == 40
    tokenizer, published = Tokenizer.load(paths["bundle"]), read_table("sids", paths["sids"])
    assert (tokenizer.text_dim, tokenizer.image_dim) == (WIDTH, 0)
    new = make_embeddings(items=9, text_dim=WIDTH, image_dim=10, start=500)
    blind = new.set_column(2, "image", pa.nulls(9, pa.list_(pa.float32())))
    assert tokenizer.append(new, published).equals(tokenizer.append(blind, published))
    # A collaborative vector is read where one is given.
    inputs = read_inputs(read_table("embeddings", tmp_path / "related.parquet"))
    codes = tokenizer.encode(inputs.text, inputs.image, inputs.has_image)
    assert (codes != tokenizer.encode(inputs.text))[:40].any()
    assert isinstance(tokenizer.ground(inputs), Inputs)
