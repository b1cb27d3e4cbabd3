"""Running a pipeline's steps in their images: by dockerd, or by podman where it speaks Docker's interface.

    podman system service --time 0 unix:///tmp/podman.sock &
    DOCKER_HOST=unix:///tmp/podman.sock TESSERA_RUNNER=containers tessera run training --out runs/shop
"""

import codecs
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import docker
from docker.errors import DockerException, ImageNotFound
from docker.types import Ulimit
from kfp import local
from kfp.local import docker_task_handler

from tessera.errors import InputError

VARIABLE = "TESSERA_RUNNER"
# What steps read, where a subprocess would see the whole environment.
PASSED = (
    "TESSERA_", "MLFLOW_", "FEAST_", "AWS_", "OPENAI_", "OMP_", "TQDM_", "TOKENIZERS_", "PYTHONWARNINGS",
    "PYTHONUNBUFFERED",
)  # fmt: skip


def wanted() -> bool:
    """Does TESSERA_RUNNER ask for containers?

    Raises:
        InputError: it asks for something else than `containers` or `subprocess`.
    """
    runner = os.environ.get(VARIABLE, "subprocess")
    if runner not in ("containers", "subprocess"):
        raise InputError(f"{VARIABLE} is {runner!r}; steps run as `subprocess` or in `containers`.")
    return runner == "containers"


def runner(folders: Iterable[Path]) -> local.DockerRunner:
    """KFP's container runner: a read-only root, no privileges, and this machine's network, where its servers are.

    Args:
        folders: what steps see of this machine, at the same places, besides the artifacts.

    Raises:
        InputError: no engine answers.
    """
    try:
        client = docker.from_env()
        podman = any("Podman" in part["Name"] for part in client.version().get("Components", []))
    except DockerException as error:
        raise InputError(
            f"no container engine answers ({type(error).__name__}); start dockerd, or `podman system service` and name "
            f"its socket in DOCKER_HOST."
        ) from None
    seen = {str(folder): {"bind": str(folder), "mode": "rw"} for folder in folders}

    def step(client: Any, image: str, command: list[str], volumes: dict[str, Any], **options: Any) -> int:
        return _run(client, image, command, volumes=volumes | seen, **options)

    # KFP's own takes a failed step for a good one if its container is gone before it is asked how it ended.
    docker_task_handler.run_docker_container = step
    # By themselves, engines ask for limits that they have no right to give where they are confined too.
    limits = [Ulimit(name=name, soft=most, hard=most) for name, most in (("nofile", 4096), ("nproc", 16384))]
    mapped = {"userns_mode": "keep-id"} if podman and os.getuid() else {}
    return local.DockerRunner(
        environment={name: value for name, value in os.environ.items() if name.startswith(PASSED)},
        user=f"{os.getuid()}:{os.getgid()}",
        network_mode="host",
        read_only=True,
        tmpfs={"/tmp": "rw,mode=1777"},
        cap_drop=["ALL"],
        security_opt=["no-new-privileges"],
        ulimits=limits,
        **mapped,
    )


def _run(client: Any, image: str, command: list[str], **options: Any) -> int:
    """Run a step, print what it says as it says it, and return its exit status; it ends with this process."""
    try:
        container = client.containers.run(image, command, detach=True, **options)
    except ImageNotFound:
        print(f"stage failed: there is no image {image} here; `make images` builds it.")
        return 1
    try:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for part in container.logs(stream=True, follow=True):
            print(decoder.decode(part), end="")
        return int(container.wait()["StatusCode"])
    finally:
        container.remove(force=True)
