"""What a local run gives to each step, and where its platform is."""

import dataclasses
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from components.report.metrics import ENRICHMENTS
from pipelines import runs
from pipelines.local import arguments, claim, finish, forget_failures, home_of, source_digest
from pipelines.tokenization import tokenization
from pipelines.training import training
from tessera.config import (
    EnrichmentSettings,
    GrpoSettings,
    ModelSettings,
    PlatformSettings,
    PreferenceSettings,
    Settings,
    TokenizerSettings,
    from_json,
    load_settings,
    preset,
)
from tessera.errors import InputError
from tessera.files import read_json, write_json


def test_home_is_the_setting_then_the_environment_then_the_catalogues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TESSERA_HOME", raising=False)
    shop = preset("demo")
    assert home_of(shop) == tmp_path / ".tessera" / "shop"
    own = replace(preset("catalogue"), path=tmp_path / "data" / ".." / "my beauty")
    assert home_of(own) == tmp_path / ".tessera" / "my beauty"
    monkeypatch.setenv("TESSERA_HOME", "from-environment")
    assert home_of(own) == home_of(shop) == tmp_path / "from-environment"
    chosen = replace(shop, platform=PlatformSettings(home=Path("chosen")))
    assert home_of(chosen) == tmp_path / "chosen"


def test_a_home_by_name_is_of_one_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TESSERA_HOME", raising=False)
    first, second = (replace(preset("catalogue"), path=tmp_path / place / "beauty") for place in ("a", "b"))
    home = home_of(first)
    assert home_of(second) == home
    claim(second, home)  # and nothing was kept by that run
    claim(first, home)
    (home / "catalogue.db").touch()
    claim(replace(first, path=Path("a/../a/beauty"), seed=3), home)
    other = rf"is of the source parquet {tmp_path}/a/beauty, and this run is of {{}}; .*--platform\.home FOLDER.*moved"
    with pytest.raises(InputError, match=other.format(f"parquet {tmp_path}/b/beauty")):
        claim(second, home)
    with pytest.raises(InputError, match=other.format(f"amazon {tmp_path}/a/beauty")):
        claim(replace(first, source="amazon"), home)
    claim(replace(second, platform=PlatformSettings(home=home)), home)
    with monkeypatch.context() as named:
        named.setenv("TESSERA_HOME", str(home))
        claim(second, home)
    claim(first, home)  # still its own
    (home / "source.json").unlink()  # as the message says for a folder that was moved
    claim(second, home)
    with pytest.raises(InputError, match="remove"):
        claim(first, home)


def test_a_run_on_the_home_of_another_source_touches_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TESSERA_HOME", raising=False)
    monkeypatch.setattr("pipelines.local.run", lambda *_: pytest.fail("it ran"))
    folders = [tmp_path / place / "beauty" for place in ("a", "b")]
    for folder in folders:
        folder.mkdir(parents=True)
    first, second = (replace(preset("catalogue"), path=folder) for folder in folders)
    claim(first, home_of(first))
    (home_of(first) / "catalogue.db").touch()
    for name in runs.PIPELINES:
        with pytest.raises(InputError, match="is of the source"):
            runs.run(name, second, tmp_path / "out")


@pytest.mark.parametrize("name", sorted(runs.PIPELINES))
def test_settings_are_kept_as_a_pipeline_ran_with_them_and_apart_from_a_trainings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    told: dict[str, Any] = {}

    def pipeline(**given: Any) -> SimpleNamespace:
        told.update(given)
        return SimpleNamespace(outputs={"tokenizer": SimpleNamespace(path=str(tmp_path / "tokenizer"))})

    pipeline.component_spec = runs.PIPELINES[name].component_spec  # type: ignore[attr-defined]
    monkeypatch.setitem(runs.PIPELINES, name, pipeline)
    monkeypatch.setattr(runs, "training_pipeline", pipeline)
    monkeypatch.setattr(runs.local, "finish", lambda *_: {})
    monkeypatch.setattr(runs, "_tell_sids", lambda *_: None)
    out, kept = tmp_path / "run", "settings.json" if name == "training" else f"settings-{name}.json"
    out.mkdir()
    (out / "settings.json").write_text("a training's", encoding="utf-8")
    settings = replace(preset("demo"), platform=PlatformSettings(home=tmp_path / "home"))
    runs.run(name, settings, out)
    assert (load_settings(out / kept).catalogue.k_core == 0) == (name == "refresh")
    if "ingest_settings" in told:
        assert from_json(told["ingest_settings"]).catalogue == load_settings(out / kept).catalogue
    if name != "training":
        assert (out / "settings.json").read_text(encoding="utf-8") == "a training's"


SECTIONS = {
    "ingest_settings": {"source", "path", "seed", "catalogue", "shop"},
    "enrichment_settings": {"catalogue", "enrichment"},
    "relate_settings": {"seed", "space", "catalogue", "enrichment"},
    "tokenizer_settings": {"seed", "space", "tokenizer"},
    "policy_settings": {"seed", "policy"},
    "align_settings": {"seed", "alignment"},
    "evaluation_settings": {"evaluation", "platform"},
    "platform_settings": {field.name for field in dataclasses.fields(Settings)},
}


PARTS = {"relate_settings": {"tokenizer"}}  # sections of which a step gets single fields


def test_each_step_gets_only_the_sections_it_uses(tmp_path: Path) -> None:
    settings = preset("demo")
    given = arguments(settings, tmp_path / "home", tmp_path / "spring")
    for name, sections in SECTIONS.items():
        assert set(json.loads(given[name])) - PARTS.get(name, set()) == sections, name
        built = from_json(given[name])
        assert all(getattr(built, section) == getattr(settings, section) for section in sections)
    assert given["title"] == "spring"
    assert given["home"] == str(tmp_path / "home")
    assert set(given) == set(training.component_spec.inputs)
    assert set(tokenization.component_spec.inputs) <= set(given)


@pytest.mark.parametrize(
    ("section", "field", "value", "changed"),
    [
        ("shop", "items", 61, {"ingest_settings"}),
        ("tokenizer", "epochs", 3, {"tokenizer_settings"}),
        ("tokenizer", "method", "aligned", {"relate_settings", "tokenizer_settings"}),
        ("policy", "epochs", 3, {"policy_settings"}),
        ("enrichment", "batch_size", 3, {"enrichment_settings", "relate_settings"}),
        ("evaluation", "beam", 21, {"evaluation_settings"}),
    ],
)
def test_a_changed_setting_reaches_only_the_steps_that_use_it(
    tmp_path: Path, section: str, field: str, value: Any, changed: set[str]
) -> None:
    settings = preset("demo")
    other = replace(settings, **{section: replace(getattr(settings, section), **{field: value})})
    one, two = (arguments(each, tmp_path, tmp_path) for each in (settings, other))
    assert {name for name in one if one[name] != two[name]} == changed | {"platform_settings"}


def test_what_exclude_each_other_is_told_before_anything_runs(tmp_path: Path) -> None:
    both = replace(preset("demo"), space="grounded", tokenizer=TokenizerSettings(method="aligned"))
    with pytest.raises(InputError, match="choose --space content"):
        arguments(both, tmp_path, tmp_path)


@pytest.mark.parametrize(("alignment", "of"), [("none", set()), ("grpo", {"grpo"}), ("preference", {"preference"})])
def test_alignment_gets_the_section_that_it_names(tmp_path: Path, alignment: Any, of: set[str]) -> None:
    """So that a step that does nothing is not repeated for a change of what it does not do."""
    settings = replace(preset("demo"), alignment=alignment)
    told = arguments(settings, tmp_path, tmp_path)["align_settings"]
    assert set(json.loads(told)) == {"seed", "alignment", *of}
    other = replace(settings, grpo=GrpoSettings(kl=0.5), preference=PreferenceSettings(beta=0.5))
    assert (arguments(other, tmp_path, tmp_path)["align_settings"] != told) == bool(of)


def test_a_joint_embedding_is_told_whether_to_look_at_photos(tmp_path: Path) -> None:
    """Two encoders leave that to the tokenizer, and are not asked again."""
    shop = preset("demo")
    joint = replace(shop, enrichment=EnrichmentSettings(multimodal=ModelSettings("openai", "m")))
    for settings, known in ((shop, {True}), (joint, {True, False})):
        hidden = replace(settings, tokenizer=replace(settings.tokenizer, use_images=False))
        told = [arguments(each, tmp_path, tmp_path)["enrichment_settings"] for each in (settings, hidden)]
        assert {from_json(one).tokenizer.use_images for one in told} == known
        assert from_json(told[0]).enrichment == settings.enrichment


def test_a_source_digest_follows_names_sizes_and_times(tmp_path: Path) -> None:
    assert source_digest(None) == ""
    (tmp_path / "images").mkdir()
    for name in ("items.parquet", "images/a.jpg"):
        (tmp_path / name).write_bytes(b"content")
    seen = {source_digest(tmp_path)}
    assert source_digest(tmp_path) in seen

    def changed() -> bool:
        known = len(seen)
        seen.add(source_digest(tmp_path))
        return len(seen) > known

    (tmp_path / "items.parquet").write_bytes(b"contents")
    assert changed()
    os.utime(tmp_path / "images" / "a.jpg", (1, 1))
    assert changed()
    (tmp_path / "images" / "a.jpg").rename(tmp_path / "images" / "b.jpg")
    assert changed()
    (tmp_path / "images" / "c.jpg").touch()
    assert changed()
    with pytest.raises(InputError, match=r"is not a folder; --path must name"):
        source_digest(tmp_path / "items.parquet")


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ({}, True),
        ({"failed": 0}, True),
        ({"failed": 2}, False),
        ({"failed": {"text": 0}}, True),
        ({"failed": {"text": 1}}, False),
        ({"photos_failed": 0, "photos_not_found": 3}, True),
        ({"photos_failed": 1}, False),
    ],
)
def test_a_step_with_failed_items_is_not_served_from_the_cache(
    tmp_path: Path, said: dict[str, Any], kept: bool
) -> None:
    stats, entry = tmp_path / "stats", tmp_path / "cache" / "key.json"
    write_json(stats, {"stage": "caption", **said})
    write_json(entry, {"stats": {"__kfp_artifact__": True, "uri": str(stats)}, "captions": {"uri": "elsewhere"}})
    forget_failures(entry.parent)
    assert entry.exists() == kept


def test_a_report_takes_the_place_of_the_last_one_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, made = tmp_path / "run", tmp_path / "artifacts"
    scores = {"hr@10": 0.5, "ndcg@10": 0.3}
    metrics = {
        **scores, "popularity_hr@10": 0.1, "validation": scores, "promotion": {"reason": "it is better."},
        "model_calls": dict.fromkeys(ENRICHMENTS, 2), "seconds": {},
    }  # fmt: skip
    write_json(made / "metrics", metrics)
    (made / "report").write_text("new", encoding="utf-8")
    out.mkdir()
    (out / "report.html").write_text("last", encoding="utf-8")
    (out / "metrics.json").symlink_to(made / "metrics")  # as a run links what it made
    outputs = {"metrics": made / "metrics", "report": made / "report", "reused": [], "seconds": 1.0}

    with monkeypatch.context() as full:
        full.setattr("pipelines.local.shutil.copyfile", raising(OSError("no space left")))
        with pytest.raises(OSError, match="no space"):
            finish(out, outputs)
    assert (out / "report.html").read_text(encoding="utf-8") == "last"
    finish(out, outputs)
    assert (out / "report.html").read_text(encoding="utf-8") == "new"
    assert read_json(out / "metrics.json")["seconds"] == {"total": 1.0}
    assert read_json(made / "metrics")["seconds"] == {}  # the step's own output stays as the step wrote it


def raising(error: Exception) -> Callable[..., None]:
    def fail(*_: object) -> None:
        raise error

    return fail
