"""The policy bundle: what it keeps, and what it refuses to load."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tessera import bundle as bundles
from tessera.config import PolicySettings
from tessera.decoding.recommender import Recommender
from tessera.errors import BundleError
from tessera.policy import backbone as backbones
from tessera.policy.bundle import MODEL, SIDS, load_policy, save_policy
from tessera.schema import read_table, write_table

TINY = PolicySettings(hidden=32, layers=2, heads=2, text_vocabulary=300, dropout=0.3)
CODES = np.stack(np.unravel_index(np.arange(0, 512, 20), (8, 8, 8)), axis=1)
WEIGHTS = f"{MODEL}/model.safetensors"


def save(folder: Path, sids: pa.Table, seed: int = 0, **metrics: float) -> bundles.Manifest:
    backbone = backbones.build(TINY, ["words"], 3, 8, seed)
    return save_policy(folder, backbone, sids, codebook_size=8, max_history=4, config={"seed": seed}, metrics=metrics)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, make_sids: Callable[..., pa.Table]) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "policy"
    save(folder, make_sids(CODES))
    return folder


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def test_round_trip_gives_the_same_recommendations(tmp_path: Path, make_sids: Callable[..., pa.Table]) -> None:
    sids, histories = make_sids(CODES), [["item-1", "item-2"], ["item-3"]]
    backbone = backbones.build(TINY, ["words"], 3, 8, seed=0)
    backbone.model.eval()
    before = Recommender(backbone, sids, 8, 4).recommend(histories, 10)
    manifest = save_policy(
        tmp_path / "policy", backbone, sids, codebook_size=8, max_history=4, config={"a": 1}, metrics={"b": 2.0}
    )
    policy = load_policy(tmp_path / "policy")
    assert policy.manifest == manifest
    assert (policy.tokenizer_version, policy.codebook_size, policy.max_history) == ("tok-1", 8, 4)
    assert (manifest.config, manifest.metrics, manifest.parent) == ({"a": 1}, {"b": 2.0}, "tok-1")
    assert policy.sids.equals(sids)
    recommender = Recommender.load(tmp_path / "policy")
    assert recommender.recommend(histories, 10) == before
    assert (recommender.policy_version, recommender.tokenizer_version) == (manifest.version, "tok-1")


def test_the_version_is_of_the_content(tmp_path: Path, make_sids: Callable[..., pa.Table]) -> None:
    sids = make_sids(CODES)
    one, same, measured, seeded, other = (
        save(tmp_path / "1", sids),
        save(tmp_path / "2", sids),
        save(tmp_path / "3", sids, hr=0.5),
        save(tmp_path / "4", sids, seed=1),
        save(tmp_path / "5", make_sids(CODES[:-1])),
    )
    assert one.version == same.version == measured.version
    assert len({one.version, seeded.version, other.version}) == 3


def test_nothing_in_the_folder_is_pickled(saved: Path) -> None:
    files = [path for path in saved.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".safetensors", ".json", ".parquet"}
    manifest = bundles.load_manifest(saved, "policy")
    assert set(manifest.files) == {p.relative_to(saved).as_posix() for p in files} - {bundles.MANIFEST}


def _edit(folder: Path, **changes: Any) -> None:
    path = folder / bundles.MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _flip_a_byte(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[-20] ^= 1
    path.write_bytes(raw)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda f: (f / WEIGHTS).unlink(), r"truncated: model/model.safetensors is missing; copy the whole folder"),
        (lambda f: (f / SIDS).unlink(), r"truncated: sids.parquet is missing"),
        (lambda f: _flip_a_byte(f / WEIGHTS), r"damaged: model/model.safetensors does not match its SHA-256"),
        (lambda f: _flip_a_byte(f / SIDS), r"damaged: sids.parquet does not match its SHA-256"),
        (lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-9]), r"does not match its SHA-256"),
        (lambda f: (f / bundles.MANIFEST).unlink(), r"no finished policy bundle; run its stage again"),
        (lambda f: (f / bundles.MANIFEST).write_text('{"kind": "pol'), r"no readable manifest.json"),
        (lambda f: (f / bundles.MANIFEST).write_text("[]"), r"schema version None, this Tessera reads 1"),
        (lambda f: _edit(f, schema_version=2), r"schema version 2, this Tessera reads 1"),
        (lambda f: _edit(f, surprise=1), r"not a bundle manifest"),
        (lambda f: _edit(f, kind="tokenizer"), r"is a tokenizer bundle, but a policy bundle is needed"),
        (lambda f: _edit(f, parent="tok-2"), r"damaged: manifest.json does not match its version"),
        (lambda f: _edit(f, files=[]), r"is not a bundle manifest \(files is no object\)"),
        (lambda f: _edit(f, extra={}), r"damaged: manifest.json does not match its version"),
        (shutil.rmtree, r"does not exist; give the folder of a policy bundle"),
    ],
)
def test_a_damaged_bundle_is_refused(damage: Callable[[Path], Any], says: str, copy: Path) -> None:
    Recommender.load(copy)
    damage(copy)
    with pytest.raises(BundleError, match=says):
        Recommender.load(copy)


@pytest.mark.parametrize("damage", ["weights", "config"])
def test_a_model_that_is_whole_by_its_hash_but_no_model(damage: str, saved: Path, tmp_path: Path) -> None:
    def write(staging: Path) -> None:
        shutil.copytree(saved / MODEL, staging / MODEL)
        shutil.copy(saved / SIDS, staging / SIDS)
        if damage == "weights":
            (staging / WEIGHTS).write_bytes((staging / WEIGHTS).read_bytes()[:1000])
        else:
            (staging / MODEL / "config.json").write_text("{}")

    extra = bundles.load_manifest(saved, "policy").extra
    bundles.save(tmp_path / "odd", "policy", write, config={}, metrics={}, parent="tok-1", extra=extra)
    with pytest.raises(BundleError, match=r"cannot be loaded .*; train again"):
        load_policy(tmp_path / "odd")


def test_sids_of_another_tokenizer_are_refused(saved: Path, tmp_path: Path, make_sids: Callable[..., pa.Table]) -> None:
    write_table("sids", make_sids(CODES, "tok-2"), tmp_path / "sids.parquet")
    version = bundles.load_manifest(saved, "policy").version
    with pytest.raises(BundleError) as caught:
        Recommender.load(saved, tmp_path / "sids.parquet")
    assert str(caught.value) == (
        f"policy {version} was trained on SIDs of tokenizer tok-1, the index is of tokenizer tok-2; "
        "use the SIDs that belong to it or train a policy on the new ones."
    )


def test_one_table_holds_sids_of_one_tokenizer(saved: Path, tmp_path: Path, make_sids: Callable[..., pa.Table]) -> None:
    mixed = pa.concat_tables([make_sids(CODES[:5]), make_sids(CODES[5:], "tok-2")])
    write_table("sids", mixed, tmp_path / "mixed.parquet")
    write_table("sids", make_sids(CODES[:0]), tmp_path / "none.parquet")
    with pytest.raises(BundleError, match=r"this one has 2 \(tok-1, tok-2\); write it again from one"):
        Recommender.load(saved, tmp_path / "mixed.parquet")
    with pytest.raises(BundleError, match="this one has 0"):
        Recommender.load(saved, tmp_path / "none.parquet")
    with pytest.raises(BundleError, match="must come from one tokenizer"):
        save(tmp_path / "policy", mixed)
    assert not (tmp_path / "policy").exists()


def test_saving_again_replaces_the_bundle(tmp_path: Path, make_sids: Callable[..., pa.Table]) -> None:
    save(tmp_path / "policy", make_sids(CODES))
    (tmp_path / "policy" / "left-over").write_text("of before")
    newer = save(tmp_path / "policy", make_sids(CODES[:7]))
    assert load_policy(tmp_path / "policy").manifest == newer
    assert len(read_table("sids", tmp_path / "policy" / SIDS)) == 7
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]
    assert not (tmp_path / "policy" / "left-over").exists()
