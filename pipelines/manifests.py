"""Kubernetes manifests of this tree: an overlay of `k8s/` rendered with the images of this very code.

    python -m pipelines.manifests secrets             # once, for the overlay "local"
    python -m pipelines.manifests render local        # -> build/k8s/local.yaml

As with compiled pipelines, the images' tags are digests of the code: they are known when the tree is rendered, and not
written down in it.
"""

import os
import secrets as random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import tyro
import yaml

from components.images import ROOT, image
from serving.control import VARIABLE
from tessera.errors import InputError, TesseraError
from tessera.files import write_text

K8S = ROOT / "k8s"
KINDS = ("enrich", "train", "publish", "serve")
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
        pinned = {
            "resources": [os.path.relpath(folder, staging)],
            "images": [_pin(image(kind)) for kind in KINDS],
            "configurations": ["images.yaml"],
        }
        (staging / "images.yaml").write_text(yaml.safe_dump(_IMAGE_FIELDS), encoding="utf-8")
        (staging / "kustomization.yaml").write_text(yaml.safe_dump(pinned), encoding="utf-8")
        done = subprocess.run([*_kustomize(), str(staging)], capture_output=True, text=True, check=False)
    if done.returncode:
        hint = " Make its Secrets first: `make k8s-secrets`." if "/secrets/" in done.stderr else ""
        raise InputError(f"kustomize refused the overlay {overlay!r}: {done.stderr.strip()[-500:]}.{hint}")
    return done.stdout


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
    database, redis, storage, registry = (random.token_urlsafe(24) for _ in range(4))
    url = f"postgresql+psycopg://tessera:{database}@postgres:5432"
    files = {
        "postgres": {"POSTGRES_PASSWORD": database},
        "redis": {"REDIS_PASSWORD": redis},
        "s3": {"AWS_ACCESS_KEY_ID": "tessera", "AWS_SECRET_ACCESS_KEY": storage},
        "catalogue": {"TESSERA_CATALOGUE_URL": f"{url}/catalogue"},
        "mlflow": {
            "MLFLOW_TRACKING_USERNAME": "tessera",
            "MLFLOW_TRACKING_PASSWORD": registry,
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


def _pin(name_and_tag: str) -> dict[str, str]:
    name, tag = name_and_tag.rsplit(":", 1)
    return {"name": name.rsplit("/", 1)[-1], "newName": name, "newTag": tag}


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
