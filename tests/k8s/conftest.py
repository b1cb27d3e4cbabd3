"""The overlays, rendered once from a copy of the tree in which the local passwords are made anew."""

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines import manifests

OVERLAYS = ("local", "production", "production-operator", "../base")


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of k8s/ that is ready to be rendered."""
    if not (shutil.which("kubectl") or shutil.which("kustomize")):
        pytest.skip("neither kubectl nor kustomize is installed to render manifests")
    folder = tmp_path_factory.mktemp("tree") / "k8s"
    shutil.copytree(manifests.K8S, folder, ignore=shutil.ignore_patterns("secrets"))
    assert manifests.make_secrets(folder / "overlays" / "local" / "secrets")
    return folder


@pytest.fixture(scope="session")
def _all(tree: Path) -> dict[str, list[dict[str, Any]]]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return {name: list(yaml.load_all(manifests.render(name, tree), loader)) for name in OVERLAYS}


@pytest.fixture(scope="session")
def rendered(_all: dict[str, list[dict[str, Any]]]) -> Callable[[str], list[dict[str, Any]]]:
    """The objects of an overlay, a copy that may be changed."""
    return lambda overlay: copy.deepcopy(_all[overlay])
