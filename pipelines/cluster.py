"""A pipeline as Kubernetes runs it: the same steps, with the secrets, volumes, retries and GPUs that they need there.

None of this has a meaning on one machine, so it is added when a pipeline is compiled; the pipelines say nothing of it.
What a step needs follows from the kind of its image: enriching steps call models, training steps want GPUs, publishing
steps speak to the registry and the feature store.
"""

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any

from kfp import dsl, kubernetes
from kfp.dsl import PipelineTask
from kfp.dsl.pipeline_context import Pipeline

from components.images import image, pinned
from components.notify.component import notify
from pipelines.settings import ClusterSettings, labels_of, shards_of
from pipelines.steps import light

VOLUME, MOUNT = "tessera", "/mnt/tessera"
CONFIG = "tessera"
CONFIGURED = ("TESSERA_HOME", "MLFLOW_TRACKING_URI")
CONFIGURED_PERHAPS = (
    "TESSERA_REPLICAS", "TESSERA_FEATURE_SERVER", "TESSERA_FEATURE_STORE", "MLFLOW_S3_ENDPOINT_URL", "AWS_ENDPOINT_URL",
    "MLFLOW_DISABLE_TELEMETRY", "FEAST_USAGE", "HOME", "XDG_RUNTIME_DIR",
)  # fmt: skip

# The keys of a Secret are named as the environment variables that they become.
SECRETS = {
    "tessera-catalogue": ("TESSERA_CATALOGUE_URL",),
    "tessera-models": ("OPENAI_API_KEY",),
    "tessera-mlflow": ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"),
    "tessera-feast": (
        "FEAST_REGISTRY_URL", "FEAST_REDIS", "FEAST_OFFLINE_HOST", "FEAST_OFFLINE_PORT", "FEAST_OFFLINE_DATABASE",
        "FEAST_OFFLINE_USER", "FEAST_OFFLINE_PASSWORD", "FEAST_OFFLINE_SSLMODE",
    ),
    "tessera-notify": ("TESSERA_NOTIFY_URL",),
}  # fmt: skip
# No step has the key of the bundles' bucket: bundles go to MLflow and come from it. Steps that decode photos and texts
# of strangers, and those that train on them, have no account there either.
NEEDED = {
    "enrich": ("tessera-catalogue", "tessera-models"),
    "train": (),
    "publish": ("tessera-mlflow", "tessera-feast", "tessera-notify"),
}
# Embedded models need no key, and not everybody wants to be told.
OPTIONAL = ("tessera-models", "tessera-notify")
# Whether a source has changed is known to the machine that has it, and not to whoever starts a run.
NEVER_CACHED = ("ingest",)
# A busy or restarting endpoint is asked again for an hour; a trainer that lost its node goes on from its checkpoint.
RETRIES = {"enrich": 5, "train": 2}
FIRST_WAIT, LONGEST_WAIT = "60s", "1200s"


def on_cluster(pipeline: Any, cluster: ClusterSettings) -> Any:
    """The Kubeflow pipeline to compile: its steps within an exit handler that says how they ended.

    Only steps at the top of a pipeline can be its outputs, and an exit handler is not the top, so these have none.
    """
    steps, name = pipeline.pipeline_func, pipeline.component_spec.name
    return dsl.pipeline(name=name, description=pipeline.component_spec.description)(_reported(steps, name, cluster))


def _reported(steps: Callable[..., Any], name: str, cluster: ClusterSettings) -> Callable[..., None]:
    @wraps(steps)
    def reported(*given: Any) -> None:
        with dsl.ExitHandler(light(notify(pipeline=name)).set_caching_options(False), name="reported"):
            steps(*given)
        for task in Pipeline.get_default_pipeline().tasks.values():
            _equip(task, cluster)

    signature = inspect.signature(steps)
    parameters = [
        one.replace(default=shards_of(cluster.shards)) if one.name == "shards" else one
        for one in signature.parameters.values()
    ]
    reported.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=parameters, return_annotation=inspect.Signature.empty
    )
    return reported


def _equip(task: PipelineTask, cluster: ClusterSettings) -> None:
    """Give a step what its kind needs."""
    kind = next(kind for kind in NEEDED if task.container_spec.image == image(kind))
    task.set_container_image(pinned(kind))
    kubernetes.mount_pvc(task, VOLUME, MOUNT)
    kubernetes.use_config_map_as_env(task, CONFIG, _same(CONFIGURED))
    kubernetes.use_config_map_as_env(task, CONFIG, _same(CONFIGURED_PERHAPS), optional=True)
    for secret in NEEDED[kind]:
        kubernetes.use_secret_as_env(task, secret, _same(SECRETS[secret]), optional=secret in OPTIONAL)
    kubernetes.add_pod_label(task, "app.kubernetes.io/part-of", "tessera")
    kubernetes.add_pod_label(task, "app.kubernetes.io/component", "pipelines")
    kubernetes.set_security_context(task, run_as_non_root=True)
    if task.component_spec.name in NEVER_CACHED:
        task.set_caching_options(False)
    if kind in RETRIES:
        task.set_retry(RETRIES[kind], FIRST_WAIT, backoff_factor=2.0, backoff_max_duration=LONGEST_WAIT)
    if kind == "train" and cluster.gpus:
        task.container_spec.resources.accelerator_type = cluster.gpu
        task.container_spec.resources.accelerator_count = str(cluster.gpus)
        for label, value in labels_of(cluster.gpu_nodes).items():
            kubernetes.add_node_selector(task, label, value)
        kubernetes.add_toleration(task, key=cluster.gpu, operator="Exists", effect="NoSchedule")


def _same(names: tuple[str, ...]) -> dict[str, str]:
    return {name: name for name in names}
