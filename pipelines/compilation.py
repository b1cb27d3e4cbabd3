"""`tessera compile`: pipelines as Kubeflow's intermediate representation and as Kubernetes resources."""

from pathlib import Path

from kfp.compiler import Compiler
from kfp.compiler.compiler_utils import KubernetesManifestOptions

from pipelines import runs
from pipelines.cluster import on_cluster
from pipelines.settings import ClusterSettings
from tessera.errors import InputError
from tessera.files import sha256_file


def compile_one(name: str, path: Path, cluster: ClusterSettings) -> None:
    """Write a pipeline's intermediate representation as YAML.

    Raises:
        InputError: the file has another ending.
    """
    if path.suffix not in (".yaml", ".yml"):
        raise InputError(f"{path} must end in .yaml; Kubeflow takes compiled pipelines as YAML.")
    path.parent.mkdir(parents=True, exist_ok=True)
    Compiler().compile(on_cluster(runs.PIPELINES[name], cluster), str(path))


def compile_all(folder: Path, cluster: ClusterSettings) -> list[Path]:
    """Write every pipeline to `folder`/NAME.yaml, and to `folder`/kubernetes/NAME.yaml as the resources Pipeline and
    PipelineVersion; a version is named by what it holds, so that applying an unchanged one again changes nothing.
    """
    written = []
    (folder / "kubernetes").mkdir(parents=True, exist_ok=True)
    for name, pipeline in runs.PIPELINES.items():
        path, resources = folder / f"{name}.yaml", folder / "kubernetes" / f"{name}.yaml"
        whole = on_cluster(pipeline, cluster)
        Compiler().compile(whole, str(path))
        options = KubernetesManifestOptions(
            pipeline_name=f"tessera-{name}",
            pipeline_version_name=f"tessera-{name}-{sha256_file(path)[:10]}",
            namespace=cluster.namespace,
            include_pipeline_manifest=True,
        )
        Compiler().compile(
            whole, str(resources), kubernetes_manifest_format=True, kubernetes_manifest_options=options
        )
        written += [path, resources]
    return written
