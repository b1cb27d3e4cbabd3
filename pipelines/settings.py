"""Settings of the cluster that pipelines are compiled for; those of a run are in `tessera.config`."""

from dataclasses import dataclass

from tessera.errors import InputError


@dataclass(frozen=True)
class ClusterSettings:
    """What differs from cluster to cluster."""

    namespace: str = "tessera"
    """Namespace of the platform and of its runs; empty for a Kubeflow Pipelines that serves only one."""
    shards: int = 4
    """Parts of the catalogue that are enriched, and of the users that are precomputed, side by side."""
    gpus: int = 1
    """GPUs of a training step or worker; 0 trains on CPUs."""
    gpu: str = "nvidia.com/gpu"
    """The resource that a GPU is asked for by; its nodes may carry a taint of this name."""
    gpu_nodes: tuple[str, ...] = ("nvidia.com/gpu.present=true",)
    """Labels of the nodes that have GPUs, each as label=value."""
    workers: int = 2
    """Workers of a TrainJob, each with the GPUs of a training step."""
    data: str = "/mnt/tessera/train"
    """Folder on the shared volume where a TrainJob finds the tables and the tokenizer, and leaves the policy."""


def shards_of(count: int) -> list[str]:
    """The parts of a whole: ["0/2", "1/2"] for two.

    Raises:
        InputError: no part, in which nothing would be done.
    """
    if count < 1:
        raise InputError(f"cluster.shards is {count}; it must be at least 1.")
    return [f"{part}/{count}" for part in range(count)]


def labels_of(given: tuple[str, ...]) -> dict[str, str]:
    """Labels from "label=value" each.

    Raises:
        InputError: one is written otherwise.
    """
    pairs = [one.partition("=") for one in given]
    for name, equals, _ in pairs:
        if not (name and equals):
            raise InputError(f"the label of nodes '{name}' has no value; write it as nvidia.com/gpu.present=true.")
    return {name: value for name, _, value in pairs}
