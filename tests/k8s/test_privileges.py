"""Which container holds which secret, and what lies behind the ways in from outside."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from manifest_objects import Object, of_kind, pods, walk
from manifest_schemas import schema_problems

from components import images
from components.images import image
from pipelines import cluster, manifests
from tessera.errors import InputError

Rendered = Callable[[str], list[dict[str, Any]]]
OVERLAYS = ["local", "production", "production-operator"]
HOLDERS = {
    "tessera-s3": {"Deployment/mlflow mlflow", "StatefulSet/s3 s3", "Job/s3-bucket bucket"},
    "tessera-mlflow-server": {"Deployment/mlflow auth", "Deployment/mlflow mlflow", "Job/mlflow-accounts accounts"},
    "tessera-mlflow": {"Deployment/tessera-shell shell", "Job/mlflow-accounts accounts"},
    "tessera-mlflow-reader": {
        "StatefulSet/triton fetch", "StatefulSet/triton sync", "Job/mlflow-accounts accounts",
    },
    "tessera-feast": {"Deployment/feast feast", "Deployment/tessera-shell shell"},
    "tessera-catalogue": set(),
    "tessera-models": set(),
}  # fmt: skip


@pytest.mark.parametrize("secret", HOLDERS)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_secret_is_in_these_containers_alone(rendered: Rendered, overlay: str, secret: str) -> None:
    objects = rendered(overlay)
    there = {f"{one.name} {container['name']}" for one in pods(objects) for container in one.containers}
    holders = {
        f"{one.name} {container['name']}"
        for one in pods(objects)
        for container in one.containers
        for path, value in walk(container)
        if path[-1:] in (("secretRef",), ("secretKeyRef",)) and value["name"] == secret
    }
    assert holders == HOLDERS[secret] & there


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_no_step_can_ask_the_cluster_for_the_key_of_the_bucket(rendered: Rendered, overlay: str) -> None:
    for role in of_kind(rendered(overlay), "Role"):
        for rule in role["rules"]:
            if "secrets" in rule["resources"]:
                assert (rule["verbs"], rule["resourceNames"]) == (["get"], ["mlpipeline-minio-artifact"])


@pytest.mark.parametrize("kind", cluster.NEEDED)
def test_no_step_is_given_the_key_of_the_bucket_or_of_mlflows_administrator(kind: str) -> None:
    given = {name for secret in cluster.NEEDED[kind] for name in cluster.SECRETS[secret]}
    assert not {name for name in given if name.startswith(("AWS_", "MLFLOW_AUTH_ADMIN"))}
    if kind != "publish":
        assert not {name for name in given if name.startswith("MLFLOW_")}


@pytest.mark.parametrize("overlay", ["production", "production-operator"])
def test_from_outside_only_these_calls_of_grpc_are_routed_with_a_token_and_within_limits(
    rendered: Rendered, overlay: str
) -> None:
    objects = rendered(overlay)
    assert not of_kind(objects, "Ingress", "HTTPRoute")
    (gateway,), (route,) = of_kind(objects, "Gateway"), of_kind(objects, "GRPCRoute")
    (listener,) = gateway["spec"]["listeners"]
    assert (listener["protocol"], listener["allowedRoutes"]["kinds"]) == ("HTTPS", [{"kind": "GRPCRoute"}])
    (rule,) = route["spec"]["rules"]
    assert rule["backendRefs"] == [{"name": "triton", "port": 8001}]
    assert {(m["method"]["type"], m["method"]["method"]) for m in rule["matches"]} == {
        ("Exact", name) for name in ("ModelInfer", "ModelReady", "ServerReady", "Check")
    }
    on_route = [{"group": "gateway.networking.k8s.io", "kind": "GRPCRoute", "name": "recommendations"}]
    (security,), (traffic,) = of_kind(objects, "SecurityPolicy"), of_kind(objects, "BackendTrafficPolicy")
    assert security["spec"]["targetRefs"] == traffic["spec"]["targetRefs"] == on_route
    assert security["spec"]["jwt"]["providers"][0]["remoteJWKS"]["uri"].startswith("https://")
    assert "optional" not in security["spec"]["jwt"]
    assert security["spec"]["authorization"]["defaultAction"] == "Deny"
    assert traffic["spec"]["rateLimit"]["local"]["rules"]
    assert traffic["spec"]["requestBuffer"]["limit"] == "1Mi"


def test_local_has_no_way_in(rendered: Rendered) -> None:
    assert not of_kind(rendered("local"), *manifests.ROUTES, "Gateway")
    assert {one["spec"].get("type", "ClusterIP") for one in of_kind(rendered("local"), "Service")} == {"ClusterIP"}


@pytest.mark.parametrize("port", [{"name": "http"}, {"number": 8000}, {"name": "metrics"}, {"name": "grpc"}])
def test_an_ingress_to_the_http_port_of_the_wheels_triton_is_not_rendered(tree: Path, port: Object) -> None:
    overlay = tree / "overlays" / "with-ingress"
    overlay.mkdir(exist_ok=True)
    patch = [{"op": "replace", "path": "/spec/rules/0/http/paths/0/backend/service/port", "value": port}]
    mine = {
        "resources": ["../production"],
        "components": ["../../components/ingress"],
        "patches": [{"target": {"kind": "Ingress"}, "patch": yaml.safe_dump(patch)}],
    }
    (overlay / "kustomization.yaml").write_text(yaml.safe_dump(mine), encoding="utf-8")
    if port == {"name": "grpc"}:
        objects = list(yaml.safe_load_all(manifests.render("with-ingress", tree)))
        assert of_kind(objects, "Ingress")
        assert schema_problems(objects, "1.37") == []
        return
    with pytest.raises(InputError, match="Ingress/recommendations would show strangers the HTTP port"):
        manifests.render("with-ingress", tree)


def route(kind: str, port: int) -> Object:
    rules = [{"backendRefs": [{"name": "triton", "port": port}]}]
    return {"kind": kind, "metadata": {"name": "mine"}, "spec": {"rules": rules}}


def test_a_route_to_it_is_found_and_one_to_the_vendors_container_is_not(rendered: Rendered) -> None:
    objects = rendered("production")
    assert manifests.http_routes(objects) == []
    assert manifests.http_routes([*objects, route("GRPCRoute", 8001)]) == []
    assert manifests.http_routes([*objects, route("HTTPRoute", 8000), route("TCPRoute", 8002)]) == [
        "HTTPRoute/mine", "TCPRoute/mine",
    ]  # fmt: skip
    (triton,) = (one for one in objects if one["kind"] == "StatefulSet" and one["metadata"]["name"] == "triton")
    triton["spec"]["template"]["spec"]["containers"][0]["image"] = "nvcr.io/nvidia/tritonserver:26.10-py3"
    assert manifests.http_routes([*objects, route("HTTPRoute", 8000)]) == []


def test_images_that_were_pushed_are_named_by_digest(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest, noted = f"sha256:{'5' * 64}", tmp_path / "images.json"
    noted.write_text(f'{{"{image("serve")}": "{digest}"}}')
    monkeypatch.setattr(images, "DIGESTS", noted)
    text = manifests.render("local", tree)
    assert f"tessera-python-serve@{digest}" in text
    assert image("serve") not in text
    assert image("publish") in text  # not pushed yet
    noted.write_text(f'{{"tessera-python-serve:0123456789abcdef": "{digest}"}}')  # of other code
    assert image("serve") in manifests.render("local", tree)
