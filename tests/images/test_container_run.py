"""A training run whose steps are containers: the same SIDs and numbers as with subprocesses, and its failures told."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import docker
import pytest

from images.engine import Engine
from tessera.errors import InputError
from tessera.files import read_json
from tessera.schema import read_table

pytestmark = [pytest.mark.e2e, pytest.mark.integration, pytest.mark.timeout(2400), pytest.mark.skipif(
    not os.environ.get("TESSERA_IMAGE_TEST"), reason="`make image-test` builds the images and runs these"
)]  # fmt: skip
TESSERA = Path(sys.executable).with_name("tessera")
SMALL = (
    "--shop.items=72", "--shop.users=240", "--tokenizer.codebook-size=16", "--tokenizer.epochs=20",
    "--policy.hidden=64", "--policy.layers=2", "--policy.heads=2", "--policy.text-vocabulary=512",
    "--policy.epochs=4", "--evaluation.beam=20",
)  # fmt: skip
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def socket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of an engine that speaks Docker's interface and has the images."""
    try:
        engine = Engine.find()
    except InputError as error:
        pytest.skip(str(error))
    if engine.name == "docker":
        yield os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
        return
    if engine.name == "buildah":
        pytest.skip("buildah runs no containers for others; this takes podman or docker")
    address = f"unix://{tmp_path_factory.mktemp('engine')}/podman.sock"
    service = subprocess.Popen(["podman", "system", "service", "--time", "0", address], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while not Path(address.removeprefix("unix://")).exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        docker.DockerClient(address).ping()
        yield address
    finally:
        service.terminate()
        service.wait(30)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where runs lie, each named by its runner."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def run(socket: str, folder: Path) -> Run:
    """`tessera run training`, with steps as subprocesses or in containers."""

    def start(runner: str, *more: str) -> subprocess.CompletedProcess[str]:
        where = f"--out={folder / runner}", f"--platform.home={folder / runner / 'home'}"
        environment = os.environ | {"DOCKER_HOST": socket, "TESSERA_RUNNER": runner, "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            [str(TESSERA), "run", "training", *where, *SMALL, *more], capture_output=True, text=True, check=False,
            cwd=folder, env=environment,
        )  # fmt: skip

    return start


def test_the_same_run_in_containers(run: Run, folder: Path) -> None:
    for runner in ("subprocess", "containers"):
        done = run(runner)
        assert done.returncode == 0, done.stdout + done.stderr
    plain, contained = (read_table("sids", folder / name / "sids.parquet") for name in ("subprocess", "containers"))
    assert contained["sid"].to_pylist() == plain["sid"].to_pylist()
    assert contained.equals(plain)
    numbers = [read_json(folder / name / "metrics.json") for name in ("subprocess", "containers")]
    for name in ("hr@10", "ndcg@10", "validation"):
        assert numbers[0][name] == numbers[1][name]


def test_a_failure_in_a_container_fails_the_run_with_its_sentence(run: Run) -> None:
    done = run("containers", "--tokenizer.codebook-size=4", "--tokenizer.levels=2")
    assert done.returncode == 2
    assert "failed" in done.stderr
    assert "codebook" in done.stderr


def test_a_missing_image_is_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TESSERA_IMAGE_PREFIX", "localhost/nowhere-")
    done = run("containers")
    assert done.returncode == 2
    assert "localhost/nowhere-tessera-python-enrich" in done.stderr
    assert "make images" in done.stderr
