"""`tessera compile`: what Kubeflow is given has every image, resource, cache setting and gate in its place."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf import json_format
from kfp import components
from kfp.pipeline_spec.pipeline_spec_pb2 import PipelineSpec

from components import images
from pipelines.cli import main

KINDS = {
    "enrich": {"ingest", "caption", "mine-intents", "label-quality", "embed", "relate-items"},
    "train": {"fit-tokenizer", "train-policy", "align-policy", "evaluate"},
    "publish": {
        "gate-catalogue", "gate-captions", "gate-intents", "gate-embeddings", "gate-sids", "gate-policy", "register",
        "promote", "write-report",
    },
}  # fmt: skip
FRONT = {"ingest", "gate-catalogue", "caption", "gate-captions", "mine-intents", "label-quality", "gate-intents",
         "embed", "gate-embeddings", "relate-items", "fit-tokenizer", "gate-sids"}  # fmt: skip
UNCACHED = {"register", "gate-policy", "promote"}


@pytest.fixture(scope="module", params=["training", "tokenization"])
def compiled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("compiled") / "deep" / f"{request.param}.yaml"
    main(["compile", request.param, "-o", str(path)])
    return path


def parse(path: Path) -> PipelineSpec:
    return json_format.ParseDict(yaml.safe_load(path.read_text(encoding="utf-8")), PipelineSpec())


@pytest.fixture(scope="module")
def spec(compiled: Path) -> PipelineSpec:
    return parse(compiled)


def tasks_of(spec: PipelineSpec) -> dict[str, Any]:
    """All tasks by name, those in sub-DAGs too."""
    found = dict(spec.root.dag.tasks)
    for component in spec.components.values():
        found |= dict(component.dag.tasks)
    return found


def steps_of(spec: PipelineSpec) -> set[str]:
    return {name.removeprefix("exec-") for name in executors_of(spec)}


def executors_of(spec: PipelineSpec) -> dict[str, Any]:
    return dict(spec.deployment_spec.fields["executors"].struct_value.fields)


def container_of(executor: Any) -> dict[str, Any]:
    return json_format.MessageToDict(executor)["container"]


def before(spec: PipelineSpec, task: str) -> set[str]:
    """All tasks that end before `task` starts."""
    tasks, found, open_ = dict(spec.root.dag.tasks), set(), [task]
    while open_:
        for one in tasks[open_.pop()].dependent_tasks:
            if one not in found:
                found.add(one)
                open_.append(one)
    return found


def test_kubeflow_can_load_it(compiled: Path, spec: PipelineSpec) -> None:
    loaded = components.load_component_from_file(str(compiled))
    assert loaded.pipeline_spec == spec
    assert spec.pipeline_info.name == f"tessera-{compiled.stem}"
    wanted = FRONT if compiled.stem == "tokenization" else set.union(*KINDS.values())
    assert steps_of(spec) == wanted


def test_every_step_has_the_image_of_its_kind(spec: PipelineSpec) -> None:
    kind_of = {step: kind for kind, steps in KINDS.items() for step in steps}
    for name, executor in executors_of(spec).items():
        kind = kind_of[name.removeprefix("exec-")]
        repository, tag = container_of(executor)["image"].split(":")
        assert repository == f"tessera-python-{kind}"
        assert len(tag) == 16
        assert int(tag, 16) >= 0
        assert container_of(executor)["image"] == images.image(kind)


def test_every_step_has_requests_and_limits(spec: PipelineSpec) -> None:
    for executor in executors_of(spec).values():
        given = container_of(executor)["resources"]
        for what in ("Cpu", "Memory"):
            request, limit = (given[f"resource{what}{end}"] for end in ("Request", "Limit"))
            assert 0 < _number(request) <= _number(limit)


def _number(quantity: str) -> float:
    return float(quantity[:-1]) / 1000 if quantity.endswith("m") else float(quantity.removesuffix("G"))


def test_only_steps_that_look_outside_of_their_inputs_are_not_cached(spec: PipelineSpec) -> None:
    tasks = tasks_of(spec)
    for step in steps_of(spec):
        assert tasks[step].caching_options.enable_cache == (step not in UNCACHED), step


@pytest.mark.parametrize(
    ("gate", "reader"),
    [
        ("gate-catalogue", "caption"),
        ("gate-captions", "mine-intents"),
        ("gate-intents", "embed"),
        ("gate-embeddings", "relate-items"),
        ("relate-items", "fit-tokenizer"),
    ],
)
def test_tables_are_gated_before_they_are_read(spec: PipelineSpec, gate: str, reader: str) -> None:
    assert gate in spec.root.dag.tasks[reader].dependent_tasks


def test_promotion_waits_for_the_gates_and_their_yes(tmp_path: Path) -> None:
    main(["compile", "training", "--output", str(tmp_path / "training.yaml")])
    spec = parse(tmp_path / "training.yaml")
    assert "gate-sids" in spec.root.dag.tasks["train-policy"].dependent_tasks
    assert "train-policy" in spec.root.dag.tasks["align-policy"].dependent_tasks
    assert "align-policy" in spec.root.dag.tasks["evaluate"].dependent_tasks
    assert "promote" not in spec.root.dag.tasks
    (condition,) = (name for name, task in spec.root.dag.tasks.items() if task.trigger_policy.condition)
    task = spec.root.dag.tasks[condition]
    assert list(spec.components[task.component_ref.name].dag.tasks) == ["promote"]
    assert "gate-policy-Output'] == true" in " ".join(task.trigger_policy.condition.split())
    gates = {name for name in spec.root.dag.tasks if name.startswith("gate-")}
    assert len(gates) == 6
    assert gates <= before(spec, condition)


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the code that goes into images."""
    for folder in images.PLATFORM:
        shutil.copytree(images.ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copyfile(images.ROOT / "requirements.lock", tmp_path / "requirements.lock")
    monkeypatch.setattr(images, "ROOT", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("file", "changed"),
    [
        ("tessera/config.py", {"enrich", "train", "publish"}),
        ("components/stage.py", {"enrich", "train", "publish"}),
        ("validation/thresholds.py", {"publish"}),
        ("serving/registry.py", {"publish"}),
        ("requirements.lock", {"enrich", "train", "publish"}),
    ],
)
def test_a_changed_source_changes_the_tags_of_its_kinds(tree: Path, file: str, changed: set[str]) -> None:
    def tags() -> dict[str, str]:
        images.image.cache_clear()
        return {kind: images.image(kind) for kind in KINDS}

    same, again = tags(), tags()
    assert same == again
    with (tree / file).open("a", encoding="utf-8") as source:
        source.write("\n# changed\n")
    now = tags()
    images.image.cache_clear()
    assert {kind for kind in KINDS if now[kind] != same[kind]} == changed


def test_a_prefix_names_the_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    images.image.cache_clear()
    monkeypatch.setenv("TESSERA_IMAGE_PREFIX", "registry.example/shop/")
    assert images.image("train").startswith("registry.example/shop/tessera-python-train:")
    images.image.cache_clear()
