"""The alignment stages on files: a bundle in, a better or equal bundle out."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from tessera.bundle import load_manifest
from tessera.config import EvaluationSettings, GrpoSettings, PolicySettings, PreferenceSettings, Settings, preset
from tessera.decoding.recommender import Recommender
from tessera.errors import BundleError, InputError
from tessera.policy import align, tuning
from tessera.policy.bundle import load_policy
from tessera.schema import SCHEMAS, read_table, write_table

GRPO = GrpoSettings(epochs=6, batch=6, group=8, learning_rate=3e-3, validate_every=4, rollouts="sampled")
SDPO = PreferenceSettings(epochs=6, batch=6, negatives=5, learning_rate=3e-3, validate_every=4)
EVALUATION = EvaluationSettings()


@pytest.fixture(scope="module")
def tables(toy: Any) -> dict[str, Path]:
    """Quality and intents of the toy's items: one good and one bad descriptor each."""
    ids = read_table("items", toy.folder / "items.parquet")["item_id"].to_pylist()
    made = {"provider": "p", "model": "m", "prompt_version": "v1", "status": "ok", "reason": None}
    descriptors = [{"text": "long camping trips", "confidence": 0.5}, {"text": "nice", "confidence": 0.5}]
    intents = [{"item_id": i, **made, "surface": [], "motives": [], "descriptors": descriptors} for i in ids]
    quality = [{"item_id": i, **made, "labels": [1, 0], "score": n / len(ids)} for n, i in enumerate(ids)]
    paths = {name: toy.folder / f"{name}-for-align.parquet" for name in ("intents", "quality")}
    write_table("intents", pa.Table.from_pylist(intents, SCHEMAS["intents"]), paths["intents"])
    write_table("quality", pa.Table.from_pylist(quality, SCHEMAS["quality"]), paths["quality"])
    return paths


@pytest.fixture
def run(toy: Any, undisturbed: dict[str, Any], tmp_path: Path) -> Callable[..., dict[str, Any]]:
    def align_(settings: Any, name: str = "one", seed: int = 0, policy: Path | None = None, **extra: Any) -> Any:
        stage: Any = align.run_grpo if isinstance(settings, GrpoSettings) else align.run_preference
        bundle = tmp_path / name / "policy"
        metrics = stage(
            policy or undisturbed["bundle"], toy.folder / "splits.parquet", bundle, settings, EVALUATION, seed,
            tmp_path / name / "work", **extra,
        )
        return metrics | {"bundle": bundle, "version": load_manifest(bundle, "policy").version}

    return align_


@pytest.mark.parametrize("settings", [GRPO, SDPO], ids=["grpo", "preference"])
def test_a_bundle_comes_out(settings: Any, run: Callable, undisturbed: dict[str, Any]) -> None:
    """Twelve cases (two a chain) in batches of six, six passes: twelve steps."""
    made = run(settings)
    manifest, start = (load_manifest(one, "policy") for one in (made["bundle"], undisturbed["bundle"]))
    assert (manifest.parent, manifest.extra) == (start.parent, start.extra)
    name = "grpo" if isinstance(settings, GrpoSettings) else "preference"
    assert manifest.config["start"] == start.version
    assert manifest.config[name]["learning_rate"] == 3e-3
    assert manifest.config["hidden"] == start.config["hidden"]
    assert made["steps"] == 12
    assert [point["epoch"] for point in made["curve"]] == [0, 4, 8, 12]
    assert made["curve"][0]["ndcg@10"] == max(undisturbed["curve"], key=lambda one: one["ndcg@10"])["ndcg@10"]
    assert max(point["ndcg@10"] for point in made["curve"]) >= made["curve"][0]["ndcg@10"]
    assert Recommender.load(made["bundle"]).recommend([["item-0-0"]], 3)
    assert (made["bundle"] / "sids.parquet").read_bytes() == (undisturbed["bundle"] / "sids.parquet").read_bytes()


def test_the_new_weights_are_in_the_bundle(
    run: Callable, undisturbed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told that every step was an improvement, the stage keeps the last; told that none was, the start."""
    for sign, kept in ((1, 12), (-1, 0)):
        monkeypatch.setattr(align, "ranking_metrics", lambda *_, sign=sign: {"ndcg@10": sign * time.monotonic()})
        made = run(GRPO, str(sign))
        before, after = (load_policy(one).backbone.model for one in (undisturbed["bundle"], made["bundle"]))
        assert made["best_step"] == kept
        assert torch.equal(before.lm_head.weight, after.lm_head.weight) == (kept == 0)


def test_the_same_inputs_are_not_trained_twice(run: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(GRPO)
    monkeypatch.setattr(align, "load_policy", None)
    again = run(GRPO)
    assert again["version"] == first["version"]
    assert again["curve"] == first["curve"]
    assert again["seconds"] == 0.0
    with pytest.raises(TypeError):  # trains anew
        run(GRPO, seed=1)
    with pytest.raises(TypeError):
        run(replace(GRPO, kl=0.5))


@pytest.mark.parametrize("bonus", ["quality", "uniform", "random", "heuristic"])
def test_each_bonus_reaches_the_reward(bonus: Any, run: Callable, tables: dict[str, Path], monkeypatch) -> None:
    seen = []
    build = align.reward_function

    def noted(settings, codes, scores, vectors):
        seen.append(scores)
        return build(settings, codes, scores, vectors)

    monkeypatch.setattr(align, "reward_function", noted)
    run(replace(GRPO, bonus=bonus, epochs=1), **tables)
    scores = seen[0]
    expected = {"quality": 29 / 60, "uniform": 29 / 60, "random": 0.5, "heuristic": 0.0}[bonus]
    assert float(scores.mean()) == pytest.approx(expected, abs=0.2 if bonus == "random" else 1e-4)
    assert (scores.unique().numel() == 1) == (bonus in {"uniform", "heuristic"})


def test_a_bonus_without_its_table(run: Callable, tables: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="bonus is quality, which is paid by the 'quality' table"):
        run(replace(GRPO, bonus="quality"), intents=tables["intents"])
    with pytest.raises(InputError, match="paid by the 'intents' table"):
        run(replace(GRPO, bonus="random"), quality=tables["quality"])
    with pytest.raises(InputError, match="does not exist"):
        run(replace(GRPO, bonus="quality"), quality=tmp_path / "absent.parquet")


def test_collaborative_vectors_follow_their_items(run: Callable, toy: Any) -> None:
    """Items of one chain are alike, so that more is paid than for the target alone."""
    ids = read_table("items", toy.folder / "items.parquet")["item_id"].to_pylist()
    eye = torch.eye(6).numpy()
    vectors = {i: eye[int(i.split("-")[1])] for i in ids}
    alike = run(replace(GRPO, reward="collaborative", epochs=1), vectors=vectors)
    exact = run(replace(GRPO, epochs=1), "exact")
    assert alike["curve"][-1]["reward"] > exact["curve"][-1]["reward"]
    with pytest.raises(InputError, match="vectors of the items"):
        run(replace(GRPO, reward="collaborative"), "without")


@pytest.mark.parametrize(("alignment", "trained"), [("grpo", GRPO), ("preference", SDPO), ("none", None)])
def test_the_settings_choose(
    alignment: Any, trained: Any, toy: Any, undisturbed: dict[str, Any], tables: dict[str, Path], tmp_path: Path
) -> None:
    settings = Settings(alignment=alignment, seed=3, grpo=replace(GRPO, bonus="quality"), preference=SDPO)
    inputs = undisturbed["bundle"], toy.folder / "splits.parquet", tables["quality"], tables["intents"]
    if trained is None:
        with pytest.raises(InputError, match="choose grpo or preference"):
            align.run(*inputs, tmp_path / "policy", settings, tmp_path / "work")
        return
    made = align.run(*inputs, tmp_path / "policy", settings, tmp_path / "work")
    config = load_manifest(tmp_path / "policy", "policy").config
    assert made["steps"] == 12
    assert config[alignment]["seed"] == 3
    assert config[alignment].get("bonus") == ("quality" if alignment == "grpo" else None)


def test_the_collaborative_reward_is_paid_by_who_bought_what(
    toy: Any, undisturbed: dict[str, Any], tables: dict[str, Path], tmp_path: Path
) -> None:
    """Everybody bought items of one chain alone, whose vectors then are alike: more is paid than for the target."""
    inputs = undisturbed["bundle"], toy.folder / "splits.parquet", tables["quality"], tables["intents"]
    paid = {}
    for reward in ("exact", "collaborative"):
        settings = Settings(alignment="grpo", grpo=replace(GRPO, reward=reward, epochs=1))
        made = align.run(*inputs, tmp_path / reward, settings, tmp_path / f"work-{reward}")
        paid[reward] = made["curve"][1]["reward"]
    assert paid["collaborative"] > paid["exact"] + 0.05
    vectors = align._collaborative(*inputs[:2], 0)
    assert set(vectors) == {f"item-{chain}-{place}" for chain in range(6) for place in range(3)}
    unit = {item: row / (row @ row) ** 0.5 for item, row in vectors.items()}
    assert unit["item-0-0"] @ unit["item-0-2"] > 0.8 > unit["item-0-0"] @ unit["item-3-2"]


def test_the_paper_preset_aligns() -> None:
    paper = preset("paper")
    assert (paper.alignment, paper.grpo.epochs, paper.grpo.kl, paper.grpo.bonus) == ("grpo", 2, 0.001, "quality")
    assert {preset("demo").alignment, preset("catalogue").alignment} == {"none"}


def test_low_rank_adapters_are_trained_alone_and_merged(
    run: Callable, toy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = toy.run("for-lora")
    settings = align._policy_settings(load_manifest(start["bundle"], "policy").config)
    monkeypatch.setattr(align, "_policy_settings", lambda _: replace(settings, adaptation="lora", lora_rank=2))
    trained = []
    reference = tuning.Reference.__init__

    def noted(self: tuning.Reference, weights: Any) -> None:
        trained.extend(weights)
        reference(self, weights)

    monkeypatch.setattr(tuning.Reference, "__init__", noted)
    made = run(replace(GRPO, epochs=1), policy=start["bundle"])
    assert trained
    assert all("lora" in name or "token_adapter" in name or "trainable_tokens" in name for name in trained)
    assert Recommender.load(made["bundle"]).recommend([["item-0-0"]], 3)


@pytest.mark.parametrize("settings", [GRPO, SDPO], ids=["grpo", "preference"])
def test_histories_of_one_purchase_leave_nothing_to_train_on(
    settings: Any, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    user = {"user_id": "u", "train": ["item-0-0"], "validation": "item-0-1", "test": "item-0-2"}
    write_table("splits", pa.Table.from_pylist([user], SCHEMAS["splits"]), tmp_path / "splits.parquet")
    stage: Any = align.run_grpo if isinstance(settings, GrpoSettings) else align.run_preference
    inputs = undisturbed["bundle"], tmp_path / "splits.parquet", tmp_path / "policy"
    with pytest.raises(InputError, match="no training history has two purchases"):
        stage(*inputs, settings, EVALUATION, 0, tmp_path / "work")


def test_one_item_has_no_negatives(run: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    start = align._start

    def alone(*args: Any) -> align.Start:
        found = start(*args)
        found.recommender.index.size = 1
        return found

    monkeypatch.setattr(align, "_start", alone)
    with pytest.raises(InputError, match="one item alone"):
        run(SDPO)


def test_no_policy_is_a_bundle_error(run: Callable, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="does not exist"):
        run(GRPO, policy=tmp_path / "absent")


def test_settings_of_an_older_or_newer_policy_are_read_as_far_as_known() -> None:
    assert align._policy_settings({"hidden": 8, "seed": 3, "gone": 1}) == PolicySettings(hidden=8)
