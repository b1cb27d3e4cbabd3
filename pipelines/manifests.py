"""Kubernetes manifests of this tree: an overlay of `k8s/` rendered with the images of this very code.

    python -m pipelines.manifests secrets             # once, for the overlay "local"
    python -m pipelines.manifests render local        # -> build/k8s/local.yaml

As with compiled pipelines, images are named by the registry's digests where `make push` noted them, else by tags, which
are digests of the code: both are known when the tree is rendered, and not written down in it.
"""

import os
import secrets as random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tyro
import yaml

from components.images import ROOT, pinned
from serving.control import VARIABLE
from tessera.errors import InputError, TesseraError
from tessera.files import write_text

K8S = ROOT / "k8s"
KINDS = ("enrich", "train", "publish", "serve")
ROUTES = ("Ingress", "HTTPRoute", "GRPCRoute", "TCPRoute", "TLSRoute")
# kustomize knows where the images of Kubernetes' own kinds are.
_IMAGE_FIELDS = {"images": [{"kind": "FeatureStore", "path": "spec/services/onlineStore/server/image"}]}


def render(overlay: str, k8s: Path = K8S) -> str:
    """The manifests of an overlay as one YAML text; those of "local" contain its passwords.

    Raises:
        InputError: no such overlay, kubectl and kustomize are both absent, or kustomize refused.
    """
    folder = (k8s / "overlays" / overlay).resolve()
    if not (folder / "kustomization.yaml").is_file():
        known = ", ".join(sorted(path.name for path in (k8s / "overlays").glob("*/")))
        raise InputError(f"there is no overlay {overlay!r}; choose one of {known}.")
    with tempfile.TemporaryDirectory(prefix="tessera-k8s-") as given:
        staging = Path(given).resolve()
        wrapped = {
            "resources": [os.path.relpath(folder, staging)],
            "images": [_pin(pinned(kind)) for kind in KINDS],
            "configurations": ["images.yaml"],
        }
        (staging / "images.yaml").write_text(yaml.safe_dump(_IMAGE_FIELDS), encoding="utf-8")
        (staging / "kustomization.yaml").write_text(yaml.safe_dump(wrapped), encoding="utf-8")
        done = subprocess.run([*_kustomize(), str(staging)], capture_output=True, text=True, check=False)
    if done.returncode:
        hint = " Make its Secrets first: `make k8s-secrets`." if "/secrets/" in done.stderr else ""
        raise InputError(f"kustomize refused the overlay {overlay!r}: {done.stderr.strip()[-500:]}.{hint}")
    if routes := http_routes(list(yaml.load_all(done.stdout, getattr(yaml, "CSafeLoader", yaml.SafeLoader)))):
        raise InputError(
            f"{', '.join(routes)} would show strangers the HTTP port of a Triton that 130 bytes of JSON end; route to "
            "its port grpc, or run the vendor's container."
        )
    return done.stdout


def http_routes(objects: list[dict[str, Any]]) -> list[str]:
    """The ways in from outside that end at another port than gRPC's of a Triton of this project's own image.

    That server comes from a wheel, is older than the vendor's container, and a request of 130 bytes ends it: a JSON
    shape beyond memory.
    """
    found = []
    for route in (one for one in objects if one["kind"] in ROUTES):
        wanted = {(ref["name"], ref["port"]) for ref in _backends(route["spec"])}
        for service in (one for one in objects if one["kind"] == "Service"):
            for port in service["spec"]["ports"]:
                named = wanted & {(service["metadata"]["name"], port[key]) for key in ("port", "name")}
                if named and port["targetPort"] not in ("grpc", 8001) and _has_wheels_triton(objects, service):
                    found.append(f"{route['kind']}/{route['metadata']['name']}")
    return sorted(set(found))


def _backends(tree: Any) -> Iterator[dict[str, Any]]:
    """What a route names: `backendRefs` of the Gateway API, `backend.service` of an Ingress."""
    if isinstance(tree, list):
        for one in tree:
            yield from _backends(one)
    if isinstance(tree, dict):
        for key, value in tree.items():
            if key == "backendRefs":
                yield from ({"name": ref["name"], "port": ref.get("port")} for ref in value)
            elif key == "service" and isinstance(value, dict) and "port" in value:
                yield {"name": value["name"], "port": next(iter(value["port"].values()))}
            else:
                yield from _backends(value)


def _has_wheels_triton(objects: list[dict[str, Any]], service: dict[str, Any]) -> bool:
    selector = service["spec"].get("selector", {}).items()
    for one in objects:
        template = one.get("spec", {}).get("template", {}) if one["kind"] in ("StatefulSet", "Deployment") else {}
        if template and selector <= template["metadata"].get("labels", {}).items():
            images = (c["image"] for c in template["spec"]["containers"] if c.get("command") == ["tritonserver"])
            return any("tessera-python-serve" in image for image in images)
    return False


def make_secrets(folder: Path = K8S / "overlays" / "local" / "secrets") -> bool:
    """Write the files that the overlay "local" makes its Secrets of, with new passwords; returns whether it did.

    A folder that is there keeps its files: the databases in the cluster know its passwords. Only Triton's key, which no
    database knows, is added to one that was made before there was a key. The key of a model endpoint comes from
    OPENAI_API_KEY.
    """
    triton = f"{VARIABLE}={random.token_urlsafe(32)}\n"
    if folder.exists():
        file = folder / "triton.env"
        if missing := not file.exists():
            write_text(file, triton, mode=0o600)
        return missing
    database, redis, storage, administrator, writer, reader = (random.token_urlsafe(24) for _ in range(6))
    url = f"postgresql+psycopg://tessera:{database}@postgres:5432"
    files = {
        "postgres": {"POSTGRES_PASSWORD": database},
        "redis": {"REDIS_PASSWORD": redis},
        "s3": {"AWS_ACCESS_KEY_ID": "tessera", "AWS_SECRET_ACCESS_KEY": storage},
        "catalogue": {"TESSERA_CATALOGUE_URL": f"{url}/catalogue"},
        "mlflow": {"MLFLOW_TRACKING_USERNAME": "tessera-writer", "MLFLOW_TRACKING_PASSWORD": writer},
        "mlflow-reader": {"MLFLOW_TRACKING_USERNAME": "tessera-reader", "MLFLOW_TRACKING_PASSWORD": reader},
        "mlflow-server": {
            "MLFLOW_AUTH_ADMIN_USERNAME": "tessera",
            "MLFLOW_AUTH_ADMIN_PASSWORD": administrator,
            "MLFLOW_BACKEND_STORE_URI": f"{url}/mlflow",
            "MLFLOW_FLASK_SERVER_SECRET_KEY": random.token_urlsafe(24),
        },
        "feast": {
            "FEAST_REGISTRY_URL": f"{url}/feast",
            "FEAST_REDIS": f"redis:6379,password={redis}",
            "FEAST_OFFLINE_HOST": "postgres",
            "FEAST_OFFLINE_PORT": "5432",
            "FEAST_OFFLINE_DATABASE": "feast",
            "FEAST_OFFLINE_USER": "tessera",
            "FEAST_OFFLINE_PASSWORD": database,
            "FEAST_OFFLINE_SSLMODE": "disable",
        },
        "models": {"OPENAI_API_KEY": os.environ.get("OPENAI_API_KEY", "")},
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".secrets-", dir=folder.parent))  # for this user's eyes only
    try:
        for name, entries in files.items():
            lines = "".join(f"{key}={value}\n" for key, value in entries.items())
            (staging / f"{name}.env").write_text(lines, encoding="utf-8")
        (staging / "triton.env").write_text(triton, encoding="utf-8")
        staging.rename(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return True


def _pin(image: str) -> dict[str, str]:
    name, at, digest = image.partition("@")
    name, _, tag = (name, "", "") if at else name.rpartition(":")
    return {"name": name.rsplit("/", 1)[-1], "newName": name} | ({"digest": digest} if at else {"newTag": tag})


def _kustomize() -> list[str]:
    if shutil.which("kustomize"):
        return ["kustomize", "build"]
    if shutil.which("kubectl"):
        return ["kubectl", "kustomize"]
    raise InputError("neither kubectl nor kustomize is installed; one of them renders the manifests.")


def _render(overlay: tyro.conf.Positional[str], output: Path | None = None) -> None:
    """Render an overlay with the images of this code.

    Args:
        output: YAML file to write; else build/k8s/OVERLAY.yaml.
    """
    path = output or ROOT / "build" / "k8s" / f"{overlay}.yaml"
    text = render(overlay)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_text(path, text)
    path.chmod(0o600)  # it may contain passwords
    print(f"{path} written; apply it with `kubectl apply --server-side -f {path}`.")


def _secrets() -> None:
    """Make the passwords of the overlay "local"."""
    made = make_secrets()
    print("k8s/overlays/local/secrets " + ("written." if made else "is there already; nothing was changed."))


def main() -> None:
    """Entry point; an expected failure prints one sentence and exits with 2."""
    try:
        tyro.extras.subcommand_cli_from_dict({"render": _render, "secrets": _secrets}, description=__doc__)
    except TesseraError as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
