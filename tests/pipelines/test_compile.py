"""`tessera compile`: what Kubeflow is given has every image, resource, cache setting and gate in its place."""

import inspect
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf import json_format
from kfp import components
from kfp.pipeline_spec.pipeline_spec_pb2 import PipelineSpec
from manifest_schemas import schema_problems

import feature_repo
from components import images
from pipelines.cli import main
from pipelines.runs import PIPELINES
from tessera.config import from_json
from tessera.policy import train

GOLDEN = Path(__file__).parent / "golden"
FEATURE_STORE = Path(feature_repo.__file__).parent / "feature_store_production.yaml"

KINDS = {
    "enrich": {"ingest", "fill-catalogue", "caption", "mine-intents", "label-quality", "embed", "relate-items"},
    "train": {"fit-tokenizer", "train-policy", "align-policy", "evaluate", "append-sids"},
    "publish": {
        "gate-catalogue", "gate-captions", "gate-intents", "gate-embeddings", "gate-sids", "gate-policy", "register",
        "promote", "write-report", "notify", "find-changes", "publish-refresh", "precompute-users", "fetch-policy",
    },
}  # fmt: skip
KIND_OF = {step: kind for kind, steps in KINDS.items() for step in steps}
REFRESH = {"find-changes", "append-sids", "publish-refresh", "precompute-users"}
FANNED_OUT = {"caption", "mine-intents", "label-quality", "embed"}
INGESTED = {"ingest", "gate-catalogue", "fill-catalogue"}
ENRICHED = {*INGESTED, "caption", "gate-captions", "mine-intents", "label-quality", "gate-intents",
            "embed", "gate-embeddings", "gate-sids", "notify"}  # fmt: skip
STEPS = {
    "training": set(KIND_OF) - REFRESH - {"fetch-policy"},
    "tokenization": ENRICHED | {"relate-items", "fit-tokenizer"},
    "refresh": ENRICHED | REFRESH,
    "promotion": {*INGESTED, "fetch-policy", "evaluate", "gate-policy", "promote", "notify"},
    "precompute": {"precompute-users", "notify"},
}
# They read or change what no cache key sees: source, SQL catalogue, registry, feature store, what serves.
UNCACHED = {"ingest", "fill-catalogue", "register", "gate-policy", "promote", "notify", "find-changes",
            "publish-refresh", "precompute-users", "fetch-policy"}  # fmt: skip


@dataclass(frozen=True)
class Compiled:
    """A compiled pipeline: its specification, as message and as plain data, and its Kubernetes settings."""

    spec: PipelineSpec
    plain: dict[str, Any]
    platform: dict[str, Any]

    @classmethod
    @cache
    def read(cls, path: Path) -> "Compiled":
        plain, platform = yaml.load_all(path.read_text(encoding="utf-8"), yaml.CSafeLoader)
        executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
        return cls(json_format.ParseDict(plain, PipelineSpec()), plain, executors)

    @property
    def dag(self) -> dict[str, Any]:
        """The pipeline's own steps, within the exit handler."""
        return self.component("comp-exit-handler-1")["dag"]

    def component(self, name: str) -> dict[str, Any]:
        return self.plain["components"][name]

    def steps(self) -> set[str]:
        return {step for step, _ in self.containers()}

    def containers(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Step and container of every executor; a step that is fanned out has two."""
        for name, executor in self.plain["deploymentSpec"]["executors"].items():
            yield step_of(name), executor["container"]

    def platforms(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for name, settings in self.platform.items():
            yield step_of(name), settings

    def tasks(self) -> Iterator[tuple[str, Any]]:
        """Every task that is a step, in whichever part of the pipeline."""
        for component in (self.spec.root, *self.spec.components.values()):
            for name, task in component.dag.tasks.items():
                if self.spec.components[task.component_ref.name].executor_label:
                    yield name, task

    def before(self, task: str) -> set[str]:
        """All tasks that end before `task` starts."""
        found: set[str] = set()
        open_ = [task]
        while open_:
            for one in self.dag["tasks"][open_.pop()].get("dependentTasks", ()):
                if one not in found:
                    found.add(one)
                    open_.append(one)
        return found

    def shape(self) -> dict[str, Any]:
        """What decides how it runs, without the steps' own code and without the tags of their images."""
        parts = {"root": self.plain["root"], **self.plain["components"]}
        settings = ("dependentTasks", "cachingOptions", "retryPolicy", "triggerPolicy", "parameterIterator")
        return {
            "parameters": self.plain["root"]["inputDefinitions"]["parameters"],
            "tasks": {
                part: {
                    name: {key: task[key] for key in settings if key in task}
                    | {"inputs": sorted({**task.get("inputs", {}).get("parameters", {}),
                                         **task.get("inputs", {}).get("artifacts", {})})}
                    for name, task in component["dag"]["tasks"].items()
                }
                for part, component in parts.items() if "dag" in component
            },
            "executors": self._kinds(),
        }  # fmt: skip

    def _kinds(self) -> list[dict[str, Any]]:
        """Image, resources and Kubernetes settings, once for all executors that share them."""
        shared: dict[str, dict[str, Any]] = {}
        for name, executor in sorted(self.plain["deploymentSpec"]["executors"].items()):
            container = executor["container"]
            image = container["image"].split(":")[0]
            own = {"image": image, "resources": container["resources"], "kubernetes": self.platform[name]}
            shared.setdefault(yaml.safe_dump(own), own | {"of": []})["of"].append(name)
        return list(shared.values())


def step_of(name: str) -> str:
    """The step behind the name of an executor or a task: `exec-caption-2` is `caption`."""
    return re.sub(r"-\d+$", "", name.removeprefix("exec-"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `tessera compile all` writes."""
    folder = tmp_path_factory.mktemp("compiled") / "deep"
    main(["compile", "all", "--out", str(folder)])
    return folder


@pytest.fixture(params=sorted(PIPELINES))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def compiled(folder: Path, name: str) -> Compiled:
    return Compiled.read(folder / f"{name}.yaml")


@pytest.fixture
def training(folder: Path) -> Compiled:
    return Compiled.read(folder / "training.yaml")


def test_kubeflow_can_load_it(folder: Path, name: str, compiled: Compiled) -> None:
    loaded = components.load_component_from_file(str(folder / f"{name}.yaml"))
    assert loaded.pipeline_spec == compiled.spec
    assert compiled.spec.pipeline_info.name == f"tessera-{name}"


def test_one_pipeline_can_be_compiled_alone(folder: Path, tmp_path: Path) -> None:
    main(["compile", "tokenization", "-o", str(tmp_path / "own" / "one.yaml")])
    assert (tmp_path / "own" / "one.yaml").read_bytes() == (folder / "tokenization.yaml").read_bytes()


def test_the_shape_is_the_golden_one(name: str, compiled: Compiled) -> None:
    """A change of shape shows in the diff of a file; TESSERA_GOLDEN=write accepts it."""
    golden, shape = GOLDEN / f"{name}.yaml", compiled.shape()
    if os.environ.get("TESSERA_GOLDEN") == "write":
        text = yaml.safe_dump(shape, sort_keys=True, default_flow_style=None, width=120)
        golden.write_text(text, encoding="utf-8")
    assert shape == yaml.safe_load(golden.read_text(encoding="utf-8"))


def test_every_step_is_there(name: str, compiled: Compiled) -> None:
    assert compiled.steps() == STEPS[name]


def test_every_step_has_the_image_of_its_kind(compiled: Compiled) -> None:
    for step, container in compiled.containers():
        repository, tag = container["image"].split(":")
        assert repository == f"tessera-python-{KIND_OF[step]}"
        assert len(tag) == 16
        assert int(tag, 16) >= 0
        assert container["image"] == images.image(KIND_OF[step])


def test_every_step_has_requests_and_limits(compiled: Compiled) -> None:
    for _, container in compiled.containers():
        given = container["resources"]
        for what in ("Cpu", "Memory"):
            request, limit = (given[f"resource{what}{end}"] for end in ("Request", "Limit"))
            assert 0 < _number(request) <= _number(limit)


def _number(quantity: str) -> float:
    return float(quantity[:-1]) / 1000 if quantity.endswith("m") else float(quantity.removesuffix("G"))


def test_only_steps_that_look_outside_of_their_inputs_are_not_cached(compiled: Compiled) -> None:
    for task, spec in compiled.tasks():
        assert spec.caching_options.enable_cache == (step_of(task) not in UNCACHED), task


def test_steps_that_call_models_are_retried_with_backoff(compiled: Compiled) -> None:
    for task, spec in compiled.tasks():
        policy, kind = spec.retry_policy, KIND_OF[step_of(task)]
        assert policy.max_retry_count == {"enrich": 5, "train": 2, "publish": 0}[kind], task
        if kind == "enrich":
            assert (policy.backoff_duration.seconds, policy.backoff_factor) == (60, 2.0)
            # All waits together: an endpoint may be away for half an hour.
            assert sum(min(60 * 2**attempt, policy.backoff_max_duration.seconds) for attempt in range(5)) >= 1800


def test_steps_get_the_secrets_of_their_kind_and_no_others(compiled: Compiled) -> None:
    wanted = {
        "enrich": {"TESSERA_CATALOGUE_URL", "OPENAI_API_KEY"},
        "train": set(),
    }
    for step, platform in compiled.platforms():
        given = [key for secret in platform.get("secretAsEnv", ()) for key in secret["keyToEnv"]]
        assert all(key["secretKey"] == key["envVar"] for key in given)
        names = {key["envVar"] for key in given}
        if KIND_OF[step] == "publish":
            assert {"MLFLOW_TRACKING_PASSWORD", "FEAST_REDIS"} <= names
            assert set(re.findall(r"\${(FEAST_\w+)}", FEATURE_STORE.read_text(encoding="utf-8"))) <= names
            assert not names & {"OPENAI_API_KEY", "AWS_SECRET_ACCESS_KEY", "TESSERA_CATALOGUE_URL"}
        else:
            assert names == wanted[KIND_OF[step]]


def test_every_step_has_the_volume_and_the_configuration(compiled: Compiled) -> None:
    for _, platform in compiled.platforms():
        (mount,) = platform["pvcMount"]
        assert (mount["constant"], mount["mountPath"]) == ("tessera", "/mnt/tessera")
        assert {one["configMapName"] for one in platform["configMapAsEnv"]} == {"tessera"}
        assert platform["securityContext"] == {"runAsNonRoot": True}


def test_training_asks_for_gpus_where_they_are_and_can_do_without(training: Compiled, tmp_path: Path) -> None:
    def asked(compiled: Compiled) -> dict[str, Any]:
        platforms = dict(compiled.platforms())
        return {
            step: (container["resources"]["accelerator"], platforms[step]["nodeSelector"]["labels"],
                   platforms[step]["tolerations"][0]["key"])
            for step, container in compiled.containers() if "accelerator" in container["resources"]
        }  # fmt: skip

    found = asked(training)
    assert set(found) == KINDS["train"] & STEPS["training"]
    for accelerator, labels, tolerated in found.values():
        assert (accelerator["resourceType"], accelerator["resourceCount"]) == ("nvidia.com/gpu", "1")
        assert (labels, tolerated) == ({"nvidia.com/gpu.present": "true"}, "nvidia.com/gpu")
    main(["compile", "training", "-o", str(tmp_path / "cpu.yaml"), "--cluster.gpus=0"])
    cpu = Compiled.read(tmp_path / "cpu.yaml")
    assert asked(cpu) == {}
    assert not any("nodeSelector" in platform for _, platform in cpu.platforms())


@pytest.mark.parametrize("step", sorted(FANNED_OUT))
def test_enrichment_is_fanned_out_and_collected(training: Compiled, step: str) -> None:
    whole = training.dag["tasks"][step]
    (loop,) = (name for name in whole["dependentTasks"] if name.startswith("for-loop"))
    iterated = training.dag["tasks"][loop]
    assert iterated["parameterIterator"]["items"]["inputParameter"] == "pipelinechannel--shards"
    (inner,) = training.component(iterated["componentRef"]["name"])["dag"]["tasks"].values()
    assert inner["componentRef"]["name"].startswith(f"comp-{step}")
    assert inner["inputs"]["parameters"]["shard"]["componentInputParameter"].endswith("loop-item")
    default = training.spec.root.input_definitions.parameters["shards"].default_value
    assert list(default.list_value) == ["0/4", "1/4", "2/4", "3/4"]


def test_the_exit_handler_reports_however_the_run_ends(compiled: Compiled) -> None:
    notify = compiled.spec.root.dag.tasks["notify"]
    assert notify.trigger_policy.strategy == notify.trigger_policy.ALL_UPSTREAM_TASKS_COMPLETED
    assert notify.inputs.parameters["status"].task_final_status.producer_task == "exit-handler-1"
    assert set(compiled.spec.root.dag.tasks) == {"exit-handler-1", "notify"}


@pytest.mark.parametrize(
    ("gate", "reader"),
    [
        ("gate-catalogue", "caption"),
        ("gate-catalogue", "fill-catalogue"),
        ("gate-captions", "mine-intents"),
        ("gate-intents", "embed"),
        ("gate-embeddings", "relate-items"),
        ("relate-items", "fit-tokenizer"),
        ("gate-sids", "train-policy"),
        ("train-policy", "align-policy"),
        ("align-policy", "evaluate"),
    ],
)
def test_tables_are_gated_before_they_are_read(training: Compiled, gate: str, reader: str) -> None:
    after = training.dag["tasks"][reader]["dependentTasks"]
    assert gate in after
    for loop in (name for name in after if name.startswith("for-loop")):
        assert gate in training.dag["tasks"][loop]["dependentTasks"]  # no shard asks about what was not gated


def test_promotion_waits_for_the_gates_and_their_yes(training: Compiled) -> None:
    tasks = training.dag["tasks"]
    assert "promote" not in tasks
    (condition,) = (name for name, task in tasks.items() if "condition" in task.get("triggerPolicy", {}))
    assert list(training.component(tasks[condition]["componentRef"]["name"])["dag"]["tasks"]) == ["promote"]
    asked = " ".join(tasks[condition]["triggerPolicy"]["condition"].split())
    assert "gate-policy-Output'] == true" in asked
    gates = {name for name in tasks if name.startswith("gate-")}
    assert len(gates) == 6
    assert gates <= training.before(condition)


def test_users_are_precomputed_in_shards(folder: Path) -> None:
    compiled = Compiled.read(folder / "precompute.yaml")
    ((_, loop),) = compiled.dag["tasks"].items()
    assert loop["parameterIterator"]["items"]["inputParameter"] == "pipelinechannel--shards"
    (inner,) = compiled.component(loop["componentRef"]["name"])["dag"]["tasks"].values()
    assert inner["inputs"]["parameters"]["shard"]["componentInputParameter"].endswith("loop-item")


def test_a_refresh_enriches_only_what_changed_and_publishes_what_was_gated(folder: Path) -> None:
    compiled = Compiled.read(folder / "refresh.yaml")
    assert set(compiled.dag["tasks"]) >= {"ingest", "gate-catalogue", "find-changes"}
    assert "gate-catalogue" in compiled.dag["tasks"]["find-changes"]["dependentTasks"]
    dags = {name: one["dag"]["tasks"] for name, one in compiled.plain["components"].items() if "dag" in one}
    (new,) = (tasks for tasks in dags.values() if "append-sids" in tasks)

    def given(step: str, table: str) -> str:
        return str(new[step]["inputs"]["artifacts"][table]["componentInputArtifact"])

    for step in ("caption", "mine-intents", "label-quality", "embed", "gate-embeddings"):
        assert given(step, "items").endswith("find-changes-changed"), step
    for step in ("gate-captions", "gate-intents"):  # their limits are shares of the whole catalogue
        assert given(step, "items").endswith("ingest-items"), step
        assert given(step, "published").endswith("find-changes-published"), step
    assert new["gate-embeddings"]["inputs"]["parameters"]["part"]["runtimeValue"]["constant"] is True
    assert "gate-embeddings" in new["append-sids"]["dependentTasks"]
    assert "gate-sids" in new["publish-refresh"]["dependentTasks"]
    assert new["precompute-users"]["dependentTasks"] == ["publish-refresh"]
    (same,) = (tasks for tasks in dags.values() if {"publish-refresh-2", "precompute-users-2"} == set(tasks))
    assert same["precompute-users-2"]["dependentTasks"] == ["publish-refresh-2"]


def test_a_challenger_is_measured_and_gated_before_it_is_promoted(folder: Path) -> None:
    compiled = Compiled.read(folder / "promotion.yaml")
    tasks = compiled.dag["tasks"]
    (condition,) = (name for name, task in tasks.items() if "condition" in task.get("triggerPolicy", {}))
    assert list(compiled.component(tasks[condition]["componentRef"]["name"])["dag"]["tasks"]) == ["promote"]
    assert {"evaluate", "gate-policy", "gate-catalogue"} <= compiled.before(condition)
    assert tasks["evaluate"]["inputs"]["parameters"]["allow_unknown"]["runtimeValue"]["constant"] is True
    assert tasks["evaluate"]["inputs"]["artifacts"]["sids"]["taskOutputArtifact"]["producerTask"] == "fetch-policy"


def test_kubernetes_takes_the_resources(folder: Path, name: str) -> None:
    made = list(yaml.safe_load_all((folder / "kubernetes" / f"{name}.yaml").read_text(encoding="utf-8")))
    pipeline, version = sorted(made, key=lambda one: len(one["kind"]))
    assert (pipeline["kind"], version["kind"]) == ("Pipeline", "PipelineVersion")
    assert {one["metadata"]["namespace"] for one in made} == {"tessera"}
    assert version["spec"]["pipelineName"] == pipeline["metadata"]["name"] == f"tessera-{name}"
    assert re.fullmatch(f"tessera-{name}-[0-9a-f]{{10}}", version["metadata"]["name"])
    plain, platform = yaml.safe_load_all((folder / f"{name}.yaml").read_text(encoding="utf-8"))
    assert (version["spec"]["pipelineSpec"], version["spec"]["platformSpec"]) == (plain, platform)
    assert schema_problems(made, "1.33") == []


@pytest.mark.parametrize("gpus", [0, 4])
def test_a_trainjob_runs_the_entry_point_of_one_machine(tmp_path: Path, gpus: int) -> None:
    path = tmp_path / "deep" / "trainjob.yaml"
    main(["compile", "trainjob", "-o", str(path), "--seed=7", "--policy.hybrid-prefix=2", "--preset=paper",
          "--cluster.workers=3", f"--cluster.gpus={gpus}"])  # fmt: skip
    made = list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
    assert schema_problems(made, "1.33") == []
    kept, job = made
    told = from_json(kept["data"]["settings.json"])
    assert (told.seed, told.policy.hybrid_prefix, told.alignment) == (7, 2, "grpo")
    trainer = job["spec"]["trainer"]
    assert (trainer["numNodes"], trainer["numProcPerNode"]) == (3, max(gpus, 1))
    assert trainer["image"] == images.image("train")
    assert trainer["command"] == ["torchrun"]
    module, name, task, *flags = trainer["args"]
    assert (module, name, task) == ("-m", "tessera.policy.train", "sft")
    given = {flag.split("=")[0].removeprefix("--").replace("-", "_") for flag in flags}
    assert given == set(inspect.signature(train.sft).parameters)
    (patch,) = job["spec"]["runtimePatches"]
    (node,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pod = node["template"]["spec"]["template"]["spec"]
    mounted = {mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
    paths = [Path(flag.split("=")[1]) for flag in flags]
    assert all(any(Path(mount) in path.parents for mount in mounted) for path in paths)
    assert {"configMap": {"name": kept["metadata"]["name"]}, "name": "settings"} in pod["volumes"]
    assert ("nodeSelector" in pod) == (gpus > 0)
    assert trainer["resourcesPerNode"]["limits"].get("nvidia.com/gpu") == (str(gpus) if gpus else None)


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
        ("pipelines/cli.py", {"publish"}),
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
