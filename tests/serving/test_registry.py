"""The registry on a real MLflow: versions, aliases that move together or not at all, models that recommend."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

from serving import aliases
from serving.aliases import POLICY, TOKENIZER, Aliases
from serving.registry import Registry
from tessera import bundle
from tessera.config import PolicySettings, TokenizerSettings
from tessera.decoding.recommender import Recommender
from tessera.errors import BundleError, InputError, ServiceError
from tessera.policy.backbone import build
from tessera.policy.bundle import save_policy
from tessera.tokenizer.bundle import Tokenizer
from tessera.tokenizer.bundle import build as build_tokenizer

ITEMS = [f"item{i:02d}" for i in range(20)]


def tokenizer_bundle(folder: Path, seed: int, image_dim: int = 3) -> str:
    """A tokenizer that was never fitted: it encodes, if badly."""
    torch.manual_seed(seed)
    settings = TokenizerSettings(codebook_size=8, latent_dim=4, hidden_dim=8, fused_dim=8, image_dim=4)
    model = build_tokenizer(settings, 4, image_dim)
    torch.nn.init.normal_(model.codebooks)
    tokenizer = Tokenizer(model, settings)
    tokenizer.save(folder, {"collision_rate_after": 0.0, "utilisation": [0.5, 0.25]}, f"seed {seed}")
    return tokenizer.version


def policy_bundle(folder: Path, tokenizer: str, seed: int) -> str:
    """A policy that was never trained: it recommends, if badly."""
    codes = [[i % 4, i // 4, 0] for i in range(len(ITEMS))]
    sids = pa.table(
        {
            "item_id": ITEMS,
            "sid": ["_".join(map(str, code)) for code in codes],
            "codes": codes,
            "moved": [False] * len(ITEMS),
            "tokenizer_version": [tokenizer] * len(ITEMS),
        }
    )
    settings = PolicySettings(hidden=16, layers=1, heads=2, text_vocabulary=300)
    backbone = build(settings, ITEMS, levels=3, codebook_size=8, seed=seed)
    described: dict[str, Any] = {"config": {"seed": seed}, "metrics": {"hr@10": seed / 10}}
    return save_policy(folder, backbone, sids, codebook_size=8, max_history=5, **described).version


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tokenizers t1 and t2; policy p1 on t1, policies p2 and p3 on t2."""
    folder = tmp_path_factory.mktemp("bundles")
    versions = {name: tokenizer_bundle(folder / name, seed) for seed, name in enumerate(("t1", "t2"), 1)}
    for seed, (name, tokenizer) in enumerate({"p1": "t1", "p2": "t2", "p3": "t2"}.items(), 1):
        policy_bundle(folder / name, versions[tokenizer], seed)
    return folder


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory, bundles: Path) -> dict[str, Any]:
    """A home with all bundles registered, made once, in another process: MLflow takes seconds to create its tables."""
    home = tmp_path_factory.mktemp("template")
    script = """
import sys
from serving.registry import Registry
registry, folder = Registry(sys.argv[1]), sys.argv[2]
for name in ("t1", "t2"):
    registry.register_tokenizer(f"{folder}/{name}")
for name in ("p1", "p2", "p3"):
    registry.register_policy(f"{folder}/{name}")
"""
    started = subprocess.run(
        [sys.executable, "-c", script, str(home), str(bundles)], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )
    assert started.returncode == 0, started.stderr
    return {"home": home, "output": started.stdout + started.stderr}


@pytest.fixture
def registry(template: dict[str, Any], tmp_path: Path) -> Registry:
    """A registry of its own for each test."""
    shutil.copytree(template["home"], tmp_path / "home")
    return Registry(tmp_path / "home")


@pytest.fixture
def tracking(registry: Registry) -> Iterator[Registry]:
    """What a notebook does first."""
    import mlflow

    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(registry.url)
    yield registry
    mlflow.set_tracking_uri(before)


def raw(registry: Registry) -> tuple[dict[str, str], dict[str, str]]:
    """The aliases of policy and tokenizer as MLflow has them, without any repair."""
    policy, tokenizer = (registry.client.get_registered_model(name).aliases for name in (POLICY, TOKENIZER))
    return {k: str(v) for k, v in policy.items()}, {k: str(v) for k, v in tokenizer.items()}


def test_registering_is_quiet_and_pickles_nothing(template: dict[str, Any]) -> None:
    assert template["output"] == ""
    names = [path.name for path in (template["home"] / "mlartifacts").rglob("*") if path.is_file()]
    assert names.count("pyfunc_policy.py") == 3
    assert names.count("pyfunc_tokenizer.py") == 2
    assert not [name for name in names if name.endswith((".pkl", ".pickle", ".joblib"))]
    assert sorted(path.name for path in template["home"].iterdir()) == [".registry.lock", "mlartifacts", "mlflow.db"]


def test_versions_carry_bundle_tokenizer_and_metrics(registry: Registry, bundles: Path) -> None:
    found = {(v.model, v.version): v for v in registry.versions()}
    assert list(found) == [(POLICY, "3"), (POLICY, "2"), (POLICY, "1"), (TOKENIZER, "2"), (TOKENIZER, "1")]
    policy, tokenizer = found[POLICY, "1"], found[TOKENIZER, "1"]
    assert policy.bundle_version == bundle.load_manifest(bundles / "p1", "policy").version
    assert policy.tokenizer_version == tokenizer.bundle_version == tokenizer.tokenizer_version
    assert found[POLICY, "2"].tokenizer_version == found[TOKENIZER, "2"].bundle_version
    assert policy.metrics == {"hr@10": 0.1}
    assert tokenizer.metrics == {"collision_rate_after": 0.0, "utilisation.0": 0.5, "utilisation.1": 0.25}
    assert policy.aliases == ()


def test_registering_again_keeps_the_version(registry: Registry, bundles: Path) -> None:
    before = registry.versions()
    assert registry.register_policy(bundles / "p2") == "2"
    assert registry.register_tokenizer(bundles / "t1", metrics={"other": 1}) == "1"
    assert registry.versions() == before


def test_two_at_once_register_one_bundle_once(registry: Registry, tmp_path: Path) -> None:
    tokenizer_bundle(tmp_path / "t9", 9)
    others = [Registry(registry.home) for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(lambda one: one.register_tokenizer(tmp_path / "t9"), others)) == ["3", "3", "3"]


def test_what_cannot_be_registered(registry: Registry, bundles: Path, tmp_path: Path) -> None:
    before = registry.versions()
    policy_bundle(tmp_path / "orphan", "0123456789ab", 7)
    with pytest.raises(InputError, match="needs tokenizer 0123456789ab, which is not registered"):
        registry.register_policy(tmp_path / "orphan")
    with pytest.raises(InputError, match="was trained on tokenizer"):
        registry.register_policy(bundles / "p1", bundle.load_manifest(bundles / "t2", "tokenizer").version)
    with pytest.raises(BundleError, match="is a tokenizer bundle"):
        registry.register_policy(bundles / "t1")
    shutil.copytree(bundles / "p1", tmp_path / "cut")
    (tmp_path / "cut" / "sids.parquet").unlink()
    with pytest.raises(BundleError, match="truncated"):
        registry.register_policy(tmp_path / "cut")
    assert registry.versions() == before


def test_promote_and_rollback_move_both_models(registry: Registry) -> None:
    assert registry.set_challenger("1").aliases == ("challenger",)
    assert raw(registry) == ({"challenger": "1"}, {"challenger": "1"})
    assert registry.promote().version == "1"
    assert raw(registry) == ({"champion": "1"}, {"champion": "1"})
    registry.promote("2")
    assert raw(registry) == ({"champion": "2", "previous": "1"}, {"champion": "2", "previous": "1"})
    registry.promote("2")  # promoting the champion again must not make it its own predecessor
    assert registry.aliases() == Aliases(champion="2", previous="1")
    assert registry.rollback().version == "1"
    assert raw(registry) == ({"champion": "1", "previous": "2"}, {"champion": "1", "previous": "2"})
    registry.set_challenger("3")
    registry.promote()
    assert raw(registry) == ({"champion": "3", "previous": "1"}, {"champion": "2", "previous": "1"})
    assert registry.resolve("champion", TOKENIZER).bundle_version == registry.resolve("champion").tokenizer_version


def test_restore_undoes_a_promotion(registry: Registry) -> None:
    registry.promote("1")
    registry.set_challenger("2")
    before, seen = raw(registry), registry.aliases()
    registry.promote()
    assert raw(registry) != before
    registry.restore(seen)
    assert raw(registry) == before


def test_references_that_name_nothing(registry: Registry) -> None:
    with pytest.raises(InputError, match="sid-policy has no alias 'challenger'; it has 3, 2, 1: name one"):
        registry.promote()
    with pytest.raises(InputError, match="sid-policy has no version '9'"):
        registry.promote("9")
    with pytest.raises(InputError, match="no previous version"):
        registry.rollback()
    registry.promote("1")
    with pytest.raises(InputError, match="no previous version"):
        registry.rollback()
    with pytest.raises(InputError, match=r"it has 2, 1 = champion: name one"):
        registry.download(TOKENIZER, "previous")
    assert raw(registry)[0] == {"champion": "1"}


def test_a_policy_whose_tokenizer_is_gone_is_not_promoted(registry: Registry) -> None:
    registry.promote("1")
    registry.client.delete_model_version(TOKENIZER, "2")
    before = raw(registry)
    with pytest.raises(InputError, match="which is not registered"):
        registry.promote("2")
    assert raw(registry) == before


class Killed(BaseException):
    """Stands for kill -9: nothing that handles errors handles this."""


def failing_at(registry: Registry, patch: pytest.MonkeyPatch, call: int, error: BaseException) -> Callable[[], int]:
    """Let the registry's `call`-th write (from 0) raise; returns a function that counts the writes."""
    count = 0

    def counted(real: Callable[..., None]) -> Callable[..., None]:
        def write(*args: Any) -> None:
            nonlocal count
            count += 1
            if count == call + 1:
                raise error
            real(*args)

        return write

    for what in ("alias", "tag"):
        for name in (f"set_registered_model_{what}", f"delete_registered_model_{what}"):
            patch.setattr(registry.client, name, counted(getattr(registry.client, name)))
    return lambda: count


BEFORE = ({"champion": "1", "challenger": "2"}, {"champion": "1", "challenger": "2"})
AFTER = ({"champion": "2", "previous": "1"}, {"champion": "2", "previous": "1"})


def test_a_failing_move_leaves_everything_as_it_was(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """The announcement and six alias moves: each may be what fails."""
    registry.promote("1")
    registry.set_challenger("2")
    assert raw(registry) == BEFORE
    for call in range(7):
        with monkeypatch.context() as patch:
            failing_at(registry, patch, call, OSError("the disk is full"))
            with pytest.raises(ServiceError, match="the disk is full"):
                registry.promote()
        assert raw(registry) == BEFORE, f"after failing write {call}"
        assert not registry.client.get_registered_model(POLICY).tags
    failing_at(registry, monkeypatch, 7, OSError("the disk is full"))  # only the end of the announcement
    registry.promote()
    assert raw(registry) == AFTER
    registry.versions()
    assert raw(registry) == AFTER


def test_a_killed_move_is_settled_by_the_next_look(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    registry.promote("1")
    registry.set_challenger("2")
    outcomes = []
    for call in range(8):
        with monkeypatch.context() as patch:
            writes = failing_at(registry, patch, call, Killed())
            with pytest.raises(Killed):
                registry.promote()
            assert writes() == call + 1  # nothing was tidied up
        champion = raw(registry)[0]["champion"]
        Registry(registry.home).versions()
        outcomes.append(raw(registry))
        # What the champion alias says is never taken back: a reader may have seen it.
        assert outcomes[-1] == (AFTER if champion == "2" else BEFORE), f"after a kill at write {call}"
        assert not registry.client.get_registered_model(POLICY).tags
        registry.restore(Aliases(champion="1", challenger="2"))
    assert outcomes[0] == BEFORE
    assert outcomes[-1] == AFTER


def test_a_move_that_somebody_else_is_in_the_midst_of_is_left_alone(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.promote("1")
    registry.set_challenger("2")
    with monkeypatch.context() as patch:
        failing_at(registry, patch, 4, Killed())
        with pytest.raises(Killed):
            registry.promote()
    midst, other = raw(registry), Registry(tmp_path / "elsewhere", registry.url)
    assert midst not in (BEFORE, AFTER)
    other.versions()
    with pytest.raises(ServiceError, match="another promotion moves the aliases"):
        other.promote("1")
    assert raw(registry) == midst
    monkeypatch.setattr(aliases, "MOVED_WITHIN_S", 0.0)  # it does not end: whoever it was has died
    other.versions()
    assert raw(registry) in (BEFORE, AFTER)


def test_the_tokenizer_follows_a_champion_that_was_moved_by_hand(registry: Registry) -> None:
    registry.promote("1")
    registry.client.set_registered_model_alias(POLICY, "champion", "3")
    registry.client.set_registered_model_alias(POLICY, "shadow", "1")
    registry.versions()
    assert raw(registry) == ({"champion": "3", "shadow": "1"}, {"champion": "2"})


def test_download_gives_an_intact_bundle(registry: Registry, bundles: Path) -> None:
    registry.promote("2")
    for model, reference, name, kind in ((POLICY, "champion", "p2", "policy"), (TOKENIZER, "1", "t1", "tokenizer")):
        folder = registry.download(model, reference)
        assert bundle.load_manifest(folder, kind) == bundle.load_manifest(bundles / name, kind)
    stored = registry.download(POLICY, "3") / "sids.parquet"
    content = stored.read_bytes()
    try:
        stored.write_bytes(content[:-1])
        with pytest.raises(BundleError, match="damaged"):
            registry.download(POLICY, "3")
    finally:
        stored.write_bytes(content)


def test_the_champion_recommends_in_a_notebook(tracking: Registry, bundles: Path) -> None:
    import mlflow

    tracking.promote("2")
    model = mlflow.pyfunc.load_model("models:/sid-policy@champion")
    histories = [["item01", "item02"], ["item07"]]
    frame = pd.DataFrame({"history": [histories[0], "item07, unknown"]}, index=["ann", "bob"])
    found = model.predict(frame, params={"k": 4})
    expected = Recommender.load(bundles / "p2").recommend(histories, 4)
    assert found["item_ids"].to_dict() == {
        "ann": [one.item_id for one in expected[0]],
        "bob": [one.item_id for one in expected[1]],
    }
    assert found.loc["ann", "sids"] == [one.sid for one in expected[0]]
    assert found.loc["bob", "scores"] == pytest.approx([one.score for one in expected[1]], abs=1e-4)
    everything = model.predict(frame, params={"k": 20, "exclude_history": False})
    assert set(everything.loc["ann", "item_ids"]) == set(ITEMS)
    assert not set(found.loc["ann", "item_ids"]) & set(histories[0])


def test_signature_and_input_example_fit_the_model(tracking: Registry) -> None:
    import mlflow

    model = mlflow.pyfunc.load_model("models:/sid-policy/1")
    assert [column.name for column in model.metadata.signature.inputs] == ["history"]
    assert [column.name for column in model.metadata.signature.outputs] == ["item_ids", "sids", "scores"]
    assert model.metadata.metadata["tokenizer_version"] == tracking.resolve("1").tokenizer_version
    answer = model.predict(model.input_example)
    assert len(answer.loc[0, "item_ids"]) == 10
    for frame, message in (
        (pd.DataFrame({"history": ["nothing, known"]}), "in the catalogue"),
        (pd.DataFrame({"history": [""]}), "the history is empty"),
    ):
        with pytest.raises(InputError, match=message):
            model.predict(frame)
    with pytest.raises(InputError, match="k is 0"):
        model.predict(model.input_example, params={"k": 0})


def test_the_tokenizer_encodes_in_a_notebook(tracking: Registry, bundles: Path, tmp_path: Path) -> None:
    import mlflow

    tokenizer, rng = Tokenizer.load(bundles / "t1"), np.random.default_rng(0)
    text, image = rng.normal(size=(6, 4)), rng.normal(size=(6, 3))
    has_image = np.array([True, False, True, True, False, True])
    images = [list(row) if has else None for row, has in zip(image, has_image, strict=True)]
    frame = pd.DataFrame({"text": text.tolist(), "image": images})
    model = mlflow.pyfunc.load_model("models:/sid-tokenizer/1")
    found = model.predict(frame)
    expected = tokenizer.encode(text, np.where(has_image[:, None], image, 0), has_image).tolist()
    assert found["codes"].tolist() == expected
    assert found["sid"].tolist() == ["_".join(map(str, codes)) for codes in expected]
    without = model.predict(frame[["text"]])["codes"].tolist()
    assert without == tokenizer.encode(text, None).tolist() != expected
    assert len(model.predict(model.input_example)) == 1
    tokenizer_bundle(tmp_path / "text_only", 5, image_dim=0)
    version = tracking.register_tokenizer(tmp_path / "text_only")
    text_only = mlflow.pyfunc.load_model(f"models:/sid-tokenizer/{version}")
    assert [column.name for column in text_only.metadata.signature.inputs] == ["text"]
    assert len(text_only.predict(frame[["text"]])) == 6


def test_a_run_keeps_parameters_curves_and_artefacts(registry: Registry, tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text("{}")
    settings = {"seed": 3, "policy": {"hidden": 128, "backbone": "tiny"}} | {f"x{i}": i for i in range(120)}
    run_id = registry.log_run(
        "demo", settings,
        {"hr@10": 0.25, "utilisation": [0.5, 1], "note": "text", "missing": None, "nan": float("nan")},
        {"loss": [(1, 2.5), (2, 1.5)]}, [tmp_path / "metrics.json"],
    )
    run = registry.client.get_run(run_id)
    assert (run.info.run_name, run.info.status) == ("demo", "FINISHED")
    assert run.data.params["policy.hidden"] == "128"
    assert len(run.data.params) == 123
    assert run.data.metrics == {"hr_at_10": 0.25, "utilisation.0": 0.5, "utilisation.1": 1.0, "loss": 1.5}
    curve = registry.client.get_metric_history(run_id, "loss")
    assert [(point.step, point.value) for point in curve] == [(1, 2.5), (2, 1.5)]
    assert [file.path for file in registry.client.list_artifacts(run_id)] == ["metrics.json"]
    with pytest.raises(InputError, match="does not exist"):
        registry.log_run("demo", {}, {}, artefacts=[tmp_path / "nowhere"])


def test_another_database_by_url(template: dict[str, Any], tmp_path: Path) -> None:
    shutil.copy(template["home"] / "mlflow.db", tmp_path / "elsewhere.db")
    registry = Registry(tmp_path / "home", f"sqlite:///{tmp_path / 'elsewhere.db'}")
    assert len(registry.versions()) == 5
    assert not (tmp_path / "home" / "mlflow.db").exists()


@pytest.mark.parametrize(
    ("url", "error", "message"),
    [
        ("http://127.0.0.1:9", ServiceError, "no MLflow registry answers at http://127.0.0.1:9 .*start it or check"),
        ("postgresql+psycopg://me:hunter2@127.0.0.1:9/db", ServiceError, r"me:\*\*\*@127.0.0.1:9/db"),
        ("file:///tmp/mlruns", InputError, "has no model registry; use sqlite"),
    ],
)
def test_no_registry_at_the_url(tmp_path: Path, url: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as raised:
        Registry(tmp_path, url)
    assert "hunter2" not in str(raised.value)
    assert "\n" not in str(raised.value)
