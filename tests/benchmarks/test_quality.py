"""The quality bench: a smoke run on the shop, run twice, and its parts by hand."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.quality import bench, tables
from benchmarks.quality.slices import cold_items, title_twins
from benchmarks.quality.store import key_of, pack_ranks, read_cell, unpack_ranks, write_cell
from benchmarks.quality.systems import BUDGETS, PEERS, PICTURED, SYSTEMS, TABLES
from benchmarks.quality.train import plan
from benchmarks.quality.world import World
from tessera.config import ModelSettings, Settings, ShopSettings, TokenizerSettings, preset
from tessera.errors import InputError
from tessera.evaluation.metrics import MISSED
from tessera.policy.mixture import MIXTURES
from tessera.schema import read_table
from tessera.tokenizer import collaborative
from tessera.tokenizer.grounding import Grounding


@pytest.fixture(scope="module")
def settings() -> Settings:
    return replace(preset("demo"), shop=ShopSettings(items=60, users=100))


@pytest.fixture(scope="module")
def world(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> World:
    world = World(settings, tmp_path_factory.mktemp("world"), BUDGETS["smoke"].users)
    world.ingest()
    return world


def test_titles_of_one_pattern_are_twins_and_others_are_not() -> None:
    titles = ["red cotton shirt size m", "red cotton shirt size l", "steel kettle", "garden hose reel", ""]
    assert title_twins(titles).tolist() == [True, True, False, False, False]


def test_no_words_no_twins() -> None:
    assert not title_twins(["", "!"]).any()


def test_cold_is_fewer_than_five_purchases() -> None:
    train = [np.array([0] * 4 + [1] * 5), np.array([], dtype=np.int64)]
    assert cold_items(train, 3).tolist() == [True, False, True]


def test_ranks_survive_storage() -> None:
    assert unpack_ranks(pack_ranks(np.array([0, 19, 254, MISSED]))).tolist() == [0, 19, 254, 255]


def test_a_cell_is_found_by_its_key_alone(tmp_path: Path) -> None:
    write_cell(tmp_path, "tiger", 1, "abc", {"test": {"hr@10": 0.5}})
    found = read_cell(tmp_path, "tiger", 1, "abc")
    assert found is not None
    assert found["test"] == {"hr@10": 0.5}
    assert read_cell(tmp_path, "tiger", 1, "abd") is None
    assert read_cell(tmp_path, "tiger", 2, "abc") is None


def test_a_file_that_is_no_cell_is_named(tmp_path: Path) -> None:
    (tmp_path / "tiger-0-abc.json").write_text("[]")
    with pytest.raises(InputError, match="tiger-0-abc"):
        read_cell(tmp_path, "tiger", 0, "abc")


def test_a_raised_version_changes_the_keys_of_its_part_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    before = key_of(["x"], "policy"), key_of(["x"], "peers")
    monkeypatch.setitem(bench.__dict__["key_of"].__globals__["VERSIONS"], "policy", 99)
    assert key_of(["x"], "policy") != before[0]
    assert key_of(["x"], "peers") == before[1]


def test_every_system_stands_in_a_table_and_every_row_is_a_system() -> None:
    rows = {name for _, names in TABLES.values() for name in names}
    assert rows == set(SYSTEMS) | set(PEERS)


def test_what_systems_share_is_trained_once(settings: Settings, world: World) -> None:
    plans = {name: plan(SYSTEMS[name], settings, BUDGETS["smoke"], world, 0) for name in SYSTEMS}
    assert plans["deepinterestgr"].sft == plans["deep-sft"].sft == plans["labels-random"].sft
    assert plans["deepinterestgr"].whole != plans["labels-random"].whole
    assert plans["lcrec"].whole == plans["minionerec"].sft == plans["sdpo"].sft
    assert plans["tiger"].sft != plans["lcrec"].sft
    assert plans["tiger"].sft != plan(SYSTEMS["tiger"], settings, BUDGETS["smoke"], world, 1).sft


def test_the_split_is_cut_to_the_budget_and_stays_so(plain_shop: Settings, tmp_path: Path) -> None:
    one, other = World(plain_shop, tmp_path / "a", 50), World(plain_shop, tmp_path / "b", 50)
    one.ingest()
    other.ingest()
    assert one.splits.read_bytes() == other.splits.read_bytes()
    assert read_table("splits", one.splits).num_rows == 50
    assert one.digest == other.digest != World(plain_shop, tmp_path, 0).digest


def test_nothing_is_trained_for_photos_that_are_not_there(settings: Settings, world: World, tmp_path: Path) -> None:
    bare = bench.Bench(settings, "smoke", world, replace(bench.Ground.of(world), pictured=False), tmp_path)
    for name in PICTURED:
        with pytest.raises(bench.Missing, match="photos"):
            bare.measure(name, 0)


def test_a_copied_source_is_the_same_world_and_a_changed_one_is_not(settings: Settings, tmp_path: Path) -> None:
    def digest(folder: str, text: str, seconds: int) -> str:
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "items.csv").write_text(text)
        os.utime(tmp_path / folder / "items.csv", (seconds, seconds))
        return World(replace(settings, source="parquet", path=tmp_path / folder), tmp_path, 0).digest

    assert digest("here", "a", 1) == digest("copied", "a", 2) != digest("changed", "b", 1)


def test_one_model_for_text_and_photo_embeds_each_branch_anew(
    settings: Settings, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(World, "_made", lambda _, name, told, *__: Path(f"{name} {told}"))
    joint = ModelSettings(provider="transformers", model="one")
    other = replace(world, settings=replace(settings, enrichment=replace(settings.enrichment, multimodal=joint)))
    assert world.embeddings("caption", "intents") == world.embeddings("both", "intents")
    assert other.embeddings("caption", "intents") != other.embeddings("both", "intents")


def test_a_tokenizer_is_given_what_its_relation_made(settings: Settings, world: World) -> None:
    plain, aligned, grounded = (
        world.related("text", "none", replace(settings, space=space, tokenizer=TokenizerSettings(method=method)))
        for space, method in (("content", "rqvae"), ("content", "aligned"), ("grounded", "rqvae"))
    )
    assert plain == (world.embeddings("text", "none"), None)
    assert aligned[1] is None
    assert len(read_table("embeddings", aligned[0])["image"].drop_null()[0]) == collaborative.WIDTH
    assert grounded[0] == plain[0]
    assert grounded[1] is not None
    assert Grounding.load(grounded[1]).balance.image_dim > 0


@pytest.mark.timeout(600)
def test_smoke_run_goes_on_where_it_was_and_measures_nothing_twice(
    settings: Settings, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One system of each kind: tasks, own tokens in grounded space, aligned codes, preferences, rewards, rewrites."""
    names = [
        "popularity", "tiger", "trialigngr", "deep-sft", "deepinterestgr", "reward-collaborative", "reward-format",
        "sigma", "convergence", "sdpo", "words-summary",
    ]  # fmt: skip
    asked = (settings, "smoke", 1, names, tmp_path, world.folder, "the command")
    trained, train = [], bench.train

    def stopped_at_the_third(*told: object) -> object:
        if len(trained) == 2:
            raise KeyboardInterrupt
        trained.append(told)
        return train(*told)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(bench, "train", stopped_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            bench.run(*asked)  # type: ignore[arg-type]
    before = {path.name: path.read_bytes() for path in (tmp_path / "cells").iterdir()}
    assert {name.split("-")[0] for name in before} == {"popularity", "tiger", "trialigngr"}
    assert "TriAlignGR" in (tmp_path / "report.md").read_text()

    text = bench.run(*asked).read_text()  # type: ignore[arg-type]
    assert before.items() <= {path.name: path.read_bytes() for path in (tmp_path / "cells").iterdir()}.items()
    assert "the command" in text
    for table in ("main", "ablations", "rewards"):
        assert f"![{TABLES[table][0]}]({table}.svg)" in text
        assert (tmp_path / f"{table}.svg").stat().st_size > 1000
    assert "Not measured: GRU4Rec, SASRec, BERT4Rec, FDSA, LC-Rec, MiniOneRec." in text
    assert TABLES["tasks"][0] not in text  # one of its systems alone compares with nothing
    assert "against popularity, both chosen by validation" in text
    cells = json.loads((tmp_path / "report.json").read_text())["cells"]
    assert set(cells) == set(names)
    assert {"hr@10", "ndcg@10"} <= set(cells["tiger"][0]["test"])
    assert set(cells["trialigngr"][0]["tasks"]) == {t for t in MIXTURES["tmt"] if t.endswith("sid") or t == "next"}
    assert cells["deepinterestgr"][0]["gain"]["start"]["hr@5"] <= 1
    assert [point["setting"] for point in cells["sigma"][0]["dial"]] == list(bench.DIAL)
    assert (tmp_path / "dial.svg").stat().st_size > 1000

    def never(*_: object, **__: object) -> None:
        raise AssertionError("this cell was measured before")

    monkeypatch.setattr(bench, "train", never)
    monkeypatch.setattr(bench, "answers", never)
    stored = {path.name: path.read_bytes() for path in (tmp_path / "cells").iterdir()}
    assert bench.run(*asked).read_text() == text  # type: ignore[arg-type]
    assert {path.name: path.read_bytes() for path in (tmp_path / "cells").iterdir()} == stored


def test_an_unknown_system_is_refused(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no system 'tigre'"):
        bench.run(settings, "smoke", 1, ["tigre"], tmp_path, tmp_path, "")


def test_mean_spread_and_comparison_by_hand() -> None:
    def cell(seed: int, hr: float, ranks: list[int]) -> dict[str, object]:
        packed = {"ranks": pack_ranks(np.array(ranks)), "served_ranks": pack_ranks(np.maximum(np.array(ranks) - 1, 0))}
        return {"seed": seed, "test": {"hr@10": hr}, "validation": {"ndcg@10": hr}, **packed}

    a = [cell(0, 0.2, [0, 30]), cell(1, 0.4, [3, 11])]
    cells = {"a": a, "b": [cell(0, 0.1, [30, 30]), cell(1, 0.1, [30, 30])], "c": [cell(1, 0.1, [30, 9])]}
    assert tables.mean_and_spread(cells["a"], "test", "hr@10") == pytest.approx((0.3, np.sqrt(0.02)))
    assert tables.mean_and_spread(cells["a"], "test", "hr@5") is None
    assert tables.hits(cells["a"]).tolist() == [1.0, 0.0]
    assert tables.hits(cells["a"], "served_ranks", k=11).tolist() == [1.0, 0.5]
    assert tables.best(cells, ("a", "b", "d")) == "a"
    assert tables.compared(cells, "a", "b").difference == pytest.approx(0.5)
    assert tables.compared(cells, "a", "b", np.array([False, True])).difference == 0
    assert tables.compared(cells, "a", "b", ranks="served_ranks").difference == pytest.approx(0.5)
    assert tables.compared(cells, "a", "c").difference == pytest.approx(0.0)  # of seed 1, that both have
