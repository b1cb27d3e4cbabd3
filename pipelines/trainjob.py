"""Supervised training on several workers: a Kubeflow TrainJob that runs `torchrun -m tessera.policy.train`.

It is the entry point of one machine, too: the manifest only says where the tables lie and what the workers are given.
"""

from pathlib import Path
from typing import Any

import yaml

from components.images import image
from pipelines.cluster import MOUNT, VOLUME
from pipelines.settings import ClusterSettings, labels_of
from pipelines.steps import HEAVY
from tessera.config import Settings, check, to_json
from tessera.files import write_text

NAME = "tessera-train"
SETTINGS = "/etc/tessera"
# The runtime that Kubeflow Trainer brings, its job, and that job's container.
RUNTIME, JOB = "torch-distributed", "node"
TOLD = ("captions", "intents")


def write(settings: Settings, cluster: ClusterSettings, path: Path) -> None:
    """Write a ConfigMap with the settings and a TrainJob that mounts it, as YAML."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, yaml.safe_dump_all(manifests(settings, cluster), sort_keys=False))


def manifests(settings: Settings, cluster: ClusterSettings) -> list[dict[str, Any]]:
    """Both resources. The tables and the tokenizer are read from, and the policy is written to, `cluster.data`.

    Raises:
        InputError: settings that the job would refuse.
    """
    check(settings)
    kept = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": NAME, "namespace": cluster.namespace}}
    job = {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": {"name": NAME, "namespace": cluster.namespace},
        "spec": {
            "runtimeRef": {"name": RUNTIME},
            "trainer": {
                "image": image("train"),
                "command": ["torchrun"],
                "args": ["-m", "tessera.policy.train", "sft", *_arguments(settings, Path(cluster.data))],
                "numNodes": cluster.workers,
                "numProcPerNode": max(cluster.gpus, 1),
                "resourcesPerNode": _resources(cluster),
                "env": [{"name": "PYTHONUNBUFFERED", "value": "1"}, {"name": "HOME", "value": "/tmp"}],
            },
            "runtimePatches": [{"manager": "tessera.dev/compile", "trainingRuntimeSpec": _patch(_pod(cluster))}],
        },
    }
    return [kept | {"data": {"settings.json": to_json(settings)}}, job]


def _arguments(settings: Settings, data: Path) -> list[str]:
    """Of `tessera.policy.train sft`; the tables are named as a run names them."""
    tables = {name: data / f"{name}.parquet" for name in ("items", "splits", "sids", *TOLD)}
    if settings.policy.hybrid_prefix:
        tables["item_vectors"] = data / "embeddings.parquet"
    paths = {"settings": Path(SETTINGS) / "settings.json", **tables}
    paths |= {"tokenizer": data / "tokenizer", "bundle": data / "policy", "work": data / "work"}
    return [f"--{name.replace('_', '-')}={path}" for name, path in paths.items()]


def _resources(cluster: ClusterSettings) -> dict[str, dict[str, str]]:
    made = {
        part: {name: sizes[place] for name, sizes in HEAVY.items()} for place, part in enumerate(("requests", "limits"))
    }
    if cluster.gpus:
        made = {part: sizes | {cluster.gpu: str(cluster.gpus)} for part, sizes in made.items()}
    return made


def _pod(cluster: ClusterSettings) -> dict[str, Any]:
    """What the workers' pods have beyond the runtime's: the volume, the restricted profile, and GPUs' nodes."""
    pod: dict[str, Any] = {
        "serviceAccountName": "tessera-pipelines",
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [
            {
                "name": JOB,
                "securityContext": {
                    "allowPrivilegeEscalation": False,
                    "readOnlyRootFilesystem": True,
                    "capabilities": {"drop": ["ALL"]},
                },
                "volumeMounts": [
                    {"name": "data", "mountPath": MOUNT},
                    {"name": "settings", "mountPath": SETTINGS, "readOnly": True},
                    {"name": "tmp", "mountPath": "/tmp"},
                ],
            }
        ],
        "volumes": [
            {"name": "data", "persistentVolumeClaim": {"claimName": VOLUME}},
            {"name": "settings", "configMap": {"name": NAME}},
            {"name": "tmp", "emptyDir": {}},
        ],
    }
    if cluster.gpus:
        pod["nodeSelector"] = labels_of(cluster.gpu_nodes)
        pod["tolerations"] = [{"key": cluster.gpu, "operator": "Exists", "effect": "NoSchedule"}]
    return pod


def _patch(pod: dict[str, Any]) -> dict[str, Any]:
    """A patch of the runtime's pods, in the layers that a JobSet has."""
    job = {"name": JOB, "template": {"spec": {"template": {"spec": pod}}}}
    return {"template": {"spec": {"replicatedJobs": [job]}}}
