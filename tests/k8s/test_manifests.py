"""Every overlay is what a strict API server takes, and what it refers to is there."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from manifest_checks import CHECKS, Check
from manifest_objects import name_of, of_kind, pods
from manifest_schemas import schema_problems

from components.images import image
from pipelines import manifests
from serving import control
from tessera.errors import InputError

OVERLAYS = ("local", "production", "production-operator")
VERSIONS = ("1.31", "1.33", "1.35", "1.37")
Rendered = Callable[[str], list[dict[str, Any]]]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("overlay", [*OVERLAYS, "../base"])
def test_schemas(rendered: Rendered, overlay: str, version: str) -> None:
    assert schema_problems(rendered(overlay), version) == []


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_references(rendered: Rendered, overlay: str, check: Check) -> None:
    assert check(rendered(overlay)) == []


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_images_are_those_of_this_code(rendered: Rendered, overlay: str) -> None:
    text = str(rendered(overlay))
    assert image("serve") in text
    assert image("publish") in text


def test_production_holds_no_secret(rendered: Rendered) -> None:
    assert of_kind(rendered("production"), "Secret") == []


def test_each_overlay_is_what_its_cluster_has(rendered: Rendered) -> None:
    """Local: its own stores, no GPU. Production: GPUs, KEDA alone, TLS, quotas. With the operator: no second server."""
    local, production, operator = ({name_of(one): one for one in rendered(overlay)} for overlay in OVERLAYS)
    assert {"StatefulSet/postgres", "StatefulSet/redis", "StatefulSet/s3"} <= set(local)
    assert "nvidia.com/gpu" not in str(local)
    assert {"ScaledObject/triton", "Gateway/recommendations", "ResourceQuota/tessera"} <= set(production)
    assert not of_kind(list(production.values()), "HorizontalPodAutoscaler")
    triton = production["StatefulSet/triton"]["spec"]
    assert "replicas" not in triton  # the autoscaler's alone
    assert triton["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert "FeatureStore/tessera" in operator
    assert "Deployment/feast" not in operator
    assert operator["FeatureStore/tessera"]["spec"]["authz"] == {"noAuth": True}  # its own would ask readers for tokens


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_triton_is_probed_with_a_real_question(rendered: Rendered, overlay: str) -> None:
    (triton,) = (one for one in pods(rendered(overlay)) if one.name == "StatefulSet/triton")
    (server,) = (one for one in triton.containers if one["name"] == "triton")
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert "serving.probe" in server[probe]["exec"]["command"]
        assert server[probe]["timeoutSeconds"] > 5  # the question's own limit, so that its sentence is seen
    assert [one["name"] for one in triton.containers] == ["fetch", "triton", "sync"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_tritons_control_plane_wants_a_key_that_two_containers_have(rendered: Rendered, overlay: str) -> None:
    objects = rendered(overlay)
    (triton,) = (one for one in pods(objects) if one.name == "StatefulSet/triton")
    (server,) = (one for one in triton.containers if one["name"] == "triton")
    assert set(control.flags(f"$({control.VARIABLE})")) <= set(server["args"])
    holders = {
        (one.name, container["name"])
        for one in pods(objects)
        for container in one.containers
        if "tessera-triton" in json.dumps(container)
    }
    assert holders == {("StatefulSet/triton", "triton"), ("StatefulSet/triton", "sync")}


def test_secrets_are_made_once(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    assert manifests.make_secrets(folder)
    before = {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()}
    assert not manifests.make_secrets(folder)
    assert {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()} == before
    assert folder.stat().st_mode & 0o077 == 0
    (folder / "triton.env").unlink()  # a folder of an earlier version
    assert manifests.make_secrets(folder)
    now = {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()}
    assert {name for name in now if now[name] != before[name]} == {"triton.env"}


def test_an_overlay_that_does_not_exist(tree: Path) -> None:
    with pytest.raises(InputError, match="choose one of local, production"):
        manifests.render("staging", tree)
